"""The two forms of a manifest, tables and the archive of earlier versions, hold the same dataset under one digest."""

from __future__ import annotations

import errno
import gzip
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import manifest as manifests
from shards import manifest_check, manifest_parquet
from shards.cache import ShardCache
from shards.columns import Rows
from shards.dataset import Dataset
from shards.errors import ManifestError, MissingObjectError, ShardsError, StoreError
from shards.manifest import (
    POINTER,
    Manifest,
    ManifestRow,
    Member,
    Shard,
    archive_key,
    from_bytes,
    load_manifest,
    manifest_key,
    publish,
    table_key,
    to_bytes,
)
from shards.manifest_parquet import TABLES
from shards.store import LocalStore, checked
from shards.stream import TrainStream

SHARDS = (Shard("shards/ab.tar", 10_000, "ab"), Shard("shards/cd.tar", 20_000, "cd"))
TEXT = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0)


def as_json(manifest: Manifest) -> bytes:
    """Return the JSON as programs before the tables wrote it, on which digests of existing datasets rest."""
    members: dict[Member, int] = {}

    def index(member: Member | None) -> int | None:
        return None if member is None else members.setdefault(member, len(members))

    rows = [
        [row.id, row.split, row.degradation, index(row.degraded), index(row.clean), row.source]
        for row in manifest.rows
    ]
    originals = any(member.encoding == "original" for member in members)
    content = {
        "version": 2 if originals else 1,
        **{"name": manifest.name, "licences": manifest.licences, "provenance": manifest.provenance},
        "shards": [astuple(shard) for shard in manifest.shards],
        "members": [astuple(member) for member in members],
        "rows": rows,
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def publish_archive(store: LocalStore, manifest: Manifest) -> None:
    """Publish a manifest as programs before the tables did."""
    store.write(archive_key(manifest.digest), gzip.compress(as_json(manifest), mtime=0))
    store.write_pointer(POINTER, manifest.digest.encode())


def members() -> st.SearchStrategy[Member]:
    return st.builds(
        Member,
        shard=st.integers(0, 1),
        offset=st.integers(0, 5000),
        size=st.integers(0, 5000),
        crc32=st.integers(0, 2**32 - 1),
        encoding=st.sampled_from(["tiles-qoi", "original", 'a "new" one']),
        height=st.integers(1, 2**31),
        width=st.integers(1, 99),
    )


@st.composite
def contents(draw: st.DrawFn) -> Manifest:
    images = draw(st.lists(members(), min_size=1, max_size=6))
    rows: dict[tuple[str, str, str], ManifestRow] = {}
    for _ in range(draw(st.integers(0, 8))):
        degradation = draw(st.sampled_from(["noise", "rain", "häze"]))
        row = ManifestRow(
            draw(TEXT),
            draw(st.sampled_from(["train", "test"])),
            degradation,
            None if degradation == "noise" else draw(st.sampled_from(images)),
            draw(st.sampled_from(images)),
            draw(st.sampled_from(["a", 'b"\\', "ü"])),
        )
        rows.setdefault((row.split, row.degradation, row.id), row)
    return Manifest(
        draw(TEXT), SHARDS, tuple(rows.values()), {"a": draw(TEXT)}, {"tool": [1, 1.5, None, draw(TEXT)]}
    )


MANIFEST = Manifest(
    "tiny",
    SHARDS,
    (
        ManifestRow('a "quoted" id', "train", "noise", None, Member(0, 512, 9, 7, "tiles-qoi", 5, 6), "s"),
        ManifestRow(
            "b",
            "test",
            "rain",
            Member(1, 512, 9, 2**32 - 1, "original", 5, 6),
            Member(0, 512, 9, 7, "tiles-qoi", 5, 6),
            "s",
        ),
        ManifestRow(
            "c",
            "train",
            "rain",
            Member(1, 2048, 9, 8, "original", 5, 6),
            Member(1, 4096, 9, 9, "tiles-qoi", 5, 7),
            "t",
        ),
    ),
    {"s": "CC0"},
    {"seed": 3},
)


# --- one digest --------------------------------------------------------------------------------------------------


@given(contents())
def test_both_forms_hold_the_same_rows_under_the_same_digest(tmp_path_factory, manifest: Manifest):
    assert to_bytes(manifest) == as_json(manifest)
    tables, archive = (LocalStore(tmp_path_factory.mktemp(name)) for name in ("tables", "archive"))
    publish(tables, manifest)
    publish_archive(archive, manifest)
    for store in (tables, archive):
        for cache in (None, store.root / "cache", store.root / "cache"):
            found = load_manifest(store, cache=cache)
            assert found.digest == manifest.digest
            assert (found.rows, found.shards) == (manifest.rows, manifest.shards)
            assert (found.name, found.licences, found.provenance) == (
                manifest.name,
                manifest.licences,
                manifest.provenance,
            )
            assert to_bytes(found) == as_json(manifest)


def test_blocks_end_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for module in ("columns", "manifest_json", "manifest_parquet"):
        monkeypatch.setattr(f"shards.{module}.BLOCK", 2)
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    found = load_manifest(store)
    assert found.rows == MANIFEST.rows
    assert to_bytes(found) == as_json(MANIFEST)
    assert from_bytes(as_json(MANIFEST), "here").rows == MANIFEST.rows


def test_a_dataset_of_an_earlier_version_that_is_packed_again_is_the_one_that_is_there(tmp_path: Path):
    store = LocalStore(tmp_path)
    publish_archive(store, MANIFEST)
    before = store.list()
    publish(store, MANIFEST)
    assert store.list() == before


def test_the_stream_of_samples_is_the_same_from_both_forms(packed: tuple[str, Manifest], tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(packed[0], copy)
    shutil.rmtree(copy / "manifests")
    publish_archive(LocalStore(copy), packed[1])
    streams = [
        TrainStream(
            Dataset([uri], ShardCache(tmp_path / f"cache{number}", 1 << 30)),
            [("rain", 1), ("noise15", 2), ("haze", 1)],
            seed=5,
            crop_pixels=32,
            global_batch_size=4,
        )
        for number, uri in enumerate((packed[0], str(copy)))
    ]
    assert streams[0].dataset.digests == streams[1].dataset.digests == (packed[1].digest,)
    for ours, theirs in zip(*(stream.steps(0, 1, 0, 40) for stream in streams), strict=True):
        assert (ours.ids, ours.degradations) == (theirs.ids, theirs.degradations)
        assert ours.clean.equal(theirs.clean)
        assert ours.degraded.equal(theirs.degraded)


# --- tables of other programs ------------------------------------------------------------------------------------


def rewrite(store: LocalStore, table: str, change: Callable[[pa.Table], pa.Table], **options: object) -> None:
    path = store.path(table_key(MANIFEST.digest, table))
    pq.write_table(change(pq.read_table(path)), path, **options)


def test_another_writer_of_parquet_gives_the_same_dataset(tmp_path: Path):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    for table in TABLES:
        rewrite(store, table, lambda read: read, compression="snappy", row_group_size=1, version="1.0")
    rewrite(
        store, "images", lambda read: read.cast(pa.schema([
            (name, pa.int32() if kind == pa.int64() and name != "crc32" else kind)
            for name, kind in zip(read.schema.names, read.schema.types, strict=True)
        ]))
    )  # fmt: skip
    assert load_manifest(store).rows == MANIFEST.rows
    before = {key: store.read(key) for key in store.list()}
    publish(store, MANIFEST)
    assert {key: store.read(key) for key in store.list()} == before


@pytest.mark.parametrize("encoding", ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "PLAIN"])
def test_texts_may_have_any_encoding(tmp_path: Path, encoding: str):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    for table, columns in TABLES.items():
        texts = {name: encoding for name, kind in columns.items() if kind == "string"}
        rewrite(store, table, lambda read: read, use_dictionary=False, column_encoding=texts)
    assert load_manifest(store).rows == MANIFEST.rows


def test_tables_hold_no_list_of_values_that_are_hardly_repeated(tmp_path: Path):
    """It would double the bytes of a table, and the time to read it."""
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    for table, columns in TABLES.items():
        with pq.ParquetFile(store.path(table_key(MANIFEST.digest, table))) as file:
            group = file.metadata.row_group(0)
        found = {(c := group.column(n)).path_in_schema: c.encodings for n in range(group.num_columns)}
        assert found.keys() == columns.keys()
        for column, encodings in found.items():
            repeated = column in ("shard", "encoding", "height", "width", "split", "degradation", "source")
            assert ("RLE_DICTIONARY" in encodings) == repeated, column
            is_number = columns[column] == "int64"
            assert ("DELTA_BINARY_PACKED" in encodings) == (is_number and not repeated), column


def test_tables_that_a_killed_publication_left_are_used(tmp_path: Path):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    rewrite(store, "rows", lambda read: read, compression="snappy")  # as another pyarrow writes it
    store.delete(manifest_key(MANIFEST.digest))
    (tmp_path / POINTER).unlink()
    with pytest.raises(ManifestError, match="holds no manifest"):
        load_manifest(store)
    publish(store, MANIFEST)
    assert load_manifest(store) == MANIFEST


# --- the checksum of what was published --------------------------------------------------------------------------


def refuse(*_: object) -> str:
    raise AssertionError("the digest was computed")


def test_a_node_does_not_compute_the_digest_of_files_that_have_their_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    monkeypatch.setattr(manifests, "_digest_of", refuse)
    assert load_manifest(store, MANIFEST.digest, tmp_path / "cache").rows == MANIFEST.rows
    with pytest.raises(AssertionError, match="was computed"):
        load_manifest(store, MANIFEST.digest)


def rewrite_head(store: LocalStore, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = store.path(manifest_key(MANIFEST.digest))
    path.write_text(json.dumps(change(json.loads(path.read_bytes()))))


def without_checksum(head: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in head.items() if key != "checksum"}


@pytest.mark.parametrize("checksum", [None, 7, "", "0" * 64, ["x"]], ids=repr)
def test_a_manifest_without_its_checksum_is_compared_with_its_digest(tmp_path: Path, checksum: object):
    """Releases before the checksum wrote none, and another pyarrow writes tables of other bytes."""
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    rewrite_head(
        store, lambda head: {**without_checksum(head), **({"checksum": checksum} if checksum else {})}
    )
    assert load_manifest(store, cache=tmp_path / "cache") == MANIFEST
    rewrite(store, *DAMAGES["another offset"])
    with pytest.raises(ShardsError, match="does not match its digest"):
        load_manifest(store, cache=tmp_path / "other cache")


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"licences": {"s": "mine"}},
        {"provenance": {}},
        {"rows": 2},
        {"provenance": 7},
        {"licences": {"s": "\ud800"}},
    ],
    ids=str,
)
def test_a_change_of_the_json_file_is_found_on_a_node(tmp_path: Path, changes: dict[str, Any]):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    rewrite_head(store, lambda head: {**head, **changes})
    with pytest.raises(ShardsError, match=r"digest|damaged"):
        load_manifest(store, cache=tmp_path / "cache")


def test_the_files_of_another_dataset_under_this_digest_are_found_on_a_node(tmp_path: Path):
    store, other = LocalStore(tmp_path), replace(MANIFEST, name="other")
    for each in (MANIFEST, other):
        publish(store, each)
    for key in (manifest_key, *(partial(table_key, table=table) for table in TABLES)):
        shutil.copy(store.path(key(other.digest)), store.path(key(MANIFEST.digest)))
    with pytest.raises(ShardsError, match="does not match its digest"):
        load_manifest(store, MANIFEST.digest, tmp_path / "cache")


# --- what is refused ---------------------------------------------------------------------------------------------


def replaced(name: str, row: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        values[row] = value
        place = table.schema.get_field_index(name)
        return table.set_column(place, pa.field(name, table.schema.field(name).type), [values])

    return change


def retyped(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.schema.get_field_index(name), name, table.column(name).cast(kind)
    )


DAMAGES: dict[str, tuple[str, Callable[[pa.Table], pa.Table]]] = {
    "a row less": ("rows", lambda table: table.slice(1)),
    "rows in another order": ("rows", lambda table: table.take([2, 1, 0])),
    "a row twice": ("rows", lambda table: pa.concat_tables([table, table.slice(2)])),
    "an image less": ("images", lambda table: table.slice(1)),
    "no image": ("images", lambda table: table.slice(0, 0)),
    "no shard": ("shards", lambda table: table.slice(0, 0)),
    "another id": ("rows", replaced("id", 1, "x")),
    "no id": ("rows", replaced("id", 1, None)),
    "a split of another name": ("rows", replaced("split", 1, "valid")),
    "an image that is not listed": ("rows", replaced("clean", 1, 77)),
    "a number that stands for no image": ("rows", replaced("degraded", 1, 2**32 - 1)),
    "a negative image": ("rows", replaced("clean", 1, -1)),
    "a noisy image that is stored": ("rows", replaced("degraded", 0, 1)),
    "another offset": ("images", replaced("offset", 1, 513)),
    "an offset outside": ("images", replaced("offset", 1, 2**62)),
    "a negative offset": ("images", replaced("offset", 1, -(2**63))),
    "another checksum": ("images", replaced("crc32", 1, 6)),
    "a checksum of 33 bits": ("images", replaced("crc32", 1, 2**32)),
    "no height": ("images", replaced("height", 1, 0)),
    "no encoding": ("images", replaced("encoding", 1, None)),
    "a shard that is not listed": ("images", replaced("shard", 1, 9)),
    "a key outside": ("shards", replaced("key", 0, "../x.tar")),
    "a digest that is a path": ("shards", replaced("sha256", 0, "../../x")),
    "numbers with fractions": ("images", retyped("offset", pa.float64())),
    "numbers as texts": ("images", retyped("offset", pa.string())),
    "texts as bytes": ("rows", retyped("id", pa.binary())),
    "no column of sources": ("rows", lambda table: table.drop_columns(["source"])),
    "another table": ("rows", lambda table: pa.table({"a": [1]})),
}


CONSISTENT = {"rows in another order", "another id", "another offset", "another checksum", "a key outside"}
"""Damages that only the digest tells."""


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("believed", [False, True], ids=["digest", "content"])
def test_a_table_with_other_content_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, believed: bool
):
    """By its digest; and by the checks of its content alone where it must contradict itself."""
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    rewrite(store, *DAMAGES[damage])
    if believed:
        monkeypatch.setattr(manifests, "_digest_of", lambda *_: MANIFEST.digest)
    if believed and damage in CONSISTENT:
        load_manifest(store)
        return
    for cache in (None, tmp_path / "cache"):  # a checksum that was published with it must not be trusted
        with pytest.raises(ShardsError) as caught:
            load_manifest(store, cache=cache)
        assert str(tmp_path) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:-5],
        lambda data: data[: len(data) // 2],
        lambda data: b"<html>502</html>",
        # Of a value: what a damaged page says of its statistics is not read.
        lambda data: data[:56] + bytes([data[56] ^ 255]) + data[57:],
        lambda data: data[4:],
    ],
)
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, table: str, spoil: Callable[[bytes], bytes]):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    path = store.path(table_key(MANIFEST.digest, table))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ShardsError, match=f"{MANIFEST.digest}.*pack again"):
        load_manifest(store, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache" / "manifests").iterdir())


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_table_is_named(tmp_path: Path, table: str):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    store.delete(table_key(MANIFEST.digest, table))
    with pytest.raises(ManifestError, match=f"{table}.parquet.*Pack again"):
        load_manifest(store)


def test_a_form_of_a_later_version_is_refused(tmp_path: Path):
    store = LocalStore(tmp_path)
    publish(store, MANIFEST)
    path = store.path(manifest_key(MANIFEST.digest))
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "version": 4}))
    with pytest.raises(ManifestError, match="version 4; this program reads versions 1 to 3"):
        load_manifest(store)


LIMITS = {
    "MAX_BYTES": (manifests, 20),
    "MAX_PER_BYTE": (manifest_parquet, 0),
    "MAX_GROUP_BYTES": (manifest_parquet, 10),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_what_is_too_large_to_be_read_is_not_published(tmp_path: Path, limit: str):
    module, value = LIMITS[limit]
    store = LocalStore(tmp_path)
    with patch.object(module, limit, value), pytest.raises(ShardsError):
        publish(store, MANIFEST)
    assert store.list() == []


def test_more_rows_than_can_be_counted_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shards.columns.MAX_ROWS", 3)
    with pytest.raises(ManifestError, match=r"at most 2 rows.*several datasets"):
        publish(LocalStore(tmp_path), replace(MANIFEST, name="many"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "row",
    [
        replace(MANIFEST.rows[1], id="half \ud800"),
        replace(MANIFEST.rows[1], clean=replace(MANIFEST.rows[1].clean, height=-1)),
        replace(MANIFEST.rows[1], clean=replace(MANIFEST.rows[1].clean, offset=2**70)),
        replace(MANIFEST.rows[1], clean=replace(MANIFEST.rows[1].clean, shard=2)),
        replace(MANIFEST.rows[1], degradation="noise"),
        replace(MANIFEST.rows[1], split="valid"),
        MANIFEST.rows[0],
    ],
)
def test_rows_that_make_no_sense_are_not_published(tmp_path: Path, row: ManifestRow):
    store = LocalStore(tmp_path)
    with pytest.raises(ManifestError):
        publish(store, replace(MANIFEST, rows=(*MANIFEST.rows[:1], row)))
    assert store.list() == []


@given(st.lists(st.tuples(st.sampled_from(["rain", "haze"]), TEXT | st.text("ab", min_size=7, max_size=17))))
def test_a_sample_that_is_listed_twice_is_found_and_no_other(keys: list[tuple[str, str]]):
    clean = MANIFEST.rows[0].clean
    rows = tuple(ManifestRow(id_, "train", label, clean, clean, "s") for label, id_ in keys)
    found = list(manifest_check._repeated(Manifest("m", SHARDS, rows).columns))
    assert bool(found) == (len(set(keys)) < len(keys))


def test_equal_hashes_of_other_ids_are_no_repetition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(manifest_check, "_HASHED", 0)
    assert list(manifest_check._repeated(replace(MANIFEST, rows=MANIFEST.rows[1:]).columns)) == []


# --- the files of a node -----------------------------------------------------------------------------------------


class Counted(LocalStore):
    """A store that lists what was asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: list[str] = []

    def read(self, key: str) -> bytes:
        self.asked.append(key)
        return super().read(key)

    def exists(self, key: str) -> bool:
        self.asked.append(key)
        return super().exists(key)


@pytest.fixture
def published(tmp_path: Path) -> Counted:
    store = Counted(tmp_path / "store")
    publish(store, MANIFEST)
    store.asked.clear()
    return store


def test_a_node_reads_a_manifest_once(published: Counted, tmp_path: Path):
    for _ in range(3):
        assert load_manifest(published, MANIFEST.digest, tmp_path / "cache") == MANIFEST
    assert sorted(published.asked) == sorted(
        [manifest_key(MANIFEST.digest), *(table_key(MANIFEST.digest, table) for table in TABLES)]
    )


@pytest.mark.parametrize("name", ["rows.bin", "text.bin", "about.json"])
def test_a_file_of_the_node_that_changed_is_read_again(published: Counted, tmp_path: Path, name: str):
    load_manifest(published, MANIFEST.digest, tmp_path / "cache")
    path = tmp_path / "cache" / "manifests" / MANIFEST.digest / name
    path.write_bytes(path.read_bytes()[:-1])
    assert load_manifest(published, MANIFEST.digest, tmp_path / "cache").rows == MANIFEST.rows


def test_arrays_of_another_format_are_read_again(published: Counted, tmp_path: Path):
    with patch("shards.manifest_cache._FORMAT", [0, {}]):
        load_manifest(published, MANIFEST.digest, tmp_path / "cache")
    with patch("shards.manifest_cache.mapped", failing(TypeError("mapped"))):
        load_manifest(published, MANIFEST.digest, tmp_path / "cache")
    published.asked.clear()
    assert load_manifest(published, MANIFEST.digest, tmp_path / "cache") == MANIFEST
    assert published.asked == []


def test_a_folder_of_another_user_does_not_prevent_reading(published: Counted, tmp_path: Path):
    (tmp_path / "cache" / "manifests" / ".tmp-other").mkdir(parents=True)
    with patch("shards.manifest_cache.os.utime", failing(PermissionError(errno.EACCES, "no"))):
        load_manifest(published, MANIFEST.digest, tmp_path / "cache")
    stat = Path.stat

    def refused(path: Path, **how: bool) -> os.stat_result:
        if path.parent.name == ".tmp-other":
            raise PermissionError(errno.EACCES, "no")
        return stat(path, **how)

    with (
        patch.object(Path, "stat", refused),
        patch("shards.manifest_cache._stamps", side_effect=[PermissionError(errno.EACCES, "no"), {}, {}]),
    ):
        assert load_manifest(published, MANIFEST.digest, tmp_path / "cache").rows == MANIFEST.rows


def test_a_process_that_dies_while_it_reads_leaves_nothing_that_is_used(published: Counted, tmp_path: Path):
    with (
        patch("shards.manifest_cache._described", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        load_manifest(published, MANIFEST.digest, tmp_path / "cache")
    assert load_manifest(published, MANIFEST.digest, tmp_path / "cache").rows == MANIFEST.rows


def test_a_cache_that_cannot_be_written_is_one_clear_error(published: Counted, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="MIRAGE_CACHE"):
        load_manifest(published, cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize("full", ["temporary", "cache"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_of_this_machine_is_no_damage(
    published: Counted, tmp_path: Path, full: str, code: int, monkeypatch: pytest.MonkeyPatch
):
    def append(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("shards.columns.ColumnsWriter._append", append)
    cache = tmp_path / "cache" if full == "cache" else None
    with pytest.raises(StoreError, match=str(cache) if cache else "TMPDIR") as raised:
        load_manifest(published, cache=cache)
    assert "pack again" not in str(raised.value).lower()


def failing(error: BaseException) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "many"), PermissionError(errno.EACCES, "no"), pa.ArrowMemoryError("malloc")],
    ids=["files", "permission", "memory"],
)
def test_a_table_that_this_machine_cannot_read_is_no_damage(
    published: Counted, error: BaseException, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pyarrow.parquet.ParquetFile", failing(error))
    with pytest.raises(StoreError, match="parquet cannot be read") as raised:
        load_manifest(published)
    assert "pack again" not in str(raised.value).lower()


def test_a_disk_that_is_full_while_a_manifest_is_published_is_said(tmp_path: Path):
    for where in ("write_tables", "read_tables"):
        with (
            patch(f"shards.manifest.{where}", failing(OSError(errno.ENOSPC, "full"))),
            pytest.raises(ManifestError, match=r"TMPDIR") as raised,
        ):
            publish(LocalStore(tmp_path), MANIFEST)
        assert "othing was published" in str(raised.value)
        assert f"{tmp_path}" in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_refused_publication_names_the_dataset_and_not_a_temporary_folder(tmp_path: Path):
    wrong = replace(MANIFEST, rows=(replace(MANIFEST.rows[0], split="valid"), *MANIFEST.rows[1:]))
    with pytest.raises(ManifestError, match="nothing was published") as raised:
        publish(LocalStore(tmp_path / "store"), wrong)
    assert "shards-" not in str(raised.value)
    assert "Delete" not in str(raised.value)
    assert f"{tmp_path / 'store'}/manifests" in str(raised.value)


class GetObjectOnly(LocalStore):
    """A store that calls what is missing refused, as S3 does for those who may not list."""

    def read(self, key: str) -> bytes:
        try:
            return super().read(key)
        except MissingObjectError as error:
            raise StoreError(f"{key}: AccessDenied") from error


def test_an_archive_is_read_where_missing_objects_are_refused(tmp_path: Path):
    store = GetObjectOnly(tmp_path)
    with pytest.raises(StoreError, match=r"\.json: AccessDenied"):
        load_manifest(store, MANIFEST.digest)
    store.write(archive_key(MANIFEST.digest), gzip.compress(to_bytes(MANIFEST)))
    assert load_manifest(store, MANIFEST.digest) == MANIFEST


def test_a_manifest_goes_to_another_process_as_a_reference(published: Counted, tmp_path: Path):
    manifest = load_manifest(published, cache=tmp_path / "cache")
    sent = pickle.dumps(manifest)
    shutil.rmtree(tmp_path / "cache")  # the other process reads it again
    assert pickle.loads(sent).rows == MANIFEST.rows
    assert b"quoted" not in sent


def test_files_that_were_not_used_for_a_month_are_removed(published: Counted, tmp_path: Path):
    load_manifest(published, cache=tmp_path / "cache")
    other = replace(MANIFEST, name="other")
    publish(published, other)
    with patch("shards.manifest_cache.time.time", return_value=4e9):
        load_manifest(published, cache=tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "manifests").iterdir()] == [other.digest]


def test_rows_are_a_sequence():
    rows = from_bytes(as_json(MANIFEST), "here").rows
    assert isinstance(rows, Rows)
    assert rows[-1] == MANIFEST.rows[-1]
    assert rows[1:] == MANIFEST.rows[1:]
    assert rows[1:][1] == MANIFEST.rows[2]
    assert list(rows) == list(MANIFEST.rows)
    assert rows != MANIFEST.rows[:2]
    with pytest.raises(IndexError):
        rows[3]
    assert np.array_equal([len(rows[5:]), len(rows[:-1])], [0, 2])
