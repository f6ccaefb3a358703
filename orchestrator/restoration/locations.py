"""Find the photographs that inputs name, and the location of each result.

An input is a file, a folder with everything below it, a glob, or an object, prefix or glob of a bucket. Folders and
globs yield the files with an image's suffix; a file that is named itself is always used.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath

from orchestrator.errors import PhotoError
from orchestrator.imaging.formats import PICTURE_SUFFIXES, READ_SUFFIXES, SUFFIXES
from shards.errors import PathError
from shards.filesystem import expand_user, files_below
from shards.store import Store, open_store

RESULT_MARK = ".restored"
"""In the name of a result beside its photograph: NAME.restored.EXT."""

_WILDCARD = re.compile(r"[*?\[]")
MAX_NAME_BYTES = 255
"""Maximum length of a file's name in most file systems."""
_PICTURES = (*SUFFIXES, *PICTURE_SUFFIXES)


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """One object of a store: a file of a folder, or a key of a bucket."""

    folder: str
    """URI of the store: `s3://bucket[/prefix]` or an absolute folder."""
    key: str

    @property
    def store(self) -> Store:
        """The store, opened once per process."""
        return _open_cached(self.folder)

    @property
    def uri(self) -> str:
        """The full name."""
        return f"{self.folder.rstrip('/')}/{self.key}"

    def __str__(self) -> str:
        """Return the name as a user would type it in the working directory."""
        if "://" in self.folder:
            return self.uri
        relative = os.path.relpath(self.uri)
        return self.uri if relative.startswith("..") else relative

    @property
    def has_long_name(self) -> bool:
        """Whether most file systems refuse the name as too long."""
        return "://" not in self.folder and len(os.fsencode(os.path.basename(self.key))) > MAX_NAME_BYTES

    @property
    def identity(self) -> str:
        """The full name with links resolved: equal for two names of one file."""
        return self.uri if "://" in self.folder else os.path.realpath(self.uri)


_open_cached = lru_cache(maxsize=64)(open_store)


@dataclass(frozen=True, slots=True)
class InputPhoto:
    """A photograph that an input names."""

    location: ObjectLocation
    name: str
    """Path below the input."""
    is_read: bool = True
    """Whether its format is read, as far as its name says. What an input itself names is always tried."""


@dataclass(frozen=True, slots=True)
class FoundPhotos:
    """What inputs name."""

    photos: list[InputPhoto]
    """Each photograph once."""
    problems: list[str]
    """Why an input has no photograph."""
    others: list[ObjectLocation]
    """Pictures in folders and buckets whose formats are not read."""


def find_photographs(inputs: Sequence[str], out: str | None) -> FoundPhotos:
    """Return the photographs that the inputs name, the problems of inputs without any, and other pictures.

    Results are excluded: what lies below `out` or, without `out`, is named NAME.restored.EXT.
    """
    found: dict[str, InputPhoto] = {}
    others: dict[str, ObjectLocation] = {}
    problems = []
    for given in inputs:
        try:
            photos = list(_in_bucket(given) if given.startswith("s3://") else _in_folder(given))
        except PathError as error:
            problems.append(str(error))
            continue
        except OSError as error:  # for example a name that is too long
            problems.append(f"{given}: {error.strerror}.")
            continue
        before = len(found)
        duplicates = 0
        for photo in photos:
            if _is_result(photo, out):
                continue
            if not photo.is_read:
                others[photo.location.identity] = photo.location
                continue
            duplicates += photo.location.identity in found
            found.setdefault(photo.location.identity, photo)
        if len(found) == before and not duplicates:
            problems.append(f"{given}: {_why_empty(given)}")
    return FoundPhotos(_with_unique_names(list(found.values())), problems, list(others.values()))


def result_locations(photos: Sequence[InputPhoto], out: str | None) -> list[ObjectLocation]:
    """Return the location of each result: below the folder `out`, at the file `out`, or beside the photograph.

    Raises PhotoError if a result would replace a photograph, or `out` is one file for several photographs.
    """
    if out is None:
        locations = [_beside(photo.location) for photo in photos]
    elif _names_a_file(out):
        if len(photos) > 1:
            raise PhotoError(
                f"-o {out} names a file, and there are {len(photos)} photographs. Name a folder."
            )
        locations = [_location(out)] * len(photos)
    else:
        locations = [ObjectLocation(_folder(out), _as_written(photo.name)) for photo in photos]
    originals = {photo.location.identity for photo in photos}
    for location in locations:
        if location.identity in originals:
            raise PhotoError(
                f"{location}: is the photograph itself. Choose another location for the results."
            )
    for location, count in Counter(locations).items():
        if count > 1:
            raise PhotoError(f"{location}: is the result of {count} photographs. Rename one of them.")
    return locations


def _in_folder(given: str) -> Iterator[InputPhoto]:
    path = expand_user(given)
    if path.is_dir():
        for name in files_below(path, _PICTURES):
            yield InputPhoto(_location(str(path / name)), name, _is_read(name))
    elif path.exists():
        yield InputPhoto(_location(str(path)), path.name)
    elif _WILDCARD.search(given):
        base = Path(_glob_base(str(path)))
        for file in _matches(str(path), base):
            yield InputPhoto(_location(str(file)), file.relative_to(base).as_posix(), _is_read(file.name))


def _matches(pattern: str, base: Path) -> list[Path]:
    """Return the sorted image files that a glob matches; `**` goes where `files_below` goes."""
    if "**" in pattern:
        below = _as_regex(pattern.removeprefix(_glob_base(pattern)))
        return sorted(base / name for name in files_below(base, _PICTURES) if below.fullmatch(name))
    return sorted(
        path for path in map(Path, glob.glob(pattern)) if _is_image(path.name) and not path.is_dir()
    )


def _in_bucket(given: str) -> Iterator[InputPhoto]:
    name, _, path = given.removeprefix("s3://").partition("/")
    bucket, path = f"s3://{name}", path.strip("/")
    pattern = _as_regex(path) if _WILDCARD.search(path) else None
    base = _glob_base(path) if pattern else path
    if pattern is None and _is_image(path) and _open_cached(bucket).exists(path):
        yield InputPhoto(ObjectLocation(bucket, path), PurePosixPath(path).name)
        return  # one photograph needs no right to list the bucket
    for key in _open_cached(bucket).list(base):
        name = key.removeprefix(base).lstrip("/")
        if key == path:
            yield InputPhoto(ObjectLocation(bucket, key), PurePosixPath(key).name)
        elif pattern is not None:
            if pattern.fullmatch(key) and _is_image(key):
                yield InputPhoto(ObjectLocation(bucket, key), name, _is_read(key))
        elif (not base or key.startswith(f"{base}/")) and _is_image(name):
            yield InputPhoto(ObjectLocation(bucket, key), name, _is_read(key))


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in _PICTURES and not any(part.startswith(".") for part in path.parts)


def _is_read(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in READ_SUFFIXES


def _is_result(photo: InputPhoto, out: str | None) -> bool:
    """Return whether a file found in an input is a result, of a folder `out` that lies below this input."""
    if out is None:
        return PurePosixPath(photo.location.key).stem.endswith(RESULT_MARK)
    if _names_a_file(out):
        return False
    results = f"{_folder(out)}/" if "://" in out else f"{os.path.realpath(_folder(out))}/"
    base = photo.location.uri[: -len(photo.name)]
    base = base if "://" in base else f"{os.path.realpath(base).rstrip('/')}/"
    return photo.location.identity.startswith(results) and results.startswith(base) and results != base


def _why_empty(given: str) -> str:
    if given.startswith("s3://") or _WILDCARD.search(given):
        return "matches no photograph."
    if expand_user(given).is_dir():
        return f"has no photograph, apart from results. Suffixes of photographs: {', '.join(READ_SUFFIXES)}."
    return "no such file or folder."


def _glob_base(pattern: str) -> str:
    """Return the part of a glob up to the last slash before its first wildcard."""
    found = _WILDCARD.search(pattern)
    return pattern[: pattern.rfind("/", 0, found.start() if found else None) + 1]


def _as_regex(pattern: str) -> re.Pattern[str]:
    """Return a glob as a regular expression: `*` and `?` do not match a slash, `**/` matches any depth."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(p) or (p if p.startswith("[") else re.escape(p)) for p in pieces))


def _with_unique_names(photos: list[InputPhoto]) -> list[InputPhoto]:
    """Return the photographs; if two have one name, all named by their paths below the deepest common folder."""
    names = Counter(photo.name for photo in photos)
    if all(count == 1 for count in names.values()):
        return photos
    paths = [photo.location.uri.replace("://", "/").split("/") for photo in photos]
    same = takewhile(lambda parts: len(set(parts)) == 1, zip(*(path[:-1] for path in paths), strict=False))
    depth = len(list(same))
    return [InputPhoto(p.location, "/".join(path[depth:])) for p, path in zip(photos, paths, strict=True)]


def _names_a_file(out: str) -> bool:
    if out.endswith("/") or ("://" not in out and expand_user(out).is_dir()):
        return False
    suffix = PurePosixPath(out).suffix.lower()
    if suffix in PICTURE_SUFFIXES:
        raise PhotoError(f"-o {out}: a result ends in one of {', '.join(SUFFIXES)}; a folder ends in /.")
    return suffix in SUFFIXES


def _folder(out: str) -> str:
    return out.rstrip("/") if "://" in out else str(expand_user(out).absolute())


def _as_written(name: str) -> str:
    """Return the name of a result: a.gif.png for a.gif, since a folder may have an a.png too."""
    suffix = PurePosixPath(name).suffix.lower()
    return f"{name}.png" if suffix in READ_SUFFIXES and suffix not in SUFFIXES else name


def _beside(location: ObjectLocation) -> ObjectLocation:
    folder, name = os.path.split(location.key)
    stem, suffix = os.path.splitext(_as_written(name))
    return ObjectLocation(f"{location.folder}/{folder}".rstrip("/"), f"{stem}{RESULT_MARK}{suffix}")


def _location(name: str) -> ObjectLocation:
    if "://" in name:
        folder, _, key = name.rpartition("/")
        return ObjectLocation(folder, key)
    path = expand_user(name).absolute()
    return ObjectLocation(str(path.parent), path.name)
