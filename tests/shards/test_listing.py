"""A packed dataset tells which raw files it was made from, each with its digest, wherever they lay."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from shards.errors import CorruptObjectError, PackError
from shards.listing import ListedFile, digest_of, list_files, listing_key, read_listing
from shards.manifest import Manifest
from shards.pack import pack
from shards.photographs import PHOTOGRAPHS
from shards.sources import FolderSource, PairsSource, PhotographSource
from shards.store import LocalStore, open_store


def test_a_dataset_lists_every_raw_file_with_its_digest(packed: tuple[str, Manifest], photographs: Path):
    uri, manifest = packed
    (digest,) = manifest.provenance["sources"]
    files = read_listing(open_store(uri), digest)
    expected = [
        ListedFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(photographs.iterdir())
    ]
    assert list(files) == expected
    assert manifest.provenance["content"] == digest  # what the source itself says of its content


def test_a_listing_names_the_files_of_both_sides_and_shows_which_changed(photographs: Path, tmp_path: Path):
    shutil.copytree(photographs, tmp_path / "rainy")
    shutil.copytree(photographs, tmp_path / "clean")
    (tmp_path / "rainy" / "coffee.png").write_bytes((photographs / "china.png").read_bytes())
    store = open_store(str(tmp_path / "store"))
    source = PairsSource(tmp_path, "rainy/{key}.png", "clean/{key}.png", "rain")
    (digest,) = pack(source, store, name="pairs").provenance["sources"]
    files = {file.name: file.sha256 for file in read_listing(store, digest)}
    names = sorted(path.name for path in photographs.iterdir())
    assert sorted(files) == [f"{side}/{name}" for side in ("clean", "rainy") for name in names]
    assert [name for name in names if files[f"rainy/{name}"] != files[f"clean/{name}"]] == ["coffee.png"]


def test_the_demo_lists_the_files_of_the_wheels():
    (listing,) = PhotographSource(["rain"], seed=0).listings
    assert listing.count(b"\n") == len(PHOTOGRAPHS)
    assert listing.startswith(b"matplotlib/mpl-data/sample_data/grace_hopper.jpg\0")


def test_names_may_hold_anything_a_file_system_takes(tmp_path: Path):
    names = ["a b.png", "line\nfeed.png", "ü.png", "raw-\udcff.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    listing = list_files({name: tmp_path / name for name in names})
    store = open_store(str(tmp_path / "store"))
    store.write(listing_key(digest_of(listing)), listing)
    assert sorted(file.name for file in read_listing(store, digest_of(listing))) == sorted(names)


def test_a_changed_listing_is_refused(photographs: Path, tmp_path: Path):
    store = open_store(str(tmp_path))
    manifest = pack(FolderSource(photographs, ["rain"]), store, name="cuts")
    (digest,) = manifest.provenance["sources"]
    path = tmp_path / listing_key(digest)
    path.write_bytes(path.read_bytes().replace(b"coffee", b"toffee"))
    with pytest.raises(CorruptObjectError, match="does not match its sha256"):
        read_listing(store, digest)


def test_a_file_name_that_is_not_utf8_is_named_before_anything_is_packed(photographs: Path, tmp_path: Path):
    picture = next(photographs.glob("*.png"))
    for side in ("degraded", "clean"):
        (tmp_path / side).mkdir()
        shutil.copy(picture, tmp_path / side / os.fsdecode(b"a\xff.png"))
    source = PairsSource(tmp_path, "degraded/{name}.png", "clean/{name}.png", "rain")
    store = LocalStore(tmp_path / "store")
    with pytest.raises(PackError, match=r"a\\udcff\.png' is not UTF-8\. Rename the file"):
        pack(source, store, name="p")
    assert store.list() == []
