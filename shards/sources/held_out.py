"""Choose the files of a user's own source that are kept for evaluation: by name, or by a field of their paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from shards.errors import PackError
from shards.images import SUFFIXES
from shards.sources.list_file import read_list
from shards.sources.pair import Split
from shards.sources.pattern import as_one_form

SPLIT = "split"
"""Name of the pattern field that divides pairs: `{split}/degraded/{key}.png`."""

_SETS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
    "eval": ("eval", "evaluation", "dev"),
}
"""Set of photographs -> what `{split}` is in small letters. All but the first are for evaluation."""
_SET_OF = {word: name for name, words in _SETS.items() for word in words}
_SHOWN = 5


def splits_of(words: Iterable[str]) -> dict[str, Split]:
    """Return the split of each value of the field `{split}`. Raises PackError for a value that names none."""
    found = sorted(set(words))
    unknown = [word for word in found if word.lower() not in _SET_OF]
    if unknown:
        raise PackError(
            f"{{split}} is {_listed(unknown)}, which names no split. It may be {', '.join(_SET_OF)}. Take only some of "
            "them with {split:train|test}, or give the field another name."
        )
    held_out = {_SET_OF[word.lower()]: word for word in found if _SET_OF[word.lower()] != "train"}
    if len(held_out) > 1:
        sets = [*held_out.values()]
        raise PackError(
            f"{{split}} is {_listed(sets)}: several sets for evaluation, and a dataset has one. Take one with "
            f"{{split:train|{sets[0]}}}, and pack the other as a dataset of its own."
        )
    return {word: "train" if _SET_OF[word.lower()] == "train" else "test" for word in found}


def named(names: Sequence[str], files: Mapping[str, str]) -> set[str]:
    """Return the values of `files` that `names` name. Raises PackError.

    `files` maps the paths of image files to what is held out with them. A name is a path, or the last part of one, with
    or without suffix; `@FILE` stands for the names in a text file, one in each line.
    """
    by_path: dict[str, set[str]] = {}
    by_name: dict[str, set[str]] = {}
    for file, value in files.items():
        path = _without_suffix(file)
        by_path.setdefault(path, set()).add(value)
        by_name.setdefault(path.rpartition("/")[2], set()).add(value)
    chosen, missing = set[str](), list[str]()
    for name in _expanded(names):
        path = _without_suffix(name)
        found = by_path.get(path) or by_name.get(path) or set()
        if len(found) > 1:
            raise PackError(f"held_out names {name}, which is {_listed(sorted(found))}. Name its folder too.")
        chosen |= found
        missing += [] if found else [name]
    if missing:
        raise PackError(f"held_out names {_listed(missing)}, which is not among the photographs.")
    return chosen


def spread(files: Iterable[str], share: float) -> set[str]:
    """Return this share of the files, evenly spread over their order."""
    return {file for i, file in enumerate(files) if int((i + 1) * share) > int(i * share)}


def _expanded(names: Sequence[str]) -> Iterable[str]:
    """Yield the names, with those of files in place of `@FILE`."""
    for name in names:
        if not name.startswith("@"):
            yield name
            continue
        _, listed = read_list(Path(name[1:]), f"held_out {name}")
        yield from listed


def _without_suffix(name: str) -> str:
    path = PurePosixPath(as_one_form(name).replace("\\", "/"))
    return (path.with_suffix("") if path.suffix.lower() in SUFFIXES else path).as_posix()


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
