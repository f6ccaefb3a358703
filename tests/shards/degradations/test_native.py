"""The C code of operators is optional: without it, NumPy does the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.degradations import native


@pytest.fixture
def no_library_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the file of a cache in which nothing was built."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("MIRAGE_NATIVE", raising=False)
    native.library.cache_clear()
    yield native._folder() / f"degradations-{native._fingerprint()}.so"
    native.library.cache_clear()


def test_a_damaged_file_is_named_and_not_used(no_library_yet: Path) -> None:
    no_library_yet.parent.mkdir(parents=True)
    no_library_yet.write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be loaded; NumPy is used instead"):
        assert not native.call("convolve")


def test_without_a_compiler_there_is_no_library(
    no_library_yet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert native.library() is None
    assert not no_library_yet.exists()
