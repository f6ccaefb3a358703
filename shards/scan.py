"""A look at every image of a source before it is packed: headers only, several at a time.

What cannot be packed is found here and told in one report, before any shard is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from shards import tiles
from shards.errors import PackError
from shards.images import read_bytes, read_header, read_samples
from shards.problems import DataProblem
from shards.progress import ProgressCallback
from shards.sample import NOISE
from shards.sources.image import SourceImage
from shards.sources.pair import Pair, Source

ENCODINGS = (*tiles.CODECS, "original")
"""`fast` and `compact` are lossless tiles, `original` is the bytes of the source files."""

JPEG = "JPEG"
_READERS = 8
_BYTES_PER_PIXEL = {"fast": 1.6, "compact": 1.1}  # of photographs, about; shards are planned with it


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of one image before it is read."""

    height: int
    width: int
    bytes: int
    """That it will take in a shard, about."""
    trouble: str = ""
    """Why it cannot be packed, with the file's name."""
    kind: str = ""
    """Which sort of trouble, for the report."""


@dataclass(frozen=True)
class SourceScan:
    """The pairs of a source that can be packed, and what is wrong with the others."""

    pairs: tuple[Pair, ...]
    looks: dict[SourceImage, ImageInfo]
    problems: tuple[DataProblem, ...]


_REMEDIES = {
    "cannot be read": "Replace the files or take them away.",
    "are not 8-bit grey or RGB": "Convert them, or keep all files as they are with --encoding original.",
    "have no source bytes": "They are cut, made or part of a larger file: use --encoding fast or compact.",
    "differ in size from their partner": "Replace them with the right ones.",
    "have another size than the dataset's": "These are not the dataset's files: download them again.",
}


def scan_source(
    source: Source, encoding: str, *, keep_jpeg: bool = True, on_progress: ProgressCallback | None = None
) -> SourceScan:
    """Look at every image that `source` names."""
    pairs = tuple(source)
    pictures = dict.fromkeys(picture for pair in pairs for picture in _pictures(pair))
    looks: dict[SourceImage, ImageInfo] = {}
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan_source") as readers:
        seen = readers.map(lambda picture: _look(picture, encoding, keep_jpeg), pictures)
        for picture, look in zip(pictures, seen, strict=True):
            looks[picture] = look
            if on_progress is not None:
                on_progress(len(looks), len(pictures), picture.name)
    troubles: dict[str, dict[str, None]] = {}
    kept = []
    for pair in pairs:
        told = list(_troubles(pair, looks))
        for kind, text in told:
            troubles.setdefault(kind, {})[text] = None
        if not told:
            kept.append(pair)
    problems = [
        DataProblem(f"Images that {kind} ({len(texts):,}).", _REMEDIES[kind], tuple(texts))
        for kind, texts in sorted(troubles.items())
    ]
    return SourceScan(tuple(kept), looks, (*source.problems, *problems))


def undecodable_images(known: SourceScan) -> list[DataProblem]:
    """Decode every image that looked well, so that a report that is due anyway names the truncated ones too."""
    pictures = dict.fromkeys(picture for pair in known.pairs for picture in _pictures(pair))
    files = [picture for picture in pictures if picture.file is not None]
    with ThreadPoolExecutor(_READERS, thread_name_prefix="scan_source") as readers:
        broken = tuple(text for text in readers.map(_decoding, files) if text)
    return [unreadable_problem("Images", broken)] if broken else []


def without_remedy(message: str) -> str:
    """What a message says of a file, without what to do: a report says that once for all."""
    head, end, _ = message.partition("). ")
    return head + end[:1]


def unreadable_problem(what: str, texts: tuple[str, ...]) -> DataProblem:
    """The finding for images whose headers are right and whose pixels are not."""
    return DataProblem(f"{what} that could not be read whole ({len(texts):,}).", "Replace the files.", texts)


def _decoding(picture: SourceImage) -> str:
    assert picture.file is not None
    try:
        if read_header(picture.file).plain:
            picture.pixels()
        else:
            read_samples(read_bytes(picture.file), picture.name)
    except PackError as error:
        return without_remedy(str(error))
    return ""


def check_pairs(pairs: Iterable[Pair]) -> None:
    """Raise PackError for pairs that no manifest can hold: whoever made the source has to mend it."""
    seen: set[tuple[str, str, str]] = set()
    for pair in pairs:
        if (pair.degraded is None) != (pair.degradation == NOISE):
            raise PackError(
                f"pair {pair.id!r}: only {NOISE!r} goes without a degraded image, not {pair.degradation!r}."
            )
        key = (pair.split, pair.degradation, pair.id)
        if key in seen:
            raise PackError(f"pair {pair.id!r} ({pair.degradation}) comes twice; names must be unique.")
        seen.add(key)


def _pictures(pair: Pair) -> list[SourceImage]:
    return [pair.clean] if pair.degraded is None else [pair.clean, pair.degraded]


def _look(picture: SourceImage, encoding: str, keep_jpeg: bool) -> ImageInfo:
    try:
        if picture.file is None:
            height, width = picture.size()
            if encoding == "original":
                return ImageInfo(height, width, 0, picture.name, "have no source bytes")
            return ImageInfo(height, width, int(height * width * _BYTES_PER_PIXEL[encoding]))
        header, size = read_header(picture.file), picture.file.stat().st_size
    except PackError as error:
        return ImageInfo(0, 0, 0, without_remedy(str(error)), "cannot be read")
    height, width = header.height, header.width
    if encoding == "original":
        return ImageInfo(height, width, size)
    if not header.plain:
        return ImageInfo(
            height, width, 0, f"{picture.name} (mode {header.mode})", "are not 8-bit grey or RGB"
        )
    kept = keep_jpeg and header.format == JPEG
    return ImageInfo(height, width, size if kept else int(height * width * _BYTES_PER_PIXEL[encoding]))


def _troubles(pair: Pair, looks: dict[SourceImage, ImageInfo]) -> Iterator[tuple[str, str]]:
    """Sorts of trouble with a pair, each with a text that names the image."""
    found = [(picture, looks[picture]) for picture in _pictures(pair)]
    broken = [look for _, look in found if look.trouble]
    for look in broken:
        yield look.kind, look.trouble
    if broken:
        return
    for picture, look in found:
        if pair.size is not None and (look.height, look.width) != pair.size:
            height, width = pair.size
            text = f"{picture.name} ({look.width} x {look.height}, not {width} x {height})"
            yield "have another size than the dataset's", text
            return
    (clean, ours), (other, theirs) = found[0], found[-1]
    if (ours.height, ours.width) != (theirs.height, theirs.width):
        text = f"{other.name} ({theirs.width} x {theirs.height}; {clean.name}: {ours.width} x {ours.height})"
        yield "differ in size from their partner", text
