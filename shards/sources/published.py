"""A published dataset as a source: found on disk by its layout and compared with its published counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from shards.errors import PackError
from shards.file_records import FileRecords
from shards.listing import digest_of, list_folder
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sources.catalogue import PUBLISHED
from shards.sources.families.cdd11 import GROUPS
from shards.sources.image import CroppedImage, ImageFile, MatlabImage, SourceImage
from shards.sources.layout import DatasetPart, FileLayout, MatlabLayout, PairLabel
from shards.sources.official_list import OfficialList
from shards.sources.pair import Pair
from shards.sources.pattern import Pattern
from shards.sources.published_counts import count_problems, published_problems
from shards.sources.recognise import FilePair, FileTree, LayoutMatch, absence_problem, find_part

CROP, STRIDE = 512, 256
"""Size and stride in pixels of Restormer's crops of GoPro: 8 per frame of 1280 x 720, row by row."""


@dataclass(frozen=True)
class PublishedOptions:
    """Options for packing a published dataset."""

    split: Literal["train", "test", "all"] = "all"
    group: str = "all"
    """CDD-11: single, double, triple or all."""
    listing: Path | None = None
    """File with one name of a degraded (or clean-only) training file per line: only these are packed."""
    crops: bool = False
    """GoPro: cut the training frames into crops of 512 pixels, 256 apart."""
    exclude_leaked: bool = False
    """Leave out training scenes that are also test images."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Number of pairs by the name of a part, in place of the published number, for a deliberate subset."""


class PublishedSource:
    """One of `shards.sources.catalogue.PUBLISHED` below a folder."""

    def __init__(
        self,
        name: str,
        root: Path,
        options: PublishedOptions | None = None,
        on_hash: ProgressCallback | None = None,
        records: FileRecords | None = None,
    ) -> None:
        if name not in PUBLISHED:
            raise PackError(f"dataset {name!r} is unknown; there are {', '.join(PUBLISHED)}.")
        self._name, self._root, self._options = name, root, options or PublishedOptions()
        self._published, self._on_hash, self._records = PUBLISHED[name], on_hash, records
        self._check_options()
        self._tree = FileTree.of(root)
        self._list = OfficialList.read(self._options.listing) if self._options.listing else None
        problems: list[DataProblem] = []
        self._pairs: list[Pair] = []
        self._layouts: dict[str, str] = {}
        for part, found in self._find_parts():
            if found is None:
                problems.append(absence_problem(part, self._tree))
                continue
            self._layouts[part.name] = found.layout.name
            problems += self._part_problems(part, found)
            for files in self._selected(part, found):
                label = part.label_of(files.name, files.fields)
                if label is None:
                    what = f"{part.name}: {files.name} is of none of its sets."
                    problems.append(DataProblem(what, "Remove it."))
                else:
                    self._pairs += self._pairs_of(part, found.layout, files, label)
        if self._list is not None:
            problems += self._list.missing()
        self.problems: tuple[DataProblem, ...] = tuple(problems)
        sources = sorted({pair.source for pair in self._pairs})
        self.licences: Mapping[str, str] = {source: self._published.licence for source in sources}

    @cached_property
    def provenance(self) -> dict[str, object]:
        """The options, the layouts found, and the digest of the selected files."""
        options = self._options
        asked: dict[str, object] = {"split": options.split}
        if self._name == "cdd11":
            asked["group"] = options.group
        if options.crops:
            asked["crops"] = [CROP, STRIDE]
        if options.exclude_leaked:
            asked["exclude_leaked"] = True
        if options.expected:
            asked["expected"] = dict(sorted(options.expected.items()))
        if self._list is not None:
            asked["list"] = self._list.record(self._published)
        return {
            "source": self._name,
            **asked,
            "layouts": self._layouts,
            "from": self._published.where,
            "terms": self._published.terms,
            "content": digest_of(self.listings[0]),
        }

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """The files of all pairs, named relative to the root."""
        files = {_file(image) for pair in self._pairs for image in (pair.degraded, pair.clean) if image}
        return (list_folder(self._root, files, self._on_hash, self._records),)

    def __len__(self) -> int:
        return len(self._pairs)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""
        return dict(Counter(pair.degradation for pair in self._pairs if pair.split == "train"))

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._pairs)

    def _check_options(self) -> None:
        options, parts = self._options, self._published.parts
        if options.split != "all" and all(part.split != options.split for part in parts):
            raise PackError(f"{self._name} has no {options.split} split; it has {parts[0].split} alone.")
        if options.group not in GROUPS or (options.group != "all" and self._name != "cdd11"):
            raise PackError(f"group {options.group!r}: cdd11 alone has groups: {', '.join(GROUPS)}.")
        if options.crops and self._name != "gopro":
            raise PackError(f"crops are made of gopro alone, not of {self._name}.")
        unknown = sorted(set(options.expected) - {part.name for part in parts})
        if unknown:
            raise PackError(
                f"{self._name} has no part {unknown[0]!r}; there are {', '.join(part.name for part in parts)}."
            )

    def _find_parts(self) -> list[tuple[DatasetPart, LayoutMatch | None]]:
        """Find each part; parts whose counts fit best choose first, so that no file is in two parts."""
        chosen = {
            part: find_part(part, self._tree, self._expected(part))
            for part in self._published.parts
            if self._options.split in ("all", part.split)
        }
        taken: set[str] = set()
        for part, found in sorted(chosen.items(), key=lambda item: self._misfit(*item)):
            if found is not None and not taken.isdisjoint(found.files()):
                found = chosen[part] = find_part(part, self._tree, self._expected(part), taken)
            if found is not None:
                taken.update(found.files())
        return list(chosen.items())

    def _misfit(self, part: DatasetPart, found: LayoutMatch | None) -> int:
        return 0 if found is None else abs(len(found.pairs) - (self._expected(part) or len(found.pairs)))

    def _expected(self, part: DatasetPart) -> int | None:
        return self._options.expected.get(part.name, part.pairs)

    def _is_subset(self, part: DatasetPart) -> bool:
        """Return whether the user states the number of pairs, so that published numbers do not apply."""
        return part.name in self._options.expected

    def _part_problems(self, part: DatasetPart, found: LayoutMatch) -> Iterator[DataProblem]:
        """Yield unpaired files, wrong counts and leaked scenes of a part."""
        if self._list is None:
            for problem in found.orphans():
                yield replace(problem, what=f"{part.name} ({part.split}): {problem.what}")
        if self._list is None or part.split != "train":
            yield from self._count_problems(part, found)
        leak, excluded = part.leak, self._options.exclude_leaked
        if leak is not None and not leak.published and not excluded:
            leaked = [pair for pair in self._listed(part, found) if leak.holds(pair.name)]
            if leaked:
                remedy = "Remove them, or leave them out with --exclude-leaked."
                names = tuple(pair.degraded or pair.clean for pair in leaked)
                yield DataProblem(f"{part.name}: {leak.sentence}", remedy, names)

    def _count_problems(self, part: DatasetPart, found: LayoutMatch) -> Iterator[DataProblem]:
        if self._is_subset(part):
            yield from count_problems(part, found, self._expected(part))
            return
        if part.leak is not None and not part.leak.published and self._options.exclude_leaked:
            # The published count is that of the set without the leaked scenes.
            found = replace(found, pairs=self._without_leaked(part, found.pairs))
        own = found.layout.pairs if isinstance(found.layout, FileLayout) else None
        yield from count_problems(part, found, own or self._expected(part))
        yield from published_problems(part, found)

    def _selected(self, part: DatasetPart, found: LayoutMatch) -> Sequence[FilePair]:
        """Return the pairs to pack: those of the list, without leaked scenes if asked, of the CDD-11 group."""
        pairs = self._listed(part, found)
        if self._options.exclude_leaked:
            pairs = self._without_leaked(part, pairs)
        if part.by_type:
            pairs = [p for p in pairs if p.fields["type"].lower() in GROUPS[self._options.group]]
        return pairs

    def _listed(self, part: DatasetPart, found: LayoutMatch) -> Sequence[FilePair]:
        if self._list is None or part.split != "train":
            return found.pairs
        return [pair for pair in found.pairs if self._list.takes(pair)]

    @staticmethod
    def _without_leaked(part: DatasetPart, pairs: Sequence[FilePair]) -> tuple[FilePair, ...]:
        return tuple(pair for pair in pairs if part.leak is None or not part.leak.holds(pair.name))

    def _pairs_of(
        self, part: DatasetPart, layout: FileLayout | MatlabLayout, files: FilePair, label: PairLabel
    ) -> Iterator[Pair]:
        """Yield the pair of two files, or one pair per crop."""
        size = None if self._is_subset(part) else part.size
        degraded: SourceImage | None
        clean: SourceImage
        if isinstance(layout, MatlabLayout):
            assert files.degraded is not None
            id_ = f"{files.index:04}"
            degraded = MatlabImage(self._root / files.degraded, layout.degraded_variable, files.index)
            clean = MatlabImage(self._root / files.clean, layout.clean_variable, files.index)
        else:
            id_ = Pattern(layout.id).fill(files.fields) if layout.id else Path(files.name).stem
            degraded = ImageFile(self._root / files.degraded) if files.degraded else None
            clean = ImageFile(self._root / files.clean)
            if layout.pairs is not None:
                size = None  # MoCE-IR's files are crops
            elif self._options.crops and part.split == "train" and part.size and degraded is not None:
                for number, (top, left) in enumerate(_corners(*part.size), 1):
                    window = (top, left, CROP, CROP, part.size)
                    crops = CroppedImage(degraded, *window), CroppedImage(clean, *window)
                    yield Pair(f"{id_}-{number}", part.split, label.degradation, *crops, label.source)
                return
        yield Pair(id_, part.split, label.degradation, degraded, clean, label.source, size)


def _corners(height: int, width: int) -> list[tuple[int, int]]:
    """Return the top left corners of the crops, a stride apart, the last one at the edge."""

    def along(length: int) -> list[int]:
        return [*range(0, length - CROP, STRIDE), length - CROP]

    return [(top, left) for top in along(height) for left in along(width)]


def _file(image: SourceImage) -> Path:
    while isinstance(image, CroppedImage):
        image = image.whole
    assert isinstance(image, ImageFile | MatlabImage), "published datasets are files"
    return image.path
