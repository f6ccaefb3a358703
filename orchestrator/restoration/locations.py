"""Which photographs INPUT stands for, and where each one's result goes.

An input is a file, a folder with all below it, a glob, or an object, prefix or glob of a bucket. Of folders and globs
those files are taken whose names end like an image's; a file that is named by itself is always taken.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath

from orchestrator.errors import PhotoError
from orchestrator.imaging.photos import SUFFIXES
from shards.store import Store, open_store

MARK = ".restored"
"""In the name of a result that stands beside its photograph: NAME.restored.EXT."""

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Place:
    """One object of a store: a file of a folder, or a key of a bucket."""

    folder: str
    """URI of the store: `s3://bucket[/prefix]` or an absolute folder."""
    key: str

    @property
    def store(self) -> Store:
        """The store, opened once per process."""
        return _opened(self.folder)

    @property
    def uri(self) -> str:
        """The whole name."""
        return f"{self.folder.rstrip('/')}/{self.key}"

    def __str__(self) -> str:
        """Return the name as a user would write it here."""
        if "://" in self.folder:
            return self.uri
        here = os.path.relpath(self.uri)
        return self.uri if here.startswith("..") else here

    @property
    def identity(self) -> str:
        """What two names of one file have in common: links are followed."""
        return self.uri if "://" in self.folder else os.path.realpath(self.uri)


_opened = lru_cache(maxsize=64)(open_store)


@dataclass(frozen=True, slots=True)
class Found:
    """A photograph among the inputs."""

    place: Place
    name: str
    """Its path below the input that it was found by."""


def find_photographs(inputs: Sequence[str], out: str | None) -> tuple[list[Found], list[str]]:
    """Return the photographs that the inputs stand for, in order and each once, and what is wrong with inputs.

    What lies below `out` is left out, and without `out` what is called NAME.restored.EXT: those are results.
    """
    found: dict[str, Found] = {}
    complaints = []
    for given in inputs:
        before = len(found)
        known = 0
        for photograph in _of_bucket(given) if given.startswith("s3://") else _of_folder(given):
            if _is_result(photograph, out):
                continue
            known += photograph.place.identity in found
            found.setdefault(photograph.place.identity, photograph)
        if len(found) == before and not known:
            complaints.append(f"{given}: {_nothing(given)}")
    return _told_apart(list(found.values())), complaints


def targets(found: Sequence[Found], out: str | None) -> list[Place]:
    """Return where each result goes: below the folder `out`, to the one file `out`, or beside its photograph.

    Raises PhotoError when a result would replace a photograph or `out` cannot be meant.
    """
    if out is None:
        places = [_beside(photograph.place) for photograph in found]
    elif _names_a_file(out):
        if len(found) > 1:
            raise PhotoError(f"-o {out} names a file, and there are {len(found)} photographs. Name a folder.")
        places = [_place(out)]
    else:
        places = [Place(_folder(out), photograph.name) for photograph in found]
    originals = {photograph.place.identity: photograph for photograph in found}
    for place in places:
        if place.identity in originals:
            raise PhotoError(f"{place}: is the photograph itself. Choose another place for the results.")
    return places


# ------------------------------------------------------------------------------------------------ inputs


def _of_folder(given: str) -> Iterator[Found]:
    path = Path(given).expanduser()
    if path.is_dir():
        yield from (Found(_place(str(file)), file.relative_to(path).as_posix()) for file in _below(path))
    elif path.exists():
        yield Found(_place(str(path)), path.name)
    elif _GLOB.search(given):
        base = Path(_fixed(str(path)))
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        for file in matches:
            if file.is_file() and _is_image(file.name):
                yield Found(_place(str(file)), file.relative_to(base).as_posix())


def _below(folder: Path) -> Iterator[Path]:
    """Yield the image files below a folder, sorted; hidden files and folders are left alone."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(files) if _is_image(name))


def _of_bucket(given: str) -> Iterator[Found]:
    name, _, path = given.removeprefix("s3://").partition("/")
    bucket, path = f"s3://{name}", path.strip("/")
    pattern = _as_regex(path) if _GLOB.search(path) else None
    base = _fixed(path) if pattern else path
    for key in _opened(bucket).list(base):
        name = key.removeprefix(base).lstrip("/")
        if key == path:
            yield Found(Place(bucket, key), PurePosixPath(key).name)
        elif pattern is not None:
            if pattern.fullmatch(key) and _is_image(key):
                yield Found(Place(bucket, key), name)
        elif (not base or key.startswith(f"{base}/")) and _is_image(name):
            yield Found(Place(bucket, key), name)


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)


def _is_result(photograph: Found, out: str | None) -> bool:
    """Whether a search has come upon results: those of a folder OUT that lies below the input itself."""
    if out is None:
        return PurePosixPath(photograph.place.key).stem.endswith(MARK)
    if _names_a_file(out):
        return False
    results = f"{_folder(out)}/" if "://" in out else f"{os.path.realpath(_folder(out))}/"
    base = photograph.place.uri[: -len(photograph.name)]
    base = base if "://" in base else f"{os.path.realpath(base).rstrip('/')}/"
    return photograph.place.identity.startswith(results) and results.startswith(base) and results != base


def _nothing(given: str) -> str:
    if given.startswith("s3://") or _GLOB.search(given):
        return "matches no photograph."
    if Path(given).expanduser().is_dir():
        return f"holds no photograph that is not a result already. Looked for {', '.join(SUFFIXES)}."
    return "no such file or folder."


def _fixed(pattern: str) -> str:
    """Return the folder part of a glob before its first wildcard, with the slash."""
    found = _GLOB.search(pattern)
    return pattern[: pattern.rfind("/", 0, found.start() if found else None) + 1]


def _as_regex(pattern: str) -> re.Pattern[str]:
    """Return a glob as a regular expression: `*` and `?` stop at a slash, `**/` is any depth."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(p) or (p if p.startswith("[") else re.escape(p)) for p in pieces))


def _told_apart(found: list[Found]) -> list[Found]:
    """Rename all by their paths below the deepest common folder where two would have one name."""
    names = Counter(photograph.name for photograph in found)
    if all(count == 1 for count in names.values()):
        return found
    paths = [photograph.place.uri.replace("://", "/").split("/") for photograph in found]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths), strict=False))
    depth = len(list(same))
    return [Found(p.place, "/".join(path[depth:])) for p, path in zip(found, paths, strict=True)]


# ----------------------------------------------------------------------------------------------- outputs


def _names_a_file(out: str) -> bool:
    if out.endswith("/") or ("://" not in out and Path(out).expanduser().is_dir()):
        return False
    suffix = PurePosixPath(out).suffix.lower()
    if suffix in SUFFIXES:
        return True
    if suffix in {".heic", ".gif", ".avif", ".jxl", ".pdf", ".raw"}:
        raise PhotoError(f"-o {out}: a result ends in one of {', '.join(SUFFIXES)}; a folder ends in /.")
    return False


def _folder(out: str) -> str:
    return out.rstrip("/") if "://" in out else str(Path(out).expanduser().absolute())


def _beside(place: Place) -> Place:
    folder, name = os.path.split(place.key)
    stem, suffix = os.path.splitext(name)
    return Place(f"{place.folder}/{folder}".rstrip("/"), f"{stem}{MARK}{suffix}")


def _place(name: str) -> Place:
    if "://" in name:
        folder, _, key = name.rpartition("/")
        return Place(folder, key)
    path = Path(name).expanduser().absolute()
    return Place(str(path.parent), path.name)


def folders(places: Iterable[Place]) -> list[str]:
    """Return the stores that places lie in, each once, in order."""
    return list(dict.fromkeys(place.folder for place in places))
