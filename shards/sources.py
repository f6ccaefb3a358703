"""Where pairs come from: every source yields them one by one, so memory does not grow with the dataset."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from shards.degrade import SYNTHETIC, degrade
from shards.errors import PackError
from shards.images import list_images, read_image
from shards.listing import digest_of, list_files, list_folder
from shards.photographs import PHOTOGRAPHS, photograph_file, read_photograph
from shards.sample import DEGRADATIONS, NOISE, SIGMA

Image = NDArray[np.uint8]
Split = Literal["train", "test"]

_SYNTHETIC_TERMS = "synthetic degradations for the demo, not a published benchmark"


@dataclass(frozen=True, slots=True)
class Pair:
    """One sample before it is packed. Pairs that share a clean image come one after another."""

    id: str
    split: Split
    degradation: str
    """Label of the manifest row: `noise` for a clean-only pair."""
    degraded: Image | None
    clean: Image
    source: str
    licence: str


class Source(Protocol):
    """A dataset before it is packed."""

    @property
    def provenance(self) -> dict[str, object]:
        """What was asked for, in JSON types; part of the dataset's digest. May read every file once."""

    def __len__(self) -> int:
        """Number of pairs."""

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label, known before any image is read."""

    @property
    def listings(self) -> tuple[bytes, ...]:
        """What the raw folders hold (`shards.listing`), one listing per folder. Reads every file once."""

    def __iter__(self) -> Iterator[Pair]:
        """Pairs in a fixed order."""


class PhotographSource:
    """Synthetic pairs from the photographs that ship in Python wheels (the demo).

    Each training photograph is degraded `variants` times per degradation, each held-out one once. Noise
    levels need one clean-only pair per photograph, whatever their number.
    """

    def __init__(self, degradations: Sequence[str], seed: int, variants: int = 2) -> None:
        self._kinds = _kinds(degradations)
        self._seed, self._variants = seed, variants
        self.provenance: dict[str, object] = {
            "source": "photographs",
            "degradations": list(self._kinds),
            "seed": seed,
            "variants": variants,
            "terms": _SYNTHETIC_TERMS,
        }

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """The photographs' files, named by package, folder and file."""
        return (list_files(dict(map(photograph_file, PHOTOGRAPHS))),)

    def __len__(self) -> int:
        return sum(_pairs_of(self._kinds, self._draws(photograph.split)) for photograph in PHOTOGRAPHS)

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label."""
        photographs = sum(photograph.split == "train" for photograph in PHOTOGRAPHS)
        return _counts(self._kinds, photographs, self._variants)

    def __iter__(self) -> Iterator[Pair]:
        for photograph in PHOTOGRAPHS:
            clean = read_photograph(photograph)
            draws = self._draws(photograph.split)
            source = f"{photograph.package}:{photograph.name}"
            yield from _synthetic_pairs(
                photograph.name,
                photograph.split,
                clean,
                self._kinds,
                draws,
                self._seed,
                source,
                photograph.licence,
            )

    def _draws(self, split: Split) -> int:
        return self._variants if split == "train" else 1


class FolderSource:
    """Synthetic pairs from any folder of clean photographs.

    `held_out` names the files of the test split, by their path inside the folder without suffix.
    """

    def __init__(
        self,
        root: Path,
        degradations: Sequence[str],
        *,
        held_out: Sequence[str] = (),
        seed: int = 0,
        variants: int = 1,
        licence: str = "not stated",
    ) -> None:
        self._kinds = _kinds(degradations)
        self._root, self._seed, self._variants, self._licence = root, seed, variants, licence
        self._files = {_stem(path, root): path for path in list_images(root)}
        missing = sorted(set(held_out) - self._files.keys())
        if missing:
            raise PackError(f"{root}: held_out names {_first(missing)}, which the folder does not hold.")
        self._held_out = frozenset(held_out)

    @cached_property
    def provenance(self) -> dict[str, object]:
        """What was asked for, and the digest of what the folder holds."""
        return {
            "source": "folder",
            "degradations": list(self._kinds),
            "held_out": sorted(self._held_out),
            "seed": self._seed,
            "variants": self._variants,
            "terms": _SYNTHETIC_TERMS,
            "content": digest_of(self.listings[0]),
        }

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """What the folder holds."""
        return (list_folder(self._root, self._files.values()),)

    def __len__(self) -> int:
        return sum(_pairs_of(self._kinds, self._draws(name)) for name in self._files)

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label."""
        return _counts(self._kinds, len(self._files) - len(self._held_out), self._variants)

    def __iter__(self) -> Iterator[Pair]:
        for name, path in self._files.items():
            split: Split = "test" if name in self._held_out else "train"
            yield from _synthetic_pairs(
                name,
                split,
                read_image(path),
                self._kinds,
                self._draws(name),
                self._seed,
                "folder",
                self._licence,
            )

    def _draws(self, name: str) -> int:
        return 1 if name in self._held_out else self._variants


class PairsSource:
    """Real pairs: two folders whose files have the same names, suffixes aside.

    `held_out` is the fraction of the test split, taken evenly over the sorted names; 0 trains on all, 1
    tests on all.
    """

    def __init__(
        self,
        degraded: Path,
        clean: Path,
        degradation: str,
        *,
        held_out: float = 0.0,
        licence: str = "not stated",
    ) -> None:
        if degradation not in DEGRADATIONS or degradation in SIGMA:
            raise PackError(f"degradation {degradation!r} has no pairs; use one of {', '.join(SYNTHETIC)}.")
        if not 0 <= held_out <= 1:
            raise PackError(f"held_out is {held_out}; it is a fraction between 0 and 1.")
        ours = {_stem(path, degraded): path for path in list_images(degraded)}
        theirs = {_stem(path, clean): path for path in list_images(clean)}
        alone = sorted(ours.keys() ^ theirs.keys())
        if alone:
            raise PackError(
                f"{degraded} and {clean}: {len(alone)} of {len(ours.keys() | theirs.keys())} images have no "
                f"partner of the same name: {_first(alone)}."
            )
        self._roots = degraded, clean
        self._files = [(name, ours[name], theirs[name]) for name in ours]
        self._degradation, self._held_out, self._licence = degradation, held_out, licence

    @cached_property
    def provenance(self) -> dict[str, object]:
        """What was asked for, and the digests of what the degraded and the clean folder hold."""
        return {
            "source": "pairs",
            "degradation": self._degradation,
            "held_out": self._held_out,
            "content": [digest_of(listing) for listing in self.listings],
        }

    @cached_property
    def listings(self) -> tuple[bytes, ...]:
        """What the degraded and the clean folder hold."""
        degraded, clean = self._roots
        return (
            list_folder(degraded, (ours for _, ours, _ in self._files)),
            list_folder(clean, (theirs for _, _, theirs in self._files)),
        )

    def __len__(self) -> int:
        return len(self._files)

    def training_counts(self) -> dict[str, int]:
        """Pairs of the training split by row label."""
        return {self._degradation: len(self._files) - int(len(self._files) * self._held_out)}

    def __iter__(self) -> Iterator[Pair]:
        for index, (name, degraded_path, clean_path) in enumerate(self._files):
            degraded, clean = read_image(degraded_path), read_image(clean_path)
            if degraded.shape != clean.shape:
                raise PackError(
                    f"{degraded_path}: {_size(degraded)} pixels, its partner {clean_path}: {_size(clean)}."
                )
            tested = int((index + 1) * self._held_out) > int(index * self._held_out)
            yield Pair(
                name,
                "test" if tested else "train",
                self._degradation,
                degraded,
                clean,
                "pairs",
                self._licence,
            )


def _kinds(degradations: Sequence[str]) -> tuple[str, ...]:
    """Row labels to make: `noise` once for all noise levels, then what must be synthesised."""
    unknown = [name for name in degradations if name not in DEGRADATIONS]
    if unknown or not degradations:
        raise PackError(f"degradations {unknown or 'none'}: use some of {', '.join(DEGRADATIONS)}.")
    noise = (NOISE,) if any(name in SIGMA for name in degradations) else ()
    return noise + tuple(name for name in SYNTHETIC if name in degradations)


def _pairs_of(kinds: tuple[str, ...], draws: int) -> int:
    return sum(1 if kind == NOISE else draws for kind in kinds)


def _counts(kinds: tuple[str, ...], images: int, draws: int) -> dict[str, int]:
    return {kind: images if kind == NOISE else images * draws for kind in kinds}


def _synthetic_pairs(
    name: str,
    split: Split,
    clean: Image,
    kinds: tuple[str, ...],
    draws: int,
    seed: int,
    source: str,
    licence: str,
) -> Iterator[Pair]:
    for kind in kinds:
        if kind == NOISE:
            yield Pair(name, split, NOISE, None, clean, source, licence)
            continue
        for draw in range(draws):
            id_ = f"{name}-{draw}" if draws > 1 else name
            yield Pair(id_, split, kind, degrade(clean, kind, seed, id_), clean, source, licence)


def _stem(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _size(image: Image) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
