"""Scan the headers of all images of a source before it is packed.

Images that cannot be packed are reported together before any shard is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

from shards import tiles
from shards.errors import PackError
from shards.file_records import FileRecords
from shards.images import ImageHeader, read_bytes, read_header, read_samples
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import NOISE
from shards.sources.image import SourceImage
from shards.sources.pair import Pair, Source

ENCODINGS = (*tiles.CODECS, "original")
"""`fast` and `compact` are lossless tiles, `original` keeps the bytes of the source files."""

Jpeg = Literal["crop", "keep", "tile"]
"""How to store JPEG files: cut into intervals that a crop reads, as they are, or as tiles."""

JPEG = "JPEG"
_KIND = "header-2"
"""Kind of the remembered headers; another number for each way to read or check them."""
_READERS = 8
_BYTES_PER_PIXEL = {"fast": 1.6, "compact": 1.1}  # rough average for photographs, to plan shards


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Facts about one image from its header."""

    height: int
    width: int
    bytes: int
    """Estimated bytes in a shard."""
    problem: str = ""
    """Reason why it cannot be packed, with the file's name; empty if it can."""
    kind: str = ""
    """Kind of the problem, a key of `_REMEDIES`."""


@dataclass(frozen=True)
class SourceScan:
    """The pairs of a source that can be packed, and the problems of the others."""

    pairs: tuple[Pair, ...]
    infos: dict[SourceImage, ImageInfo]
    problems: tuple[DataProblem, ...]


_REMEDIES = {
    "cannot be read": "Replace or remove the files.",
    "are not 8-bit grey or RGB": "Convert them, or keep all files as they are with --encoding original.",
    "have no source bytes": "They are cropped, computed or part of a larger file: use --encoding fast or compact.",
    "differ in size from their partner": "Replace them with the right ones.",
    "have another size than the dataset's": "They are not the dataset's files: download them again.",
}


def scan_source(
    source: Source,
    encoding: str,
    *,
    jpeg: Jpeg = "keep",
    on_progress: ProgressCallback | None = None,
    records: FileRecords | None = None,
) -> SourceScan:
    """Read the header of every image of `source` that `records` does not know, several at a time."""
    pairs = tuple(source)
    images = dict.fromkeys(image for pair in pairs for image in _images(pair))
    infos: dict[SourceImage, ImageInfo] = {}
    files = [image.file for image in images if image.file is not None]
    headers = (records or FileRecords()).recall(_KIND, files, _header, _parsed)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan") as readers:
        made = (image for image in images if image.file is None)
        computed = readers.map(lambda image: _computed_info(image, encoding), made)
        for image in images:
            infos[image] = (
                next(computed) if image.file is None else _file_info(image, next(headers), encoding, jpeg)
            )
            if on_progress is not None:
                on_progress(len(infos), len(images), image.name)
    problems_by_kind: dict[str, dict[str, None]] = {}
    kept = []
    for pair in pairs:
        found = list(_pair_problems(pair, infos))
        for kind, text in found:
            problems_by_kind.setdefault(kind, {})[text] = None
        if not found:
            kept.append(pair)
    problems = [
        DataProblem(f"Images that {kind} ({len(texts):,}).", _REMEDIES[kind], tuple(texts))
        for kind, texts in sorted(problems_by_kind.items())
    ]
    return SourceScan(tuple(kept), infos, (*source.problems, *problems))


def undecodable_images(known: SourceScan) -> list[DataProblem]:
    """Decode every image with a valid header; return the problem of those that cannot be decoded.

    Used when a report is needed anyway, so that it also names truncated files.
    """
    images = dict.fromkeys(image for pair in known.pairs for image in _images(pair))
    files = [image for image in images if image.file is not None]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan") as readers:
        broken = tuple(text for text in readers.map(_decoding_problem, files) if text)
    return [unreadable_problem("Images", broken)] if broken else []


def without_remedy(message: str) -> str:
    """Return a message about a file without its remedy, which a report states once."""
    head, end, _ = message.partition("). ")
    return head + end[:1]


def unreadable_problem(what: str, texts: tuple[str, ...]) -> DataProblem:
    """Return the problem of images whose headers are valid and whose pixels are not."""
    return DataProblem(f"{what} that could not be read whole ({len(texts):,}).", "Replace the files.", texts)


def _decoding_problem(image: SourceImage) -> str:
    """Return why an image cannot be decoded, or an empty text."""
    assert image.file is not None
    try:
        if read_header(image.file).plain:
            image.pixels()
        else:
            read_samples(read_bytes(image.file), image.name)
    except PackError as error:
        return without_remedy(str(error))
    return ""


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raise PackError for pairs that no manifest can hold; the source that yields them is wrong."""
    seen: set[tuple[str, str, str]] = set()
    for pair in pairs:
        if (pair.degraded is None) != (pair.degradation == NOISE):
            raise PackError(
                f"pair {pair.id!r}: only {NOISE!r} has no degraded image, not {pair.degradation!r}."
            )
        key = (pair.split, pair.degradation, pair.id)
        if key in seen:
            raise PackError(f"pair {pair.id!r} ({pair.degradation}) comes twice; ids must be unique.")
        seen.add(key)
        try:
            pair.id.encode()
        except UnicodeEncodeError as error:
            named = (pair.degraded or pair.clean).name
            raise PackError(
                f"pair {pair.id!r}: the name of its file {named!r} is not UTF-8. Rename the file."
            ) from error


def _images(pair: Pair) -> list[SourceImage]:
    return [pair.clean] if pair.degraded is None else [pair.clean, pair.degraded]


def _computed_info(image: SourceImage, encoding: str) -> ImageInfo:
    try:
        height, width = image.size()
    except PackError as error:
        return _unreadable(error)
    if encoding == "original":
        return ImageInfo(height, width, 0, image.name, "have no source bytes")
    return ImageInfo(height, width, int(height * width * _BYTES_PER_PIXEL[encoding]))


def _file_info(
    image: SourceImage, found: tuple[ImageHeader, int] | PackError, encoding: str, jpeg: Jpeg
) -> ImageInfo:
    if isinstance(found, PackError):
        return _unreadable(found)
    header, size = found
    height, width = header.height, header.width
    if encoding == "original":
        return ImageInfo(height, width, size)
    if not header.plain:
        return ImageInfo(height, width, 0, f"{image.name} (mode {header.mode})", "are not 8-bit grey or RGB")
    kept = jpeg != "tile" and header.format == JPEG
    return ImageInfo(height, width, size if kept else int(height * width * _BYTES_PER_PIXEL[encoding]))


def _unreadable(error: PackError) -> ImageInfo:
    return ImageInfo(0, 0, 0, without_remedy(str(error)), "cannot be read")


def _header(file: Path) -> str:
    """Return the header and the size of a file as JSON."""
    return json.dumps([*astuple(read_header(file)), file.stat().st_size])


def _parsed(fact: str) -> tuple[ImageHeader, int]:
    """Return what `_header` wrote down. Raises ValueError or TypeError for another text."""
    *fields, size = json.loads(fact)
    header = ImageHeader(*fields)
    if [type(one) for one in (*fields, size)] != [int, int, str, str, bool, int]:
        raise TypeError(fact)
    return header, size


def _pair_problems(pair: Pair, infos: dict[SourceImage, ImageInfo]) -> Iterator[tuple[str, str]]:
    """Yield the kinds of problems of a pair, each with a text that names the image."""
    found = [(image, infos[image]) for image in _images(pair)]
    broken = [info for _, info in found if info.problem]
    for info in broken:
        yield info.kind, info.problem
    if broken:
        return
    for image, info in found:
        if pair.size is not None and (info.height, info.width) != pair.size:
            height, width = pair.size
            text = f"{image.name} ({info.width} x {info.height}, not {width} x {height})"
            yield "have another size than the dataset's", text
            return
    (clean, ours), (other, theirs) = found[0], found[-1]
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        text = f"{other.name} ({theirs.width} x {theirs.height}; {clean.name}: {ours.width} x {ours.height})"
        yield "differ in size from their partner", text
