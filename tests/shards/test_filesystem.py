"""Folders and files as systems and strangers leave them."""

import io
import itertools
import os
import socket
import threading
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import shards.images as images
from shards.errors import CorruptObjectError, PackError, PathError, StoreError
from shards.filesystem import expand_user, files_below, open_regular, read_regular
from shards.listing import measure
from shards.sources.official_list import OfficialList
from shards.sources.pairs import PairsSource
from shards.sources.recognise import FileTree
from shards.store import LocalStore


def _png(path: Path, size: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size)).save(path, "PNG")


@pytest.mark.parametrize(
    "name", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trash-1000", ".git", "__macosx"]
)
def test_folders_of_operating_systems_are_no_data_at_any_depth_but_may_lie_above(tmp_path: Path, name: str):
    root = tmp_path / name / "photos"
    for inside in ("a.png", f"{name}/b.png", f"sub/{name}/deep/c.png", "sub/d.PNG", "sub/.e.png"):
        _png(root / inside)
    (root / "folder.png").mkdir()
    assert list(files_below(root, (".png",))) == ["a.png", "sub/d.PNG"]
    assert images.list_images(root) == [root / "a.png", root / "sub/d.PNG"]
    assert FileTree.of(root).files == ("a.png", "sub/d.PNG")


def test_linked_folders_are_read_once_on_each_way_and_circles_end(tmp_path: Path):
    for name in ("train", "test"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "clean").symlink_to(tmp_path / "shared")
        (tmp_path / "root" / name / "up").symlink_to("..")
    _png(tmp_path / "shared" / "a.png")
    (tmp_path / "shared" / "itself").symlink_to(".")
    (tmp_path / "root" / "x").symlink_to("y")
    (tmp_path / "root" / "y").symlink_to("x")
    found = list(files_below(tmp_path / "root", (".png",)))
    assert found == ["test/clean/a.png", "train/clean/a.png"]


def test_folders_that_link_to_each_other_end_in_an_error_not_in_hours(tmp_path: Path):
    names = [f"d{n}" for n in range(9)]
    for one, other in itertools.product(names, names):
        (tmp_path / one).mkdir(exist_ok=True)
        (tmp_path / one / other).symlink_to(f"../{other}")
    with pytest.raises(PathError, match="links to folders"):
        list(files_below(tmp_path, (".png",)))


@given(
    name=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
)
@settings(max_examples=40, deadline=None)
def test_any_name_without_a_dot_before_it_is_found(tmp_path_factory, name: str):
    root = tmp_path_factory.mktemp("names")
    _png(root / f"x{name}.png")
    assert list(files_below(root, (".png",))) == [f"x{name}.png"]


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = {
    "fifo": _fifo,
    "socket": _socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "circle": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("gone"),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_an_error_of_each_reader_and_never_waits(tmp_path: Path, kind: str):
    path = tmp_path / "a.png"
    SPECIAL[kind](path)
    store = LocalStore(tmp_path)
    for read, error in (
        (lambda: open_regular(path), OSError),
        (lambda: images.read_header(path), PackError),
        (lambda: images.read_image(path), PackError),
        (lambda: images.read_bytes(path), PackError),
        (lambda: measure(path), PackError),
        (lambda: OfficialList.read(path), PackError),
        (lambda: store.read("a.png"), StoreError),
        (lambda: store.read_range("a.png", 0, 1), StoreError),
        (lambda: store.download("a.png", tmp_path / "copy"), StoreError),
    ):
        with pytest.raises(error, match=r"a\.png"):
            read()


def test_a_file_above_the_given_size_is_not_read(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_regular(tmp_path / "a", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_regular(tmp_path / "a", 4)


def test_a_tilde_without_a_home_is_an_error_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert expand_user("a/~b") == Path("a/~b")
    monkeypatch.setenv("HOME", "/home/me")
    assert expand_user("~/x") == Path("/home/me/x")
    for name in ("~nosuchuser/x", "~nosuchuser"):
        with pytest.raises(PathError, match="no user 'nosuchuser'"):
            expand_user(name)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # without an account
    with pytest.raises(PathError, match="HOME is not set"):
        LocalStore(Path("~/x"))


@pytest.mark.parametrize("forms", list(itertools.product(["NFC", "NFD"], repeat=4)))
def test_partners_are_found_in_either_form_of_unicode(tmp_path: Path, forms: tuple[str, ...]):
    first, second, third, fourth = (unicodedata.normalize(form, "café") for form in forms)
    _png(tmp_path / "in" / f"{first}-Ä.png")
    _png(tmp_path / "out" / f"{second}.png")
    source = PairsSource(
        tmp_path, f"in/{{k}}-{unicodedata.normalize(forms[2], 'Ä')}.png", "out/{k}.png", "rain"
    )
    (pair,) = source
    assert pair.degraded is not None
    assert pair.degraded.pixels().shape == pair.clean.pixels().shape == (8, 8, 3)
    (tmp_path / "list.txt").write_text(f"{third}.png\n", encoding="utf-8")
    listed = OfficialList.read(tmp_path / "list.txt")
    (found,) = PairsSource(tmp_path, "in/{k}-*.png", "out/{k}.png", "rain")._found.pairs
    assert listed.names == (unicodedata.normalize("NFC", fourth),)
    assert not listed.takes(found), "another name: café-Ä"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize(
    "lines", ["train/rain-1.png\ntrain/rain-2.png\n", "train\\rain-1.png\r\n.\\train\\rain-2.png"]
)
def test_official_lists_are_read_as_windows_and_linux_write_them(tmp_path: Path, encoding: str, lines: str):
    (tmp_path / "list.txt").write_bytes(lines.encode(encoding))
    assert OfficialList.read(tmp_path / "list.txt").names == ("rain-1", "rain-2")


def _image(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, kind)
    return out.getvalue()


_POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
_UNLISTED = {
    "EPS": _POSTSCRIPT,
    **{kind: _image(kind) for kind in ("GIF", "ICO", "PDF", "PCX", "TGA", "SGI", "DDS")},
}


@pytest.mark.parametrize("kind", _UNLISTED)
def test_a_file_of_another_format_is_opened_by_no_reader(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("subprocess.Popen", pytest.fail)  # Pillow would start Ghostscript
    data = _UNLISTED[kind]
    path = tmp_path / "evil.png"
    path.write_bytes(data)
    for read in (
        lambda: images.read_header(path),
        lambda: images.read_image(path),
        lambda: images.decode_image(data, "evil.png"),
        lambda: images.reduce_image(data, "evil.png"),
        lambda: images.read_samples(data, "evil.png"),
    ):
        with pytest.raises(PackError, match=r"evil\.png: not a readable image"):
            read()


@pytest.mark.parametrize(
    "error", [IndexError, RuntimeError, AssertionError, TypeError, KeyError, MemoryError, SyntaxError]
)
def test_a_decoder_that_fails_in_any_way_is_one_error_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
):
    def fail(self: object, *_: object) -> None:
        raise error("odd")

    _png(tmp_path / "a.png")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(PackError, match=r"a\.png: not a readable image \(.*odd"):
        images.read_image(tmp_path / "a.png")


def test_the_bound_of_pixels_holds_in_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    _png(tmp_path / "large.png", 11)
    _png(tmp_path / "small.png", 10)
    outcomes: list[bool] = []

    def read(name: str) -> None:
        for _ in range(50):
            try:
                images.read_header(tmp_path / name)
                outcomes.append(name == "small.png")
            except PackError:
                outcomes.append(name == "large.png")

    threads = [threading.Thread(target=read, args=(name,)) for name in ("large.png", "small.png") * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 400
    assert all(outcomes)


def test_a_shard_that_is_no_file_is_corrupt_not_a_traceback(tmp_path: Path):
    from shards.cache import ShardCache
    from shards.manifest import Shard

    store = LocalStore(tmp_path / "store")
    store.ensure_bucket()
    for name, make in SPECIAL.items():
        make(tmp_path / "store" / name)
        with pytest.raises(CorruptObjectError, match=name):
            ShardCache(tmp_path / "cache", 1 << 20).path(store, Shard(name, 4096, "0" * 64))


def test_16_bit_samples_are_read_as_before(tmp_path: Path):
    import imagecodecs

    deep = np.full((4, 5, 3), 40_000, np.uint16)
    assert np.array_equal(images.read_samples(imagecodecs.png_encode(deep), "deep.png"), deep)
