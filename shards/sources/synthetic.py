"""Synthetic pairs: clean photographs, degraded by published physical models (`shards.degrade`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from shards.degrade import SYNTHETIC
from shards.errors import PackError
from shards.file_records import FileRecords
from shards.listing import digest_of, list_files
from shards.photographs import PHOTOGRAPHS, photograph_file
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import NOISE, SIGMA
from shards.sources.clean import CleanSource
from shards.sources.image import DegradedImage, HalvedImage, ImageFile, SourceImage
from shards.sources.pair import Pair, Split

_TERMS = "synthetic degradations, not a published benchmark: no number measured on them compares with one"


class PhotographSource:
    """Synthetic pairs from the photographs that ship in Python wheels (the demo).

    Each training photograph has `variants` draws of each degradation, each held-out one has a single draw. All
    noise levels share one clean-only pair per photograph.
    """

    problems: tuple[DataProblem, ...] = ()

    def __init__(self, degradations: Sequence[str], seed: int, variants: int = 2) -> None:
        self._kinds = _kinds(degradations)
        self._seed, self._variants = seed, variants
        self.provenance: dict[str, object] = {
            "source": "photographs",
            "degradations": list(self._kinds),
            "seed": seed,
            "variants": variants,
            "terms": _TERMS,
        }
        self.licences: Mapping[str, str] = {f"{p.package}:{p.name}": p.licence for p in PHOTOGRAPHS}

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """The photograph files, named by package, folder and file."""
        return (list_files(dict(map(photograph_file, PHOTOGRAPHS))),)

    def __len__(self) -> int:
        return sum(_pair_count(self._kinds, self._draws(photograph.split)) for photograph in PHOTOGRAPHS)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""
        photographs = sum(photograph.split == "train" for photograph in PHOTOGRAPHS)
        return _counts(self._kinds, photographs, self._variants)

    def __iter__(self) -> Iterator[Pair]:
        for photograph in PHOTOGRAPHS:
            file: SourceImage = ImageFile(photograph_file(photograph)[1])
            clean = HalvedImage(file) if photograph.halved else file
            source = f"{photograph.package}:{photograph.name}"
            draws = self._draws(photograph.split)
            yield from _pairs(
                photograph.name, photograph.split, clean, self._kinds, draws, self._seed, source
            )

    def _draws(self, split: Split) -> int:
        return self._variants if split == "train" else 1


class FolderSource(CleanSource):
    """Synthetic pairs from any folder of clean photographs."""

    def __init__(
        self,
        root: Path,
        degradations: Sequence[str],
        *,
        held_out: Sequence[str] = (),
        seed: int = 0,
        variants: int = 1,
        licence: str = "not stated",
        on_hash: ProgressCallback | None = None,
        records: FileRecords | None = None,
    ) -> None:
        self._kinds = _kinds(degradations)
        super().__init__(root, held_out=held_out, licence=licence, on_hash=on_hash, records=records)
        self._seed, self._variants = seed, variants

    @cached_property
    def provenance(self) -> dict[str, object]:
        """The options, and the digest of the folder's files."""
        return {
            "source": "folder",
            "degradations": list(self._kinds),
            "held_out": sorted(self._held_out),
            "seed": self._seed,
            "variants": self._variants,
            "terms": _TERMS,
            "content": digest_of(self.listings[0]),
        }

    def __len__(self) -> int:
        return sum(_pair_count(self._kinds, self._draws(name)) for name in self._files)

    def training_counts(self) -> dict[str, int]:
        """Return the number of training pairs by row label."""
        return _counts(self._kinds, len(self._files) - len(self._held_out), self._variants)

    def __iter__(self) -> Iterator[Pair]:
        for name, path in self._files.items():
            draws = self._draws(name)
            yield from _pairs(
                name, self._split(name), ImageFile(path), self._kinds, draws, self._seed, "folder"
            )

    def _draws(self, name: str) -> int:
        return 1 if name in self._held_out else self._variants


def _kinds(degradations: Sequence[str]) -> tuple[str, ...]:
    """Return the row labels to pack: `noise` once for all noise levels, then the synthetic degradations."""
    known = (*SIGMA, *SYNTHETIC)
    unknown = [name for name in degradations if name not in known]
    if unknown or not degradations:
        raise PackError(f"degradations {unknown or 'none'}: use {', '.join(known)}.")
    noise = (NOISE,) if any(name in SIGMA for name in degradations) else ()
    return noise + tuple(name for name in SYNTHETIC if name in degradations)


def _pair_count(kinds: tuple[str, ...], draws: int) -> int:
    return sum(1 if kind == NOISE else draws for kind in kinds)


def _counts(kinds: tuple[str, ...], images: int, draws: int) -> dict[str, int]:
    return {kind: images if kind == NOISE else images * draws for kind in kinds}


def _pairs(
    name: str, split: Split, clean: SourceImage, kinds: tuple[str, ...], draws: int, seed: int, source: str
) -> Iterator[Pair]:
    for kind in kinds:
        if kind == NOISE:
            yield Pair(name, split, NOISE, None, clean, source)
            continue
        for draw in range(draws):
            id_ = f"{name}-{draw}" if draws > 1 else name
            yield Pair(id_, split, kind, DegradedImage(clean, kind, seed, id_), clean, source)
