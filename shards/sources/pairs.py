"""A user's own pairs: two file patterns whose captured fields pair the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shards.errors import PackError
from shards.file_records import FileRecords
from shards.listing import digest_of, list_folder
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import DEGRADATIONS, OWN_NAME_RULE, SIGMA, is_own_name
from shards.sources.held_out import SPLIT, named, splits_of, spread
from shards.sources.image import ImageFile
from shards.sources.layout import FileLayout
from shards.sources.pair import Pair, Split
from shards.sources.pattern import Pattern, as_one_form
from shards.sources.recognise import FilePair, FileTree, LayoutMatch, match_layout


class PairsSource:
    """Pairs of the files that match two patterns relative to `root`.

        degraded  input/{scene}_*.png        clean  target/{scene}.png

    Two files form a pair when the fields that both patterns capture are equal, so one clean file may have many
    degraded ones. A field `{split}` says which pairs are for training and which for evaluation. Without it `held_out`
    names the clean or degraded files for evaluation, or `held_out_share` is their fraction, spread evenly over the
    sorted clean files. No clean file is in both splits.
    """

    def __init__(
        self,
        root: Path,
        degraded: str,
        clean: str,
        degradation: str,
        *,
        held_out: Sequence[str] = (),
        held_out_share: float = 0.0,
        licence: str = "not stated",
        on_hash: ProgressCallback | None = None,
        records: FileRecords | None = None,
    ) -> None:
        if degradation in SIGMA:
            raise PackError(
                f"degradation {degradation!r} has no pairs: it is added in training. Use another name."
            )
        if degradation not in DEGRADATIONS and not is_own_name(degradation):
            able = ", ".join(name for name in DEGRADATIONS if name not in SIGMA)
            raise PackError(f"degradation {degradation!r}: {OWN_NAME_RULE}, or one of {able}.")
        if not 0 <= held_out_share <= 1:
            raise PackError(f"held_out_share is {held_out_share}; it must be between 0 and 1.")
        self._root, self._layout = root, FileLayout("your patterns", clean=clean, degraded=degraded)
        self._found = found = _match(root, self._layout)
        self._degradation, self._on_hash, self._records = degradation, on_hash, records
        self._cleans = list(dict.fromkeys(entry.clean for entry in found.pairs))
        if has_split(degraded, clean):
            if held_out or held_out_share:
                raise PackError(
                    "the field {split} divides the pairs. Leave out held_out and held_out_share, or rename the field."
                )
            self._held_out: object = f"{{{SPLIT}}}"
            self._tested = self._by_field()
        elif held_out:
            if held_out_share:
                raise PackError("held_out and held_out_share both divide the pairs. Give one of them.")
            files = {
                file: entry.clean for entry in found.pairs for file in (entry.clean, entry.degraded) if file
            }
            self._tested = named(held_out, files)
            self._held_out = sorted(self._tested)
        else:
            self._held_out = held_out_share
            self._tested = spread(self._cleans, held_out_share)
        self.licences: Mapping[str, str] = {"pairs": licence}
        self.problems: tuple[DataProblem, ...] = found.orphans()

    @cached_property
    def provenance(self) -> dict[str, object]:
        """The patterns and options, and the digest of the files found."""
        return {
            "source": "pairs",
            "degraded": self._layout.degraded,
            "clean": self._layout.clean,
            "degradation": self._degradation,
            "held_out": self._held_out,
            "content": digest_of(self.listings[0]),
        }

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """The files of all pairs, named relative to the root."""
        names = {name for entry in self._found.pairs for name in (entry.clean, entry.degraded) if name}
        return (list_folder(self._root, (self._root / name for name in names), self._on_hash, self._records),)

    def __len__(self) -> int:
        return len(self._found.pairs)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""
        return {self._degradation: sum(entry.clean not in self._tested for entry in self._found.pairs)}

    def __iter__(self) -> Iterator[Pair]:
        for entry in self._found.pairs:
            assert entry.degraded is not None, "both patterns are given"
            yield Pair(
                Path(entry.degraded).with_suffix("").as_posix(),
                "test" if entry.clean in self._tested else "train",
                self._degradation,
                ImageFile(self._root / entry.degraded),
                ImageFile(self._root / entry.clean),
                "pairs",
            )

    def _by_field(self) -> set[str]:
        """Return the clean files for evaluation by the field `{split}`. Raises PackError."""
        words = [(entry.clean, self._word_of(entry)) for entry in self._found.pairs]
        splits = splits_of(word for _, word in words)
        files: dict[Split, set[str]] = {"train": set(), "test": set()}
        for clean, word in words:
            files[splits[word]].add(clean)
        both = sorted(files["train"] & files["test"])
        if both:
            raise PackError(
                f"{both[0]} is the clean file of pairs for training and of pairs for evaluation ({len(both)} such "
                "files). A photograph may be in one of them only: put {split} into the pattern of the clean files too."
            )
        return files["test"]

    def _word_of(self, entry: FilePair) -> str:
        """Return what the field `{split}` is in the paths of a pair."""
        if SPLIT in entry.fields:
            return entry.fields[SPLIT]
        fields = self._layout.clean_pattern.match(as_one_form(entry.clean))
        assert fields is not None, "the pattern has matched this file"
        return fields[SPLIT]


def clean_files(root: Path, degraded: str, clean: str) -> list[str]:
    """Return the clean files of the pairs below `root`. Raises PackError."""
    found = _match(root, FileLayout("your patterns", clean=clean, degraded=degraded))
    return list(dict.fromkeys(entry.clean for entry in found.pairs))


def _match(root: Path, layout: FileLayout) -> LayoutMatch:
    layout.check()
    found = match_layout(layout, FileTree.of(root), below="")
    if found is None or not found.pairs:
        raise PackError(
            f"{root}: no files match {layout.degraded!r} and {layout.clean!r} with equal fields. Correct the patterns."
        )
    return found


def has_split(degraded: str, clean: str) -> bool:
    """Return whether a pattern has the field `{split}`."""
    return any(SPLIT in Pattern(pattern).fields for pattern in (degraded, clean))
