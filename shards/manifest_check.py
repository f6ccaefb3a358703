"""Check that a manifest is consistent, whoever wrote it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.columns import NO_IMAGE, Columns, Rows, Shards, blocks, id_text
from shards.errors import ManifestError
from shards.sample import NOISE

_HASHED = 512  # words of 8 bytes of an id that are hashed
_FIRST_BYTES = np.array([(1 << 8 * number) - 1 for number in range(9)], np.uint64)
"""Masks of the first bytes of a word, by their number."""


def check(head: Mapping[str, Any], columns: Columns, where: str) -> None:
    """Raise ManifestError unless the content of a manifest is consistent and every value has its type."""
    name, licences, provenance = head["name"], head["licences"], head["provenance"]
    texts = (name, *licences, *licences.values(), *columns.sources, *columns.encodings)
    if not _are_texts(*texts, *(text for kind in columns.kinds for text in kind)):
        raise ManifestError(f"{where}: the name, a licence, or a label of a row or an image is not text.")
    if not isinstance(provenance, dict):
        raise ManifestError(f"{where}: `provenance` is not an object.")
    if not _are_texts(json.dumps(provenance, ensure_ascii=False)):
        raise ManifestError(f"{where}: `provenance` holds half of a character pair.")
    for key, fits in _FACTS.items():
        if key in provenance and not fits(provenance[key]):
            raise ManifestError(f"{where}: `provenance` has a malformed value of {key!r}.")
    for shard in Shards(columns):
        if shard.size < 0:
            raise ManifestError(f"{where}: {shard} has a size below 0.")
        if re.fullmatch("[0-9a-f]+", shard.sha256) is None:  # it names a file of the cache
            raise ManifestError(
                f"{where}: shard {shard.key!r} has sha256 {shard.sha256!r}, which is not a digest."
            )
    for split, degradation in columns.kinds:
        if split not in ("train", "test"):
            row = columns.select(split, degradation).ids()[0]
            raise ManifestError(f"{where}: row {row!r} has split {split!r}, neither 'train' nor 'test'.")
    _check_rows(columns, where)
    _check_images(columns, where)
    for id_, degradation in _repeated(columns):
        raise ManifestError(f"{where}: sample {id_!r} ({degradation}) is listed twice.")


def _is_digests(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) for x in value
    )


def _is_psnr(value: object) -> bool:
    numbers = int | float | None
    return isinstance(value, dict) and all(
        isinstance(split, dict) and all(isinstance(x, numbers) for x in split.values())
        for split in value.values()
    )


def _is_missing(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(x, dict)
        and isinstance(x.get("what"), str)
        and isinstance(x.get("examples"), list)
        and all(isinstance(example, str) for example in x["examples"])
        for x in value
    )


_FACTS: dict[str, Callable[[object], bool]] = {
    "sources": _is_digests,
    "input_psnr": _is_psnr,
    "missing": _is_missing,
    "layouts": lambda value: isinstance(value, dict),
}
"""Keys of the provenance that programs read, and whether a value has the form that they expect."""


def _check_rows(columns: Columns, where: str) -> None:
    is_noise = np.array([degradation == NOISE for _, degradation in columns.kinds], bool)
    first = 0
    for block in blocks(columns.rows):
        lone = block["degraded"] == NO_IMAGE
        unknown = (block["clean"] >= len(columns.images)) | (
            ~lone & (block["degraded"] >= len(columns.images))
        )
        if unknown.any():
            id_ = _id(columns, first + int(unknown.argmax()))
            raise ManifestError(
                f"{where} is damaged: row {id_!r} has an image that is not listed. Pack again."
            )
        wrong = lone != is_noise[block["kind"]]
        if wrong.any():
            number = int(wrong.argmax())
            degradation = columns.kinds[block["kind"][number]][1]
            raise ManifestError(
                f"{where}: row {_id(columns, first + number)!r} ({degradation}) must have a degraded image unless it "
                "is noise."
            )
        first += len(block)


def _check_images(columns: Columns, where: str) -> None:
    sizes = np.ascontiguousarray(columns.shards["size"])
    first = 0
    for block in blocks(columns.images):
        rules = {
            "has a number below its minimum": (block["offset"] < 0)
            | (block["size"] < 0)
            | (block["height"] == 0)
            | (block["width"] == 0),
            "is in shard {shard}, which is not listed": block["shard"] >= len(sizes),
        }
        if not any(wrong.any() for wrong in rules.values()):
            rules["is outside its shard"] = block["offset"] > sizes[block["shard"]] - block["size"]
        for what, wrong in rules.items():
            if wrong.any():
                number = first + int(wrong.argmax())
                member = columns.member(number)
                raise ManifestError(
                    f"{where}: the image of {_user(columns, number)} {what.format(shard=member.shard)}: {member}."
                )
        first += len(block)


def _user(columns: Columns, image: int) -> str:
    """Return which row has an image, for messages."""
    first = 0
    for block in blocks(columns.rows):
        found = (block["clean"] == image) | (block["degraded"] == image)
        if found.any():
            return f"row {_id(columns, first + int(found.argmax()))!r}"
        first += len(block)
    return "no row"


def _id(columns: Columns, row: int) -> str:
    start, length = columns.row(row)[:2]
    return columns.string(start, length)


def _repeated(columns: Columns) -> Iterator[tuple[str, str]]:
    """Yield id and degradation of samples that were listed before, found by a hash of 64 bits with secret weights."""
    weights = np.random.default_rng().integers(0, 1 << 64, _HASHED + 3, np.uint64) | np.uint64(1)
    ordered = np.empty(len(columns.rows), np.uint64)
    for start, hashes in _hashes(columns, weights):
        ordered[start : start + len(hashes)] = hashes
    ordered.sort()
    suspects = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    seen: set[tuple[str, str, str]] = set()
    if len(suspects):
        for start, hashes in _hashes(columns, weights):
            numbers = np.flatnonzero(np.isin(hashes, suspects)) + start
            for row in Rows(columns, numbers.astype(np.uint32)):
                if (row.split, row.degradation, row.id) in seen:
                    yield row.id, row.degradation
                seen.add((row.split, row.degradation, row.id))


def _hashes(columns: Columns, weights: NDArray[np.uint64]) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield the number of a row, and of it and those that follow a hash.

    It is the sum of a kind and of the mixed words of an id, each with a weight of its place, modulo 2^64.
    """
    first = 0
    for block in blocks(columns.rows):
        text, lengths = id_text(columns, block)
        padded = np.concatenate([text, np.zeros(8, np.uint8)])
        words: NDArray[np.uint64] = np.ndarray(len(text) + 1, "<u8", padded, strides=(1,))  # at each byte
        found = (block["kind"] + lengths.astype(np.uint64)) * weights[0] + block["kind"] * weights[1]
        # Of the ids that have another word: their rows, where it begins, and the bytes that are left.
        rows: NDArray[np.int64] | slice = slice(None)
        starts, rest = np.cumsum(lengths) - lengths, lengths
        for weight in weights[3:]:
            more = rest > 0
            if not more.all():
                rows = np.flatnonzero(more) if isinstance(rows, slice) else rows[more]
                starts, rest = starts[more], rest[more]
            if not len(rest):
                break
            word = words[starts]
            if rest.min() < 8:
                word &= _FIRST_BYTES[np.minimum(rest, 8)]
            word ^= word >> np.uint64(32)
            word *= weights[2]
            word ^= word >> np.uint64(29)
            found[rows] += word * weight
            starts, rest = starts + 8, rest - 8
        yield first, found
        first += len(block)


def _are_texts(*values: object) -> bool:
    """Return whether all values are texts without lone surrogates."""
    return all(type(value) is str and (value.isascii() or _is_unicode(value)) for value in values)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
