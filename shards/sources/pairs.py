"""A user's own pairs: two file patterns whose captured fields pair the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from shards.errors import PackError
from shards.listing import digest_of, list_folder
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import DEGRADATIONS, OWN_NAME_RULE, SIGMA, is_own_name
from shards.sources.image import ImageFile
from shards.sources.layout import FileLayout
from shards.sources.pair import Pair
from shards.sources.recognise import FileTree, match_layout


class PairsSource:
    """Pairs of the files that match two patterns relative to `root`.

        degraded  input/{scene}_*.png        clean  target/{scene}.png

    Two files form a pair when the fields that both patterns capture are equal, so one clean file may have many
    degraded ones. `held_out` is the fraction of clean files in the test split, spread evenly over their sorted
    order: no photograph is in both splits.
    """

    def __init__(
        self,
        root: Path,
        degraded: str,
        clean: str,
        degradation: str,
        *,
        held_out: float = 0.0,
        licence: str = "not stated",
        on_hash: ProgressCallback | None = None,
    ) -> None:
        if degradation in SIGMA:
            raise PackError(
                f"degradation {degradation!r} has no pairs: it is added in training. Use another name."
            )
        if degradation not in DEGRADATIONS and not is_own_name(degradation):
            able = ", ".join(name for name in DEGRADATIONS if name not in SIGMA)
            raise PackError(f"degradation {degradation!r}: {OWN_NAME_RULE}, or one of {able}.")
        if not 0 <= held_out <= 1:
            raise PackError(f"held_out is {held_out}; it must be between 0 and 1.")
        self._root, self._layout = root, FileLayout("your patterns", clean=clean, degraded=degraded)
        self._layout.check()
        found = match_layout(self._layout, FileTree.of(root), below="")
        if found is None or not found.pairs:
            raise PackError(f"{root}: no file matches both {degraded!r} and {clean!r}. Correct the patterns.")
        self._found = found
        self._cleans = list(dict.fromkeys(entry.clean for entry in found.pairs))
        self._degradation, self._held_out, self._on_hash = degradation, held_out, on_hash
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
        return (list_folder(self._root, (self._root / name for name in names), self._on_hash),)

    def __len__(self) -> int:
        return len(self._found.pairs)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""
        tested = self._tested()
        return {self._degradation: sum(entry.clean not in tested for entry in self._found.pairs)}

    def __iter__(self) -> Iterator[Pair]:
        tested = self._tested()
        for entry in self._found.pairs:
            assert entry.degraded is not None, "both patterns are given"
            yield Pair(
                Path(entry.degraded).with_suffix("").as_posix(),
                "test" if entry.clean in tested else "train",
                self._degradation,
                ImageFile(self._root / entry.degraded),
                ImageFile(self._root / entry.clean),
                "pairs",
            )

    def _tested(self) -> set[str]:
        share = self._held_out
        return {c for i, c in enumerate(self._cleans) if int((i + 1) * share) > int(i * share)}
