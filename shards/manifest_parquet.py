"""The lists of a manifest as Parquet tables, written and read a row group at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from shards.columns import BLOCK, IMAGE, MAX_ROWS, NO_IMAGE, ROW, Columns, ColumnsWriter, Shards, blocks
from shards.errors import CorruptObjectError, StoreError
from shards.manifest_json import id_array
from shards.rows import Shard

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

MAX_PER_BYTE = 1000
"""Most rows of a table for each byte of its file; a forged file can claim any number of equal ones."""
MAX_GROUP_BYTES = 1 << 30
"""Most bytes of a row group once it is decompressed; texts that are packed as differences may grow beyond it."""
_FREED = 8 << 20
TABLES: dict[str, Mapping[str, str]] = {
    "shards": {"key": "string", "bytes": "int64", "sha256": "string"},
    "images": {
        **{"shard": "int64", "offset": "int64", "bytes": "int64", "crc32": "int64"},
        **{"encoding": "string", "height": "int64", "width": "int64"},
    },
    "rows": {
        **{"id": "string", "split": "string", "degradation": "string"},
        **{"degraded": "int64", "clean": "int64", "source": "string"},
    },
}
"""Columns of each table, and their types."""
_LABELS = ["encoding", "split", "degradation", "source"]
"""Columns of few different texts, which are read as numbers of texts."""
_REPEATED = [*_LABELS, "shard", "height", "width"]
"""Columns with few different values in a row group."""
_NUMBERS = {
    "shard": "shard",
    "offset": "offset",
    "bytes": "size",
    "crc32": "crc32",
    "height": "height",
    "width": "width",
}


def write_tables(columns: Columns, paths: Mapping[str, Path]) -> None:
    """Write each table to its file."""
    import pyarrow.parquet as pq

    makers = {"shards": _shard_batches, "images": _image_batches, "rows": _row_batches}
    for name, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, _schema(name), compression="zstd", **_encodings(name)) as writer:
            for batch in makers[name](columns):
                writer.write_batch(batch, row_group_size=BLOCK)


def read_tables(paths: Mapping[str, Path], folder: Path, where: Mapping[str, str]) -> Columns:
    """Return the lists, whose arrays are written into `folder`; `where` names each table in errors.

    Raises CorruptObjectError for what is not such a table, StoreError for one that this machine cannot read. An
    OSError is one of `folder`.
    """
    import pyarrow as pa

    for file in folder.glob("*.bin"):  # of an attempt before
        file.unlink()
    # The C library gives freed memory back to the system beyond twice the largest array that was freed. Without this
    # one, which is not touched, every block of a table faults its pages in again: a fifth of the time.
    np.empty(_FREED, np.uint8)
    writer = ColumnsWriter(folder)
    readers = {"shards": _read_shards, "images": _read_images, "rows": _read_rows}
    for name, path in paths.items():
        try:
            for batch in _explained(_batches(name, path), where[name]):
                readers[name](batch, writer)
        except (pa.ArrowException, ValueError, TypeError, KeyError, OverflowError) as error:
            text = " ".join(str(error).split())
            raise CorruptObjectError(
                f"{where[name]} is not the table {name!r} of a manifest ({text:.300}). Delete it and pack again."
            ) from error
    pa.default_memory_pool().release_unused()
    return writer.columns()


def _schema(name: str) -> pa.Schema:
    import pyarrow as pa

    nullable = {"degraded"}
    return pa.schema(
        [pa.field(column, kind, nullable=column in nullable) for column, kind in TABLES[name].items()]
    )


def _encodings(name: str) -> dict[str, Any]:
    """Return how columns are encoded: in half of the bytes and of the time to read that Parquet's defaults take."""
    repeated = [column for column in TABLES[name] if column in _REPEATED]
    numbers = [column for column, kind in TABLES[name].items() if kind == "int64" and column not in repeated]
    return {
        "use_dictionary": repeated or False,
        "column_encoding": dict.fromkeys(numbers, "DELTA_BINARY_PACKED"),
    }


def _explained(batches: Iterator[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches. Raises StoreError for a failure of this machine, ValueError for damaged bytes."""
    try:
        yield from batches
    except MemoryError as error:
        raise StoreError(f"{where} cannot be read: this machine has too little memory.") from error
    except OSError as error:
        if error.errno is None:  # of pyarrow, about the bytes
            raise ValueError(str(error)) from error
        raise StoreError(f"{where} cannot be read ({os.strerror(error.errno)}).") from error


def _batches(name: str, path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table; every value has the type of its column, and none is missing but `degraded`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = TABLES[name]
    labels = [column for column in _LABELS if column in kinds]
    with pq.ParquetFile(path) as file:
        metadata, held = file.metadata, path.stat().st_size
        rows = metadata.num_rows
        if rows > min(MAX_ROWS, MAX_PER_BYTE * held):
            raise ValueError(f"{rows:,} rows in {held:,} bytes")
        for group in range(file.num_row_groups):
            if (unpacked := metadata.row_group(group).total_byte_size) > MAX_GROUP_BYTES:
                raise ValueError(f"row group {group} has {unpacked:,} bytes, more than {MAX_GROUP_BYTES:,}")
        if set(kinds) - set(file.schema_arrow.names):
            raise ValueError(f"it has the columns {file.schema_arrow.names} instead of {list(kinds)}")
    with pq.ParquetFile(path, metadata=metadata, read_dictionary=_as_dictionaries(metadata, labels)) as file:
        found = 0
        for batch in filter(len, file.iter_batches(BLOCK, columns=list(kinds), use_threads=False)):
            found += len(batch)
            arrays = [_cast(batch.column(column), kind, column in labels) for column, kind in kinds.items()]
            yield pa.RecordBatch.from_arrays(arrays, list(kinds))
        if found != rows:
            raise ValueError(f"{found:,} rows instead of {rows:,}")


def _as_dictionaries(metadata: pq.FileMetaData, columns: Sequence[str]) -> list[str]:
    """Return the columns that pyarrow can read as dictionaries; texts that are packed as differences it cannot."""
    packed = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if any(encoding.startswith("DELTA") for encoding in column.encodings):
                packed.add(column.path_in_schema)
    return [column for column in columns if column not in packed]


def _cast(values: Any, kind: str, is_label: bool) -> Any:
    """Return a column as texts or numbers of 64 bits, a label as a dictionary. Numbers may have another width."""
    import pyarrow as pa

    values.validate(full=True)  # texts are UTF-8
    if pa.types.is_dictionary(values.type):
        texts = values.dictionary
        if is_label and _is_text(texts.type) and not texts.null_count and len(texts) <= len(values):
            return values
        values = values.dictionary_decode()
    is_text = _is_text(values.type)
    if is_text != (kind == "string") or not (is_text or pa.types.is_integer(values.type)):
        raise TypeError(f"a column of type {values.type} instead of {kind}")
    if is_label:
        return values.dictionary_encode()
    wanted = pa.large_string() if is_text else pa.int64()
    # A cast imports pyarrow.compute, which is slow.
    return values if values.type in (wanted, pa.string()) else values.cast(wanted)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _shard_batches(columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    shards = Shards(columns)
    for start in range(0, len(shards), BLOCK):
        listed = shards[start : start + BLOCK]
        yield pa.record_batch(
            [[s.key for s in listed], [s.size for s in listed], [s.sha256 for s in listed]],
            schema=_schema("shards"),
        )


def _image_batches(columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    encodings = pa.array(columns.encodings, pa.string())
    for block in blocks(columns.images):
        arrays = {name: pa.array(block[field].astype(np.int64)) for name, field in _NUMBERS.items()}
        arrays["encoding"] = encodings.take(pa.array(np.ascontiguousarray(block["encoding"])))
        yield pa.record_batch([arrays[name] for name in TABLES["images"]], schema=_schema("images"))


def _row_batches(columns: Columns) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    splits, degradations, sources = (
        pa.array(texts, pa.string())
        for texts in (
            [split for split, _ in columns.kinds],
            [degradation for _, degradation in columns.kinds],
            columns.sources,
        )
    )
    for block in blocks(columns.rows):
        kind = pa.array(np.ascontiguousarray(block["kind"]))
        absent = block["degraded"] == NO_IMAGE
        yield pa.record_batch(
            [
                id_array(columns, block).cast(pa.string()),
                splits.take(kind),
                degradations.take(kind),
                pa.array(block["degraded"].astype(np.int64), mask=absent),
                pa.array(block["clean"].astype(np.int64)),
                sources.take(pa.array(np.ascontiguousarray(block["source"]))),
            ],
            schema=_schema("rows"),
        )


def _read_shards(batch: pa.RecordBatch, writer: ColumnsWriter) -> None:
    writer.add_shards(map(Shard, *(_present(batch, name).to_pylist() for name in TABLES["shards"])))


def _read_images(batch: pa.RecordBatch, writer: ColumnsWriter) -> None:
    images = np.zeros(len(batch), IMAGE)
    for name, field in _NUMBERS.items():
        images[field] = _numbers(_present(batch, name), IMAGE[field])
    encoding = _present(batch, "encoding")
    images["encoding"] = np.from_dlpack(encoding.indices)
    writer.add_images(images, encoding.dictionary.to_pylist())


def _read_rows(batch: pa.RecordBatch, writer: ColumnsWriter) -> None:
    import pyarrow as pa

    rows = np.zeros(len(batch), ROW)
    ids = _present(batch, "id")
    _, offsets, text = ids.buffers()
    width = np.dtype(np.int32 if ids.type == pa.string() else np.int64)
    ends = np.frombuffer(offsets, width, len(ids) + 1, ids.offset * width.itemsize).astype(np.int64)
    data = np.frombuffer(text or b"", np.uint8)[ends[0] : ends[-1]]
    rows["id"], rows["id_bytes"] = writer.add_text(data, np.diff(ends))
    degraded = batch.column("degraded")
    is_there = _is_there(degraded)
    listed = np.frombuffer(degraded.buffers()[1], np.int64, len(degraded), degraded.offset * 8)
    numbers = _in_range(listed[is_there], ROW["degraded"])
    if (numbers == NO_IMAGE).any():
        raise OverflowError(f"image {NO_IMAGE}")
    rows["degraded"] = NO_IMAGE
    rows["degraded"][is_there] = numbers
    rows["clean"] = _numbers(_present(batch, "clean"), ROW["clean"])
    split, degradation, source = (_present(batch, name) for name in ("split", "degradation", "source"))
    labels = degradation.dictionary.to_pylist()
    pair = np.from_dlpack(split.indices).astype(np.int64) * len(labels) + np.from_dlpack(degradation.indices)
    ordered = np.sort(pair)  # `np.unique` with the numbers takes ten times as long
    pairs = ordered[np.diff(ordered, prepend=-1) > 0]
    rows["kind"] = np.searchsorted(pairs, pair)
    kinds = [(split.dictionary[n // len(labels)].as_py(), labels[n % len(labels)]) for n in pairs.tolist()]
    rows["source"] = np.from_dlpack(source.indices)
    writer.add_row_block(rows, kinds, source.dictionary.to_pylist())


def _present(batch: pa.RecordBatch, name: str) -> Any:
    column = batch.column(name)
    if column.null_count:
        raise ValueError(f"column {name!r} lacks {column.null_count} values")
    return column


def _is_there(column: Any) -> NDArray[np.bool_]:
    """Return which values of a column are not null."""
    if not column.null_count:
        return np.ones(len(column), bool)
    bits = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little")
    return bits[column.offset : column.offset + len(column)].astype(bool)


def _numbers(values: Any, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return whole numbers as an array of this type. Raises OverflowError."""
    return _in_range(np.from_dlpack(values), dtype)


def _in_range(numbers: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    limits = np.iinfo(dtype)
    if len(numbers) and (numbers.min() < limits.min or numbers.max() > limits.max):
        raise OverflowError(f"numbers from {numbers.min()} to {numbers.max()}")
    return numbers.astype(dtype)
