"""Manifests: published last, named by their content, refused when they are not what they claim."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import CorruptObjectError, ManifestError
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
from shards.store import LocalStore, Store

SHARD = Shard("shards/ab.tar", 10_000, "ab")
CLEAN = Member(0, 512, 100, 7, "tiles-qoi", 97, 130)
HARMED = Member(0, 1536, 100, 8, "tiles-qoi", 97, 130)
ROWS = (
    ManifestRow("häuser", "train", "noise", None, CLEAN, "photographs"),
    ManifestRow("häuser", "train", "rain", HARMED, CLEAN, "photographs"),
    ManifestRow("cat", "test", "rain", HARMED, CLEAN, "photographs"),
)
MANIFEST = Manifest("tiny", (SHARD,), ROWS, {"photographs": "CC0"}, {"seed": 3})


def test_what_is_published_is_loaded(store: Store):
    publish(store, MANIFEST)
    publish(store, MANIFEST)
    assert load_manifest(store) == MANIFEST
    assert load_manifest(store, MANIFEST.digest) == MANIFEST
    tables = [table_key(MANIFEST.digest, table) for table in TABLES]
    assert store.list() == [POINTER, *sorted([*tables, manifest_key(MANIFEST.digest)])]


def test_publishing_again_moves_the_pointer_and_keeps_the_old_manifest(store: Store):
    publish(store, MANIFEST)
    newer = replace(MANIFEST, name="newer")
    publish(store, newer)
    assert load_manifest(store) == newer
    assert load_manifest(store, MANIFEST.digest) == MANIFEST


def test_rows_are_counted_by_split_and_degradation():
    assert MANIFEST.counts() == {"train": {"noise": 1, "rain": 1}, "test": {"rain": 1}}


def test_a_shared_clean_image_is_listed_once():
    assert len(json.loads(to_bytes(MANIFEST))["members"]) == 2


def test_the_digest_is_of_the_content_alone():
    assert MANIFEST.digest == from_bytes(to_bytes(MANIFEST), "x").digest
    assert MANIFEST.digest != replace(MANIFEST, provenance={"seed": 4}).digest


def test_a_store_without_a_manifest_says_so(store: Store):
    with pytest.raises(ManifestError, match="holds no manifest"):
        load_manifest(store)


def test_a_pointer_to_nothing_is_said(store: Store):
    store.write_pointer(POINTER, b"0" * 64)
    with pytest.raises(ManifestError, match="missing although the pointer names it"):
        load_manifest(store)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: packed[:-9],
        lambda packed: b"<html>502 Bad Gateway</html>",
        lambda packed: gzip.compress(to_bytes(replace(MANIFEST, name="forged"))),
        lambda packed: packed[:40] + bytes([packed[40] ^ 1]) + packed[41:],
    ],
)
def test_a_damaged_archive_is_refused(tmp_path: Path, damage):
    store = LocalStore(tmp_path)
    packed = gzip.compress(to_bytes(MANIFEST))
    store.write(archive_key(MANIFEST.digest), damage(packed))
    store.write_pointer(POINTER, MANIFEST.digest.encode())
    with pytest.raises(CorruptObjectError, match=MANIFEST.digest):
        load_manifest(store)


def altered(**changes: object) -> bytes:
    return json.dumps({**json.loads(to_bytes(MANIFEST)), **changes}).encode()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (altered(version=3), "version 3.*reads versions 1 to 2"),
        (b"[]", "not a manifest"),
        (b"{}", "not a manifest"),
        (altered(rows=[["a", "train", "noise", None, 9, "x"]]), "damaged"),
        (altered(rows=[["a", "valid", "noise", None, 0, "x"]]), "split 'valid'"),
        (altered(rows=[["a", "train", "rain", None, 0, "x"]]), "'a' \\(rain\\)"),
        (altered(rows=[["a", "train", "noise", None, 0, "x"]] * 2), "listed twice"),
        (altered(shards=[["shards/ab.tar", 10_000, "../../ab"]]), "sha256 '../../ab'"),
        (altered(members=[[5, 0, 1, 0, "tiles-qoi", 1, 1]] * 2), "shard 5"),
        (altered(members=[[0, 9_999, 2, 0, "tiles-qoi", 1, 1]] * 2), "outside"),
        (altered(provenance={"sources": 5}), "'sources'"),
        (altered(provenance={"sources": ["../x"]}), "'sources'"),
        (altered(provenance={"input_psnr": {"test": {"rain": "9"}}}), "'input_psnr'"),
        (altered(provenance={"missing": [{"what": "x", "examples": 1}]}), "'missing'"),
        (altered(provenance={"layouts": []}), "'layouts'"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(data: bytes, says: str):
    with pytest.raises(ManifestError, match=says):
        from_bytes(data, "here")
