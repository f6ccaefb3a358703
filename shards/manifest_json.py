"""The manifest as canonical JSON, whose sha256 is the identity of a dataset.

Datasets were published in this form before their manifests became Parquet tables, and the digest is of this form
whatever is stored. It is made block by block, so that no manifest is too large for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.columns import BLOCK, IMAGE, NO_IMAGE, ROW, Columns, ColumnsWriter, Shards, blocks, id_text
from shards.rows import ORIGINAL, Shard


def version_of(columns: Columns) -> int:
    """Return the lowest version of the format that can represent the content."""
    return 2 if ORIGINAL in columns.encodings else 1


def canonical(
    name: str, licences: Mapping[str, str], provenance: Mapping[str, Any], columns: Columns
) -> Iterator[bytes | memoryview]:
    """Yield the JSON in pieces: keys sorted, no spaces, in UTF-8."""
    yield b'{"licences":' + dumps(licences) + b',"members":['
    yield from _separated(_image_texts(columns, block) for block in blocks(columns.images))
    yield b'],"name":' + dumps(name) + b',"provenance":' + dumps(provenance) + b',"rows":['
    kinds = [dumps(kind)[1:-1].decode() for kind in columns.kinds]
    sources = [dumps(source).decode() for source in columns.sources]
    yield from _separated(_row_texts(columns, block, kinds, sources) for block in blocks(columns.rows))
    yield b'],"shards":['
    shards = Shards(columns)
    for start in range(0, len(shards), BLOCK):
        listed = [[shard.key, shard.size, shard.sha256] for shard in shards[start : start + BLOCK]]
        yield (b"," if start else b"") + dumps(listed)[1:-1]
    yield b'],"version":' + dumps(version_of(columns)) + b"}"


def dumps(content: object) -> bytes:
    """Return a value as canonical JSON."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def parse_lists(content: Mapping[str, Any], folder: Path | None = None) -> Columns:
    """Return the lists of a parsed manifest, whose arrays are written into `folder`, or kept in memory.

    Raises ValueError, TypeError, KeyError, AttributeError or OverflowError.
    """
    writer = ColumnsWriter(folder)
    writer.add_shards(_shard(*listed) for listed in content["shards"])
    images, rows = content["members"], content["rows"]
    for start in range(0, len(images), BLOCK):
        numbers = dict(zip(_IMAGE_FIELDS, zip(*images[start : start + BLOCK], strict=True), strict=True))
        encodings = _texts(numbers.pop("encoding"))
        found = np.zeros(len(encodings), IMAGE)
        for name, values in numbers.items():
            found[name] = np.array(_integers(values), IMAGE[name])
        found["encoding"] = np.arange(len(encodings))
        writer.add_images(found, encodings)
    for start in range(0, len(rows), BLOCK):
        ids, splits, labels, degraded, clean, sources = zip(*rows[start : start + BLOCK], strict=True)
        added = np.zeros(len(ids), ROW)
        encoded = [text.encode() for text in _texts(ids)]
        added["id"], added["id_bytes"] = writer.add_text(
            b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded))
        )
        added["clean"] = np.array(_integers(clean), np.uint32)
        absent = np.array([number is None for number in degraded])
        added["degraded"] = np.array(_integers([0 if n is None else n for n in degraded]), np.uint32)
        if (added["degraded"] == NO_IMAGE).any():
            raise ValueError(f"a row names image {NO_IMAGE}")
        added["degraded"][absent] = NO_IMAGE
        added["kind"] = added["source"] = np.arange(len(ids))
        writer.add_row_block(added, list(zip(_texts(splits), _texts(labels), strict=True)), _texts(sources))
    return writer.columns()


_IMAGE_FIELDS = ("shard", "offset", "size", "crc32", "encoding", "height", "width")


def _shard(key: object, size: object, sha256: object) -> Shard:
    """Return a shard; the size may be negative, which is refused later."""
    (key_text, digest), (bytes_,) = _texts([key, sha256]), _integers([size])
    return Shard(key_text, bytes_, digest)


def _integers(values: Iterable[Any]) -> list[int]:
    found = list(values)
    if set(map(type, found)) - {int}:  # a boolean is none
        wrong = next(value for value in found if type(value) is not int)
        raise TypeError(f"{wrong!r:.80} is a value of a wrong type: a whole number belongs there")
    return found


def _texts(values: Iterable[Any]) -> list[str]:
    found = list(values)
    if set(map(type, found)) - {str}:
        wrong = next(value for value in found if type(value) is not str)
        raise TypeError(f"{wrong!r:.80} is a value of a wrong type: a text belongs there")
    return found


def _image_texts(columns: Columns, images: NDArray[Any]) -> Any:
    encodings = [dumps(encoding).decode() for encoding in columns.encodings]
    parts = {name: _number_texts(images[name], name != "offset") for name in _IMAGE_FIELDS}
    parts["encoding"] = _chosen(encodings, images["encoding"])
    return _joined(",[", *_with_commas(*parts.values()), "]")


def _row_texts(columns: Columns, rows: NDArray[Any], kinds: list[str], sources: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = id_array(columns, rows)
    text = np.frombuffer(ids.buffers()[2] or b"", np.uint8)
    if (text < ord(" ")).any() or (text == ord('"')).any() or (text == ord("\\")).any():  # JSON escapes them
        ids = pa.array([dumps(id_)[1:-1].decode() for id_ in ids.to_pylist()], pa.large_string())
    degraded = pc.replace_with_mask(
        pc.cast(pa.array(rows["degraded"]), pa.large_string()),
        pa.array(rows["degraded"] == NO_IMAGE),
        pa.scalar("null", pa.large_string()),
    )
    parts = _with_commas(
        _chosen(kinds, rows["kind"]), degraded, _number_texts(rows["clean"]), _chosen(sources, rows["source"])
    )
    return _joined(',["', ids, '",', *parts, "]")


def id_array(columns: Columns, rows: NDArray[Any]) -> Any:
    """Return the ids of rows of type ROW as an array of Arrow."""
    import pyarrow as pa

    text, lengths = id_text(columns, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text))]
    return pa.Array.from_buffers(pa.large_string(), len(rows), buffers)


def _number_texts(numbers: NDArray[Any], merge: bool = True) -> Any:
    """Return numbers as texts; one for all where they are equal, if that is wanted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if merge and (numbers == numbers[0]).all():
        return str(numbers[0])
    return pc.cast(pa.array(np.ascontiguousarray(numbers)), pa.large_string())


def _chosen(texts: list[str], numbers: NDArray[Any]) -> Any:
    import pyarrow as pa

    if (numbers == numbers[0]).all():
        return texts[numbers[0]]
    return pa.array(texts, pa.large_string()).take(pa.array(np.ascontiguousarray(numbers)))


def _with_commas(*parts: Any) -> list[Any]:
    return [part for each in parts for part in (each, ",")][:-1]


def _joined(*parts: Any) -> Any:
    """Return the parts joined row by row; a text stands for a column of equal ones."""
    import pyarrow as pa
    import pyarrow.compute as pc

    merged: list[Any] = []
    for part in parts:
        if merged and isinstance(part, str) and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    scalars = [pa.scalar(part, pa.large_string()) if isinstance(part, str) else part for part in merged]
    return pc.binary_join_element_wise(*scalars, pa.scalar("", pa.large_string()))


def _separated(pieces: Iterator[Any]) -> Iterator[memoryview]:
    """Yield the bytes of arrays of texts, each of which begins with a comma, without the first comma."""
    for number, texts in enumerate(pieces):
        yield memoryview(texts.buffers()[2])[number == 0 : texts.buffers()[2].size]
