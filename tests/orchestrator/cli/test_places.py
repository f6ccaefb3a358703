"""Whatever the streams, folder and disk of a command are like, it does its work or ends with one clear error."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import tempfile
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.cli.app import emit, emit_error, emit_if_possible
from orchestrator.errors import OutputError
from tests.claims import assert_one_clear_error, encoded, mirage, noise_image

NO_TEXT = os.fsdecode(b"caf\xe9 \xff.png")
"""A name that is no UTF-8."""


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line with the streams that are set; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["mirage", *words])
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_full_disk_below_standard_output_is_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)
    monkeypatch.setattr(sys, "stdout", full)
    assert run(monkeypatch, "schema") == 2
    with pytest.raises(OutputError):
        emit("a line")
    emit_if_possible("a line of a job, which continues")
    monkeypatch.setattr(sys, "stderr", full)
    emit_error("a line")
    monkeypatch.undo()
    with contextlib.suppress(OSError):  # for what it still holds
        full.close()
    assert "standard output cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_printed_in_any_terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: emit(f"{NO_TEXT} → 写真"))
    printed = io.BytesIO()
    stream = io.TextIOWrapper(printed, encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(monkeypatch) == 0
    stream.flush()
    assert b".png" in printed.getvalue()


def test_closed_streams_are_nowhere_and_never_a_file_that_is_opened_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert run(monkeypatch, "schema") == 0
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert stream is not None
        assert os.stat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev
        stream.close()


def test_a_folder_that_was_removed_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for words in (["runs"], ["down"], ["show", "data"], ["restore", "a.png", "-m", "x"]):
        assert_one_clear_error(mirage(*words), "the current folder does not exist any more")


def test_a_leading_tilde_of_a_path_that_a_command_writes_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    photographs = tmp_path / "photos"
    photographs.mkdir()
    for number in range(3):
        (photographs / f"{number}.png").write_bytes(encoded(noise_image(32, 32, seed=number)))
    init = ["init", "mine", "--root", "photos", "--degradation", "haze"]
    assert mirage(*init, "--out=~/mine.yaml").status == 0
    assert (tmp_path / "home" / "mine.yaml").is_file()
    assert_one_clear_error(mirage(*init, "--out=~nobody-of-this-name/a.yaml"), "there is no user")
    assert not list(tmp_path.glob("~*"))


@pytest.mark.parametrize("number", sorted(cli._CONDITIONS))
@pytest.mark.parametrize("file", [None, "some/file"])
def test_a_condition_of_the_machine_is_one_error_wherever_it_comes_up(
    number: int, file: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(cli, "app", fail)
    assert_one_clear_error(mirage(), file or "", os.strerror(number), ". ")


def test_a_machine_without_a_temporary_folder_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "gone")])
    monkeypatch.setattr(cli, "app", lambda **_: tempfile.mkdtemp())
    assert_one_clear_error(mirage(), "No usable temporary directory", "TMPDIR")


def test_another_error_of_the_system_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.EBADF, "a bug")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(OSError, match="a bug"):
        mirage()
