"""What a user asked for is written whole, with the mode of the umask, or one error says why it was not."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mirage import MIRAGE, ModelConfig, save
from mirage.weights import WeightsError, save_release
from orchestrator.errors import OutputError
from orchestrator.models.export import export
from orchestrator.outputs import write_output
from tests.claims import assert_one_clear_error, encoded

MODEL = MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)).eval()
WRITERS: dict[str, Callable[[Path], object]] = {
    "weights.safetensors": lambda path: save(MODEL, path),
    "authors.ckpt": lambda path: save_release(MODEL, path),
    "exported.safetensors": lambda path: export(MODEL, path, "safetensors"),
    "sheet.png": lambda path: write_output(path, encoded(np.zeros((90, 90, 3), np.uint8)) + bytes(5_000)),
    "report.md": lambda path: write_output(path, "Ærø " * 2_000),
    "job.yaml": lambda path: write_output(path, "name: a\n" * 2_000, executable=True),
}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A kernel that refuses larger files, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_has_the_mode_that_the_umask_gives(tmp_path: Path, name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[name](tmp_path / name)
    finally:
        os.umask(before)
    expected = (0o777 if name == "job.yaml" else 0o666) & ~umask
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == expected
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_error_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not name.startswith("exported"):
        path.write_bytes(b"the one before")
    before = sorted(path.name for path in tmp_path.iterdir())
    with file_size_limit(2_000), pytest.raises((OutputError, WeightsError)) as failure:
        WRITERS[name](path)
    assert_one_clear_error(failure.value, name, "cannot be written (File too large)")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not before or path.read_bytes() == b"the one before"


def test_a_folder_or_a_device_in_the_way_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe", "file/below.png", "x" * 300):
        with pytest.raises(OutputError) as failure:
            write_output(tmp_path / name, b"data")
        assert_one_clear_error(failure.value, name, "cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]


def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path: Path) -> None:
    (tmp_path / "real.md").write_text("before")
    (tmp_path / "link.md").symlink_to("real.md")
    write_output(tmp_path / "link.md", "after")
    assert (tmp_path / "link.md").is_symlink()
    assert (tmp_path / "real.md").read_text() == "after"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")  # the tests above cover root
def test_a_read_only_folder_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o555)
    for name, write in WRITERS.items():
        with pytest.raises(Exception, match="Permission denied") as failure:
            write(tmp_path / "out" / name)
        assert_one_clear_error(failure.value, name)
