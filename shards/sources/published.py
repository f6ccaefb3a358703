"""A published dataset as a source: recognised on disk, held against its published counts."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from shards.errors import PackError
from shards.listing import digest_of, list_folder
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sources.catalogue import PUBLISHED
from shards.sources.families.cdd11 import GROUPS
from shards.sources.image import CroppedImage, ImageFile, MatlabImage, SourceImage
from shards.sources.layout import DatasetPart, FileLayout, MatlabLayout, PairLabel, PublishedDataset, TestLeak
from shards.sources.pair import Pair
from shards.sources.pattern import Pattern
from shards.sources.recognise import FilePair, FileTree, LayoutMatch, absence_problem, find_part

CROP, STRIDE = 512, 256
"""Restormer's crops of GoPro: 8 per frame of 1280 x 720, row by row."""


@dataclass(frozen=True)
class PublishedOptions:
    """What may be asked of a published dataset."""

    split: Literal["train", "test", "all"] = "all"
    group: str = "all"
    """CDD-11: single, double, triple or all."""
    listing: Path | None = None
    """File with one name of a degraded (or clean-only) training file per line: only these are packed."""
    crops: bool = False
    """GoPro: cut the training frames into crops of 512, 256 apart."""
    exclude_leaked: bool = False
    """Leave out training scenes that are test images."""
    expected: Mapping[str, int] = field(default_factory=dict)
    """Pairs of each part, by its name, instead of the published number; for a subset made on purpose."""


class PublishedSource:
    """One of `shards.sources.catalogue.PUBLISHED` below a folder."""

    def __init__(
        self,
        name: str,
        root: Path,
        options: PublishedOptions | None = None,
        on_hash: ProgressCallback | None = None,
    ) -> None:
        if name not in PUBLISHED:
            raise PackError(f"dataset {name!r} is unknown; there are {', '.join(PUBLISHED)}.")
        self._name, self._root, self._options = name, root, options or PublishedOptions()
        self._published, self._on_hash = PUBLISHED[name], on_hash
        self._check_options()
        self._tree = FileTree.of(root)
        self._list = _OfficialList.read(self._options.listing) if self._options.listing else None
        problems: list[DataProblem] = []
        self._pairs: list[Pair] = []
        self._layouts: dict[str, str] = {}
        for part, found in self._recognised():
            if found is None:
                problems.append(absence_problem(part, self._tree))
                continue
            self._layouts[part.name] = found.layout.name
            self._pairs += self._pairs_of(part, found, problems)
        if self._list is not None:
            problems += self._list.unused()
        self.problems: tuple[DataProblem, ...] = tuple(problems)
        sources = sorted({pair.source for pair in self._pairs})
        self.licences: Mapping[str, str] = {source: self._published.licence for source in sources}

    @cached_property
    def provenance(self) -> dict[str, object]:
        """What was asked for, which layouts were recognised, and the digest of the files that were taken."""
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
        """The files of all pairs, named below the root."""
        files = {_file(picture) for pair in self._pairs for picture in (pair.degraded, pair.clean) if picture}
        return (list_folder(self._root, files, self._on_hash),)

    def __len__(self) -> int:
        return len(self._pairs)

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label."""
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

    def _recognised(self) -> list[tuple[DatasetPart, LayoutMatch | None]]:
        """Parts and where they are: first those whose count fits best, so that none takes another's files."""
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

    def _pairs_of(self, part: DatasetPart, found: LayoutMatch, problems: list[DataProblem]) -> list[Pair]:
        options = self._options
        given = part.name in options.expected
        if part.leak is not None and options.exclude_leaked and not part.leak.published and not given:
            # The published count is that of the set without them.
            kept = tuple(entry for entry in found.pairs if not _leaks(part.leak, entry))
            found = replace(found, pairs=kept)
        entries = list(found.pairs)
        problems += _named(part, found.orphans() if self._list is None else ())
        expected = self._expected(part)
        if isinstance(found.layout, FileLayout) and found.layout.pairs and not given:
            expected = found.layout.pairs
        if self._list is not None and part.split == "train":
            entries = [entry for entry in entries if self._list.takes(entry)]
        else:
            problems += _count_findings(part, found, expected, given=given)
        if part.leak is not None:
            leaked = [entry for entry in entries if _leaks(part.leak, entry)]
            if options.exclude_leaked:
                entries = [entry for entry in entries if not _leaks(part.leak, entry)]
            elif leaked and not part.leak.published:
                examples = tuple(entry.degraded or entry.clean for entry in leaked)
                remedy = "Take them away, or leave them out with --exclude-leaked."
                problems.append(DataProblem(f"{part.name}: {part.leak.sentence}", remedy, examples))
        if part.by_type:
            entries = [e for e in entries if e.fields["type"].lower() in GROUPS[options.group]]
        return [pair for entry in entries for pair in self._pair(part, found.layout, entry, problems)]

    def _pair(
        self,
        part: DatasetPart,
        layout: FileLayout | MatlabLayout,
        entry: FilePair,
        problems: list[DataProblem],
    ) -> Iterator[Pair]:
        name = Path(entry.degraded or entry.clean).name
        label = _label(part, name, entry)
        if label is None:
            problems.append(DataProblem(f"{part.name}: {name} is of none of its sets.", "Take it away."))
            return
        size = None if part.name in self._options.expected else part.size
        if isinstance(layout, MatlabLayout):
            assert entry.degraded is not None
            yield Pair(
                f"{entry.index:04}",
                part.split,
                label.degradation,
                MatlabImage(self._root / entry.degraded, layout.degraded_variable, entry.index),
                MatlabImage(self._root / entry.clean, layout.clean_variable, entry.index),
                label.source,
                size,
            )
            return
        id_ = Pattern(layout.id).fill(entry.fields) if layout.id else Path(name).stem
        clean: SourceImage = ImageFile(self._root / entry.clean)
        degraded = ImageFile(self._root / entry.degraded) if entry.degraded else None
        if self._options.crops and part.split == "train" and part.size and layout.pairs is None:
            for number, (top, left) in enumerate(_windows(*part.size), 1):
                window = (top, left, CROP, CROP, part.size)
                assert degraded is not None
                yield Pair(
                    f"{id_}-{number}",
                    part.split,
                    label.degradation,
                    CroppedImage(degraded, *window),
                    CroppedImage(clean, *window),
                    label.source,
                )
            return
        size = None if layout.pairs else size  # MoCE-IR's files are crops
        yield Pair(id_, part.split, label.degradation, degraded, clean, label.source, size)


@dataclass(frozen=True)
class _OfficialList:
    """An official list: the files that belong to a training set."""

    md5: str
    names: tuple[str, ...]
    seen: set[str] = field(default_factory=set)

    @staticmethod
    def read(path: Path) -> _OfficialList:
        try:
            data = path.read_bytes()
            lines = [line.strip() for line in data.decode().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise PackError(f"{path}: the list cannot be read as text ({error}).") from error
        names = tuple(dict.fromkeys(_stem(line) for line in lines if line))
        if not names:
            raise PackError(f"{path}: the list is empty; it holds one file name per line.")
        return _OfficialList(hashlib.md5(data, usedforsecurity=False).hexdigest(), names)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    def takes(self, entry: FilePair) -> bool:
        """Whether the list names this pair."""
        stem = _stem(entry.degraded or entry.clean)
        if stem in self._known:
            self.seen.add(stem)
        return stem in self._known

    def unused(self) -> list[DataProblem]:
        """What the list names and the folder does not hold."""
        absent = tuple(name for name in self.names if name not in self.seen)
        if not absent:
            return []
        what = f"{len(absent)} of {len(self.names)} files of the list are not there."
        return [DataProblem(what, "Complete the download.", absent)]

    def record(self, published: PublishedDataset) -> dict[str, object]:
        """The list in JSON types."""
        known_as = published.lists.get(self.md5, "not an official list that this program knows")
        return {"md5": self.md5, "names": len(self.names), "known_as": known_as}


def _stem(line: str) -> str:
    """A file's name without folders and suffix, and BSD's ids without the `a` that some copies put before them."""
    name = line.rpartition("/")[2]
    head, dot, tail = name.rpartition(".")
    stem = head if dot and tail.isalpha() else name
    return stem[1:] if stem[:1] == "a" and stem[1:].isdigit() else stem


def _count_findings(
    part: DatasetPart, found: LayoutMatch, expected: int | None, *, given: bool
) -> list[DataProblem]:
    """What the numbers tell of a part that was found. `given`: the user says how many, so only that is held."""
    where = f"{part.name} ({part.split}, in {found.base or '.'}, laid out as: {found.layout.name})"
    problems: list[DataProblem] = []
    if expected is not None and len(found.pairs) != expected:
        what = f"{where} has {len(found.pairs):,} pairs; the set has {expected:,}."
        remedy = part.wrong_counts.get(len(found.pairs), "Complete the download, or name another --root.")
        problems.append(DataProblem(what, remedy, _absent(part, found)))
    if given:
        return problems
    cleans = len({entry.clean for entry in found.pairs})
    if part.cleans is not None and cleans != part.cleans:
        problems.append(
            DataProblem(f"{where} has {cleans:,} clean images in use; the set has {part.cleans:,}.")
        )
    if part.histogram is not None:
        name, counts = part.histogram
        seen = Counter(entry.fields[name] for entry in found.pairs if name in entry.fields)
        wrong = [f"{name}{key} has {seen[key]:,} of {n:,}" for key, n in counts.items() if seen[key] != n]
        if seen and wrong:
            problems.append(DataProblem(f"{where}: the folders are not complete.", examples=tuple(wrong)))
    labelled = Counter(_label(part, Path(e.degraded or e.clean).name, e) for e in found.pairs)
    for label in part.labels:
        if label.pairs is not None and labelled[label] != label.pairs:
            problems.append(
                DataProblem(
                    f"{where} has {labelled[label]:,} pairs of {label.source}; the set has {label.pairs:,}."
                )
            )
    return problems


def _absent(part: DatasetPart, found: LayoutMatch) -> tuple[str, ...]:
    """Names of the missing degraded files, where the clean ones tell them."""
    if part.grid is None or len(found.pairs) > (part.pairs or 0):
        return ()
    name = Pattern(part.grid.name)
    there = {name.fill(entry.fields) for entry in found.pairs}
    wanted = [
        {"key": key, **values}
        for key in sorted({entry.fields["key"] for entry in found.pairs})
        for values in _product(part.grid.values)
    ]
    return tuple(text for text in map(name.fill, wanted) if text not in there)


def _product(values: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    combined: list[dict[str, str]] = [{}]
    for name, options in values.items():
        combined = [{**one, name: option} for one in combined for option in options]
    return combined


def _named(part: DatasetPart, problems: Sequence[DataProblem]) -> list[DataProblem]:
    return [DataProblem(f"{part.name} ({part.split}): {f.what}", f.remedy, f.examples) for f in problems]


def _label(part: DatasetPart, name: str, entry: FilePair) -> PairLabel | None:
    if part.by_type:
        return PairLabel("*", part.by_type[entry.fields["type"].lower()], part.name)
    if not part.labels:
        return PairLabel("*", part.degradation, part.name)
    return next((label for label in part.labels if Pattern(label.pattern).match(name) is not None), None)


def _leaks(leak: TestLeak, entry: FilePair) -> bool:
    return Path(entry.degraded or entry.clean).name.startswith(leak.scenes)


def _windows(height: int, width: int) -> list[tuple[int, int]]:
    """Corners of the crops: a stride apart, the last one at the edge."""

    def along(length: int) -> list[int]:
        return [*range(0, length - CROP, STRIDE), length - CROP]

    return [(top, left) for top in along(height) for left in along(width)]


def _file(picture: SourceImage) -> Path:
    while isinstance(picture, CroppedImage):
        picture = picture.whole
    assert isinstance(picture, ImageFile | MatlabImage), "published datasets are files"
    return picture.path
