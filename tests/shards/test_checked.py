"""Objects with a digest: nothing damaged is used, and what was damaged on its way is read again."""

from __future__ import annotations

import gzip
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import manifest as manifests
from shards.errors import CorruptObjectError, ManifestError
from shards.listing import listing_key, read_listing
from shards.manifest import Manifest, Shard, archive_key, load_manifest
from shards.store import LocalStore, Store, checked
from shards.store.checked import download_named, read_named

CONTENT = b"the bytes of an object" * 9
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Wire(LocalStore):
    """A folder whose first `damaged` answers are changed by `damage` on their way."""

    def __init__(self, root: Path, damage: Callable[[bytes], bytes], damaged: int) -> None:
        super().__init__(root)
        self.damage, self.damaged, self.reconnects = damage, damaged, 0

    def read(self, key: str) -> bytes:
        return self._arrives(super().read(key))

    def download(self, key: str, path: Path) -> None:
        path.write_bytes(self._arrives(super().read(key)))

    def reconnect(self) -> None:
        self.reconnects += 1

    def _arrives(self, data: bytes) -> bytes:
        self.damaged -= 1
        return self.damage(data) if self.damaged >= 0 else data


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGES = {
    "a flipped bit": flipped,
    "a lost end": lambda data: data[:-8],
    "nothing": lambda _: b"",
    "a web page": lambda _: b"<html>Log in</html>",
}


def weights(store: Store, _: Path) -> object:
    return read_named(store, f"weights/{DIGEST}.safetensors")


def downloaded(store: Store, tmp_path: Path) -> object:
    download_named(store, f"weights/{DIGEST}.safetensors", tmp_path / "copy")
    return (tmp_path / "copy").read_bytes()


def manifest(store: Store, _: Path) -> object:
    return load_manifest(store)


def listing(store: Store, _: Path) -> object:
    return read_listing(store, DIGEST)


def pointer(store: Store, _: Path) -> object:
    return store.read_pointer("manifest")


READERS = [weights, downloaded, manifest, listing, pointer]


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)
    store = LocalStore(tmp_path / "store")
    store.write(f"weights/{DIGEST}.safetensors", CONTENT)
    store.write(listing_key(DIGEST), CONTENT)
    manifests.publish(store, Manifest("empty", (), ()))
    return store.root


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("read", READERS)
def test_what_is_damaged_on_its_way_is_read_again_over_a_new_connection(
    filled: Path, tmp_path: Path, read: Callable[[Store, Path], object], damage: Callable[[bytes], bytes]
):
    wire = Wire(filled, damage, damaged=checked.ATTEMPTS - 1)
    assert read(wire, tmp_path) == read(LocalStore(filled), tmp_path)
    assert wire.reconnects == checked.ATTEMPTS - 1


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("read", READERS)
def test_what_stays_damaged_is_never_returned_and_never_kept(
    filled: Path, tmp_path: Path, read: Callable[[Store, Path], object], damage: Callable[[bytes], bytes]
):
    with pytest.raises(CorruptObjectError, match=r"does not match its|not a gzip file"):
        read(Wire(filled, damage, damaged=1000), tmp_path)
    assert not (tmp_path / "copy").exists()


def test_an_object_whose_name_has_no_digest_is_not_read_as_checked(filled: Path):
    with pytest.raises(CorruptObjectError, match="weights/newest"):
        read_named(LocalStore(filled), "weights/newest.safetensors")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.sampled_from(["", "train", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def places(value: object, path: tuple = ()) -> list[tuple]:
    """All paths into a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


@given(st.data())
def test_a_manifest_with_any_value_replaced_is_read_or_refused_in_words(data: st.DataObject):
    content = json.loads(_MANIFEST)
    *way, last = data.draw(st.sampled_from(places(content)[1:]))
    inner = content
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(VALUES)
    try:
        read = manifests.from_bytes(json.dumps(content).encode(), "here")
    except ManifestError:
        return
    assert manifests.from_bytes(manifests.to_bytes(read), "here") == read


_MANIFEST = manifests.to_bytes(
    Manifest(
        "name",
        (Shard("shards/a.tar", 5000, "0a" * 32),),
        (
            manifests.ManifestRow(
                "id",
                "train",
                "rain",
                manifests.Member(0, 512, 100, 7, "tiles-qoi", 10, 20),
                manifests.Member(0, 1024, 100, 7, "tiles-qoi", 10, 20),
                "source",
            ),
        ),
        {"source": "CC0"},
        {"tool": 1},
    )
)


def test_a_deeply_nested_manifest_is_refused_in_words():
    with pytest.raises(ManifestError, match="not a manifest"):
        manifests.from_bytes(b"[" * 100_000, "here")


def test_an_archive_that_unpacks_to_much_more_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(manifests, "MAX_BYTES", 64 << 20)
    store = LocalStore(tmp_path)
    store.write(archive_key(DIGEST), gzip.compress(bytes(65 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(ManifestError, match="decompresses to more than"):
            load_manifest(store, DIGEST)
        assert tracemalloc.get_traced_memory()[1] < 48 << 20
    finally:
        tracemalloc.stop()
