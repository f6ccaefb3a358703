"""Verification reads everything and names whatever is not as the manifest says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from shards.errors import CorruptObjectError, ManifestError, StoreError
from shards.manifest import (
    POINTER,
    Manifest,
    ManifestRow,
    Member,
    Shard,
    archive_key,
    load_manifest,
    publish,
)
from shards.pack import pack
from shards.processes import ProcessPool
from shards.sources import FolderSource
from shards.store import LocalStore, Store
from shards.verify import tar_problems, verify
from tests.claims import flip_byte


@pytest.fixture
def copied(packed: tuple[str, Manifest], tmp_path: Path) -> LocalStore:
    """A dataset that may be damaged."""
    shutil.copytree(packed[0], tmp_path / "copied")
    return LocalStore(tmp_path / "copied")


def test_a_whole_dataset_passes_on_every_kind_of_store(each_store: Store, source: FolderSource):
    manifest = pack(source, each_store, name="cuts", shard_bytes=100_000)
    found = verify(each_store, manifest, decode=True)
    images = {member for row in manifest.rows for member in (row.clean, row.degraded) if member}
    assert (found.shards, found.images) == (len(manifest.shards), len(images))
    assert found.bytes == sum(shard.size for shard in manifest.shards)


def test_processes_share_the_work_and_count_every_image(copied: LocalStore):
    manifest = load_manifest(copied)
    seen: list[int] = []
    found = verify(
        copied, manifest, runner=ProcessPool(2), on_progress=lambda done, total, id_: seen.append(done)
    )
    assert seen[-1] == found.images == len(seen)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-700]), r"has \d+ bytes instead of \d+"),
        (lambda path: flip_byte(path, 600), "does not match its sha256"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><html>502</html>"), "it is a web page"),
        (lambda path: path.unlink(), "is missing although the manifest lists it"),
    ],
)
def test_a_damaged_shard_is_named(copied: LocalStore, spoil, says: str):
    manifest = load_manifest(copied)
    victim = manifest.shards[1]
    spoil(copied.path(victim.key))
    with pytest.raises(CorruptObjectError, match=f"(?s){victim.key}.*{says}"):
        verify(copied, manifest)


def test_a_flipped_byte_is_traced_to_its_sample(copied: LocalStore):
    manifest = load_manifest(copied)
    row = next(row for row in manifest.rows if row.degraded is not None)
    flip_byte(copied.path(manifest.shards[row.degraded.shard].key), row.degraded.offset + 5)
    with pytest.raises(
        CorruptObjectError, match=f"sample '{row.id}' at byte {row.degraded.offset}: its checksum"
    ):
        verify(copied, manifest)


def test_all_that_is_damaged_is_counted(copied: LocalStore):
    manifest = load_manifest(copied)
    for shard in manifest.shards[:2]:
        copied.path(shard.key).unlink()
    with pytest.raises(CorruptObjectError, match="2 of its objects"):
        verify(copied, manifest)


def test_a_changed_listing_of_raw_files_is_told(copied: LocalStore):
    (key,) = copied.list("sources/")
    copied.path(key).write_bytes(b"x")
    with pytest.raises(CorruptObjectError, match=re.escape(key)):
        verify(copied, load_manifest(copied))


def forged(store: LocalStore, name: str, kind: bytes = tarfile.REGTYPE, *, listed: str = "a") -> Manifest:
    """A dataset whose checksums are right; its tar has a member of this name and lists a row with id `listed`."""
    data = b"innocent"
    row = {"id": listed, "split": "train", "degradation": "noise", "degraded": None, "source": "s"}
    about = json.dumps([{**row, "clean": "clean.tiles"}]).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(data) if kind == tarfile.REGTYPE else 0
        info.linkname = "/etc/passwd" if kind == tarfile.SYMTYPE else ""
        tar.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("a.json")
        info.size = len(about)
        tar.addfile(info, io.BytesIO(about))
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    store.write(f"shards/{digest}.tar", buffer.getvalue())
    member = Member(0, 512, len(data), zlib.crc32(data), "tiles-qoi", 1, 1)
    shard = Shard(f"shards/{digest}.tar", len(buffer.getvalue()), digest)
    manifest = Manifest("forged", (shard,), (ManifestRow("a", "train", "noise", None, member, "s"),))
    publish(store, manifest)
    return manifest


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/cron.d/job", tarfile.REGTYPE),
        ("../../.ssh/authorized_keys", tarfile.REGTYPE),
        ("a/../../b", tarfile.REGTYPE),
        ("a.clean.tiles", tarfile.SYMTYPE),
    ],
)
def test_names_that_leave_the_folder_are_refused_whatever_their_checksum(
    tmp_path: Path, name: str, kind: bytes
):
    store = LocalStore(tmp_path)
    manifest = forged(store, name, kind)
    with pytest.raises(CorruptObjectError, match=f"(?s){manifest.shards[0].key}.*{re.escape(name)}"):
        verify(store, manifest)


def test_a_forged_image_is_found_when_images_are_decoded(tmp_path: Path):
    store = LocalStore(tmp_path)
    manifest = forged(store, "a.clean.tiles")
    assert verify(store, manifest).images == 1  # its checksum is right
    with pytest.raises(CorruptObjectError, match=r"sample 'a' at byte 512.*tiled image"):
        verify(store, manifest, decode=True)


def test_rows_that_webdataset_does_not_find_are_reported(tmp_path: Path):
    store = LocalStore(tmp_path)
    manifest = forged(store, "a.clean.tiles", listed="b")
    with pytest.raises(
        CorruptObjectError, match="no WebDataset sample for 1 rows of the manifest, such as 'a'"
    ):
        verify(store, manifest)
    with pytest.raises(CorruptObjectError, match="other images for sample 'a' than the manifest lists"):
        verify(store, forged(store, "a.degraded.tiles"))  # the row's clean image is not in its sample
    with pytest.raises(CorruptObjectError, match="cannot be read by WebDataset"):
        verify(store, forged(store, "b.clean.tiles"))  # a sample that lists no rows


def test_an_offset_of_another_image_is_reported(copied: LocalStore):
    """The manifest's checksums are right for its offsets, and WebDataset reads other images under the same ids."""
    manifest = load_manifest(copied)
    first, second = (row for row in manifest.rows if row.degradation == "rain" and row.clean.shard == 0)
    swapped = {
        first: replace(first, degraded=second.degraded),
        second: replace(second, degraded=first.degraded),
    }
    wrong = replace(manifest, rows=tuple(swapped.get(row, row) for row in manifest.rows))
    with pytest.raises(
        CorruptObjectError, match=f"other images for sample '{first.id}' than the manifest lists"
    ):
        verify(copied, wrong)


def test_a_manifest_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = LocalStore(tmp_path)
    bomb = gzip.compress(b"0" * 3_000_000)
    monkeypatch.setattr("shards.manifest.MAX_BYTES", 1_000_000)
    store.write(archive_key("0" * 64), bomb)
    store.write_pointer(POINTER, b"0" * 64)
    with pytest.raises(ManifestError, match="decompresses to more than"):
        load_manifest(store)


def test_a_pointer_that_is_no_digest_is_refused(tmp_path: Path):
    store = LocalStore(tmp_path)
    store.write_pointer(POINTER, b"../../etc/passwd")
    with pytest.raises(ManifestError, match="points to"):
        load_manifest(store)


def test_a_shard_key_that_leaves_the_store_is_refused(tmp_path: Path):
    store = LocalStore(tmp_path)
    manifest = forged(store, "a.clean.tiles")
    outside = replace(manifest, shards=(replace(manifest.shards[0], key="../outside.tar"),))
    with pytest.raises(StoreError, match=r"without '\.\.'"):
        verify(store, outside)


@pytest.mark.parametrize("gap", [b"\xff" * 512, b"\0" * 512 + b"x" * 512, b"\0" * 1024, b"a" * 100])
def test_members_behind_a_header_that_cannot_be_read_are_found(tmp_path: Path, gap: bytes):
    """GNU tar goes on there, and would unpack them."""
    parts = []
    for name in ("a.txt", "../../evil"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        parts.append(buffer.getvalue()[:1024])
    (tmp_path / "whole.tar").write_bytes(parts[0] + b"\0" * 9216)
    assert list(tar_problems(tmp_path / "whole.tar")) == []
    (tmp_path / "hidden.tar").write_bytes(parts[0] + gap + parts[1] + b"\0" * 1024)
    (problem,) = tar_problems(tmp_path / "hidden.tar")
    assert "behind its end at byte 1024" in problem
