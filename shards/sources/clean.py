"""Clean photographs of a folder, which noise and pipelines degrade while they are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shards.errors import PackError
from shards.file_records import FileRecords
from shards.images import list_images
from shards.listing import digest_of, list_folder
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import NOISE
from shards.sources.held_out import named, spread
from shards.sources.image import ImageFile
from shards.sources.pair import Pair, Split


class CleanSource:
    """The photographs of a folder as clean-only samples.

    `held_out` names the files of the test split (`shards.sources.held_out.named`); `held_out_share` is their share if
    they are not named.
    """

    problems: tuple[DataProblem, ...] = ()

    def __init__(
        self,
        root: Path,
        *,
        held_out: Sequence[str] = (),
        held_out_share: float = 0.0,
        licence: str = "not stated",
        on_hash: ProgressCallback | None = None,
        records: FileRecords | None = None,
    ) -> None:
        self._root, self._on_hash, self._records = root, on_hash, records
        self.licences: Mapping[str, str] = {"folder": licence}
        self._files: dict[str, Path] = {}
        for path in list_images(root):
            name = path.relative_to(root).with_suffix("").as_posix()
            if name in self._files:
                raise PackError(
                    f"{root}: {self._files[name].name} and {path.name} have the same name. Rename one."
                )
            self._files[name] = path
        if held_out and held_out_share:
            raise PackError("held_out and held_out_share both divide the photographs. Give one of them.")
        by_path = {path.relative_to(root).as_posix(): name for name, path in self._files.items()}
        self._held_out = named(held_out, by_path) or spread(self._files, held_out_share)
        self._held_out_as: object = held_out_share or sorted(self._held_out)

    @cached_property
    def provenance(self) -> dict[str, object]:
        """The options, and the digest of the folder's files."""
        return {"source": "clean", "held_out": self._held_out_as, "content": digest_of(self.listings[0])}

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """The files of the folder."""
        return (list_folder(self._root, self._files.values(), self._on_hash, self._records),)

    def __len__(self) -> int:
        return len(self._files)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training samples by row label."""
        return {NOISE: len(self._files) - len(self._held_out)}

    def __iter__(self) -> Iterator[Pair]:
        for name, path in self._files.items():
            yield Pair(name, self._split(name), NOISE, None, ImageFile(path), "folder")

    def _split(self, name: str) -> Split:
        return "test" if name in self._held_out else "train"
