"""Find the layout of a dataset from the files below a folder; names of the folders above do not matter.

Every layout of a part is tried at every depth. A layout with exactly the published number of pairs is chosen; if there
is none, the nearest one is chosen and its problems are reported.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import PackError
from shards.filesystem import files_below
from shards.images import SUFFIXES
from shards.problems import DataProblem
from shards.sources.image import matlab_shape
from shards.sources.layout import DatasetPart, FileLayout, MatlabLayout
from shards.sources.pattern import Pattern, as_one_form

_SUFFIXES = (*SUFFIXES, ".mat")


@dataclass(frozen=True)
class FileTree:
    """The image files below a folder, by relative path with `/`, sorted."""

    root: Path
    files: tuple[str, ...]

    @staticmethod
    def of(root: Path) -> FileTree:
        """List the image files below `root`, as `files_below` finds them. Raises PackError."""
        if not root.is_dir():
            raise PackError(f"{root}: there is no such folder.")
        found = sorted(files_below(root, _SUFFIXES))
        if not found:
            raise PackError(f"{root}: no image files ({', '.join(_SUFFIXES)}).")
        return FileTree(root, tuple(found))


@dataclass(frozen=True, slots=True)
class FilePair:
    """One pair of files, as paths relative to the root."""

    degraded: str | None
    clean: str
    fields: Mapping[str, str]
    index: int = 0
    """Index of the image in a MATLAB array."""

    @property
    def name(self) -> str:
        """Name of the degraded file, or of the clean one when there is no other."""
        return (self.degraded or self.clean).rpartition("/")[2]


@dataclass(frozen=True)
class LayoutMatch:
    """The files that one layout finds below one folder."""

    layout: FileLayout | MatlabLayout
    base: str
    """Folder relative to the root, with a final `/`; empty for the root itself."""
    pairs: tuple[FilePair, ...] = ()
    unmatched_degraded: tuple[str, ...] = ()
    """Degraded files without a clean one, each with the name that was looked for."""
    unmatched_clean: tuple[str, ...] = ()
    """Clean files without a degraded one."""
    surplus_clean: tuple[str, ...] = ()
    """Surplus clean files, each with the one that is used."""

    def files(self) -> Iterator[str]:
        """Yield the files of all pairs; those of a MATLAB array once for each image."""
        for entry in self.pairs:
            yield entry.clean
            if entry.degraded is not None:
                yield entry.degraded

    def orphans(self) -> tuple[DataProblem, ...]:
        """Return the problems of files with no partner, or with more than one."""
        kinds = (
            ("Degraded images without a clean one", "", self.unmatched_degraded),
            ("Clean images without a degraded one", "", self.unmatched_clean),
            ("Clean images that are there twice", "Keep one of each.", self.surplus_clean),
        )
        return tuple(
            DataProblem(f"{what} ({len(names):,}).", remedy, names) for what, remedy, names in kinds if names
        )


@dataclass
class _Files:
    """Files of one layout below one folder."""

    degraded: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    clean: list[tuple[str, dict[str, str]]] = field(default_factory=list)


def match_layout(layout: FileLayout, tree: FileTree, below: str | None = None) -> LayoutMatch | None:
    """Return the match below the folder `below`, by default below the folder with the most pairs."""
    return max(_matches(layout, tree, below), key=lambda found: len(found.pairs), default=None)


def find_part(
    part: DatasetPart, tree: FileTree, pairs: int | None, taken: Collection[str] = frozenset()
) -> LayoutMatch | None:
    """Return the match with `pairs` pairs, or else the nearest; files in `taken` belong to other parts.

    Raises PackError when several folders fit equally well.
    """
    candidates = [
        found
        for found in _candidates(part, tree)
        if found.pairs and not any(file in taken for file in found.files())
    ]
    for layout in part.layouts:
        exact = [f for f in candidates if f.layout is layout and len(f.pairs) == _expected(layout, pairs)]
        whole = [f for f in exact if not f.unmatched_degraded] or exact
        if len(whole) > 1:
            raise PackError(
                f"{part.name}: {len(whole)} folders below {tree.root} fit equally well: "
                f"{', '.join(f.base or '.' for f in whole[:5])}. Name the right one with --root."
            )
        if whole:
            return whole[0]
    return min(candidates, key=lambda f: _distance(len(f.pairs), _expected(f.layout, pairs)), default=None)


def absence_problem(part: DatasetPart, tree: FileTree) -> DataProblem:
    """Return the problem that a part was not found, with what is there instead."""
    for pattern, sentence in part.strangers:
        stranger = Pattern(pattern)
        for file in tree.files:
            if stranger.match_below(file) is not None:
                return DataProblem(f"{part.name} ({part.split}): {file} is of {sentence}")
    looked = "; ".join(layout.describe() for layout in part.layouts)
    there = ", ".join(tree.files[:3]) + (" ..." if len(tree.files) > 3 else "")
    return DataProblem(
        f"{part.name} ({part.split}) was not found below {tree.root}. At any depth, one of these was looked for: "
        f"{looked}. There are {len(tree.files)} files: {there}.",
        "Unpack the dataset there, or pack the other split alone with --split.",
    )


def _expected(layout: FileLayout | MatlabLayout, pairs: int | None) -> int | None:
    own = layout.pairs if isinstance(layout, FileLayout) else None
    return own if own is not None and pairs is not None else pairs


def _distance(found: int, expected: int | None) -> float:
    return -found if expected is None else abs(math.log(found / max(expected, 1)))


def _candidates(part: DatasetPart, tree: FileTree) -> list[LayoutMatch]:
    found: list[LayoutMatch] = []
    for layout in part.layouts:
        found += _matlab(layout, tree) if isinstance(layout, MatlabLayout) else _matches(layout, tree, None)
    return found


def _matches(layout: FileLayout, tree: FileTree, below: str | None) -> list[LayoutMatch]:
    by_base: dict[str, _Files] = {}
    for file in tree.files:
        for pattern, kind in ((layout.degraded_pattern, "degraded"), (layout.clean_pattern, "clean")):
            if pattern is None:
                continue
            name = as_one_form(file)
            hit = pattern.match_below(name) if below is None else _below(pattern, name, below)
            if hit is not None:
                getattr(by_base.setdefault(hit[0], _Files()), kind).append((file, hit[1]))
    return [_pair(layout, base, files) for base, files in by_base.items()]


def _below(pattern: Pattern, file: str, below: str) -> tuple[str, dict[str, str]] | None:
    fields = pattern.match(file.removeprefix(below)) if file.startswith(below) else None
    return None if fields is None else (below, fields)


def _pair(layout: FileLayout, base: str, files: _Files) -> LayoutMatch:
    cleans: dict[tuple[str, ...], str] = {}
    surplus_clean = []
    for file, fields in files.clean:
        key = tuple(fields[name] for name in layout.shared)
        if key in cleans:
            surplus_clean.append(f"{file} beside {cleans[key]}")
        cleans.setdefault(key, file)
    if layout.degraded_pattern is None:
        pairs = [FilePair(None, file, fields) for file, fields in files.clean]
        return LayoutMatch(layout, base, tuple(pairs))
    entries, unmatched, served = [], [], set()
    for file, fields in files.degraded:
        key = tuple(fields[name] for name in layout.shared)
        if key in cleans:
            served.add(key)
            entries.append(FilePair(file, cleans[key], fields))
        else:
            unmatched.append(f"{file} (looked for {base}{layout.clean_pattern.fill(fields)})")
    entries.sort(key=lambda entry: (entry.clean, entry.degraded))
    alone = tuple(file for key, file in cleans.items() if key not in served)
    return LayoutMatch(layout, base, tuple(entries), tuple(unmatched), alone, tuple(surplus_clean))


def _matlab(layout: MatlabLayout, tree: FileTree) -> list[LayoutMatch]:
    places: dict[str, dict[str, str]] = {}
    for file in tree.files:
        for text in (layout.degraded, layout.clean):
            hit = Pattern(text).match_below(file)
            if hit is not None:
                places.setdefault(hit[0], {})[text] = file
    found = []
    for base, files in places.items():
        if len(files) == 2:
            degraded, clean = files[layout.degraded], files[layout.clean]
            counts = (
                matlab_shape(tree.root / degraded, layout.degraded_variable)[0],
                matlab_shape(tree.root / clean, layout.clean_variable)[0],
            )
            entries = [FilePair(degraded, clean, {}, index) for index in range(min(counts))]
            unmatched = [f"{degraded}[{index}]" for index in range(counts[1], counts[0])]
            alone = [f"{clean}[{index}]" for index in range(counts[0], counts[1])]
            found.append(LayoutMatch(layout, base, tuple(entries), tuple(unmatched), tuple(alone)))
    return found
