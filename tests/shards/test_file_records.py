"""A raw file is read again exactly when it changed, whatever was done to it and wherever packing was killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import file_records, listing, scan
from shards.errors import PackError
from shards.file_records import FileRecords
from shards.listing import list_files, measure


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files that were written a moment ago as those of yesterday."""
    monkeypatch.setattr(file_records, "_SETTLED_NS", -(10**9))


class Reads:
    """Reads the text of a file, and notes which."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def __call__(self, path: Path) -> str:
        self.files.append(path.name)
        try:
            return path.read_text()
        except OSError as error:
            raise PackError(f"{path}: {error.strerror}") from error


def recalled(records: FileRecords, files: list[Path]) -> tuple[list[object], list[str]]:
    reads = Reads()
    found = list(records.recall("text", files, reads, str))
    return found, sorted(reads.files)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{number}.txt" for number in range(5)]
    for path in found:
        path.write_text(f"this is {path.name}")
    return found


def change(path: Path, action: Callable[[Path], object]) -> None:
    """Do something to a file until the clock of its file system has moved on."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        action(path)


def rewrite_with_the_old_time(path: Path) -> None:
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=times)


def replace_by_another_of_the_same_time(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_text(path.read_text()[::-1])
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


CHANGES = [
    lambda path: path.write_text(path.read_text() + "!"),
    lambda path: path.write_text(path.read_text()[::-1]),
    rewrite_with_the_old_time,
    replace_by_another_of_the_same_time,
]


def test_a_file_that_did_not_change_is_read_once(files: list[Path], tmp_path: Path):
    first = recalled(FileRecords(tmp_path / "db"), files)
    assert first[1] == [path.name for path in files]
    assert recalled(FileRecords(tmp_path / "db"), files) == (first[0], [])
    assert recalled(FileRecords(tmp_path / "db", reread=True), files) == first
    assert recalled(FileRecords(), files) == first


@pytest.mark.parametrize("how", CHANGES, ids=["longer", "other", "other, old time", "other file, old time"])
def test_a_file_that_changed_is_read_again(files: list[Path], tmp_path: Path, how):
    recalled(FileRecords(tmp_path / "db"), files)
    change(files[2], how)
    found, read = recalled(FileRecords(tmp_path / "db"), files)
    assert read == [files[2].name]
    assert found == [path.read_text() for path in files]


def test_a_file_that_may_still_change_within_a_tick_of_the_clock_is_not_remembered(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(file_records, "_SETTLED_NS", 10**18)
    for _ in range(2):
        assert recalled(FileRecords(tmp_path / "db"), files)[1] == [path.name for path in files]


def test_a_fact_that_does_not_parse_is_read_again(files: list[Path], tmp_path: Path):
    written: list[Path] = []

    def read(path: Path) -> str:
        written.append(path)
        return "[1]"

    list(FileRecords(tmp_path / "db").recall("n", files, lambda _: "no list", str))
    for _ in range(2):
        found = FileRecords(tmp_path / "db").recall("n", files, read, lambda fact: json.loads(fact)[0])
        assert list(found) == [1] * len(files)
    assert sorted(written) == files


@pytest.mark.parametrize("fact", [None, "", "{}", "[1]", "[1, 2, 3, 4, 5, 6]", "5 abc", '"text"'])
def test_headers_and_digests_are_parsed_or_refused(fact: str | None):
    for parse in (scan._parsed, listing._parsed):
        with pytest.raises((ValueError, TypeError)):
            parse(fact)  # type: ignore[arg-type]


def test_few_files_are_read_side_by_side(tmp_path: Path):
    files = [tmp_path / f"{number}" for number in range(file_records._READERS)]
    for path in files:
        path.touch()
    together = threading.Barrier(len(files), timeout=60)
    assert len(list(FileRecords().recall("n", files, lambda _: f"{together.wait()}", int))) == len(files)


def test_large_files_are_kept_before_a_batch_ends(files: list[Path], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(file_records, "_BATCH_BYTES", 1)

    def read(path: Path) -> str:
        if path == files[3]:
            raise KeyboardInterrupt
        return path.read_text()

    with pytest.raises(KeyboardInterrupt):
        list(FileRecords(tmp_path / "db").recall("text", files, read, str))
    assert recalled(FileRecords(tmp_path / "db"), files)[1] == [path.name for path in files[3:]]


def test_a_locked_database_is_said_once_and_not_to_be_deleted(files: list[Path], tmp_path: Path, caplog):
    recalled(FileRecords(tmp_path / "db"), files)
    records = FileRecords(tmp_path / "db")
    assert records._database is not None
    records._database.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(2):
            assert recalled(records, files)[0] == [path.read_text() for path in files]
    assert caplog.text.count("database is locked") == 1
    assert "Delete" not in caplog.text


def test_an_error_is_not_remembered(files: list[Path], tmp_path: Path):
    missing, folder = tmp_path / "missing", tmp_path / "folder"
    folder.mkdir()
    for _ in range(2):
        found, read = recalled(FileRecords(tmp_path / "db"), [missing, folder])
        assert [str(error).partition(":")[0] for error in found] == [str(missing), str(folder)]
        assert read == ["folder"]


def test_facts_of_two_kinds_and_names_of_any_bytes_are_apart(tmp_path: Path):
    odd = [Path(os.fsdecode(bytes(tmp_path) + name)) for name in (b"/a\xff", b"/a\xfe", b"/a b'\"")]
    for number, path in enumerate(odd):
        path.write_text(f"{number}")
    for kind in ("one", "two"):
        records = FileRecords(tmp_path / "db")
        assert list(records.recall(kind, odd, lambda path, kind=kind: kind + path.read_text(), str)) == [
            f"{kind}{number}" for number in range(3)
        ]


@pytest.mark.parametrize("damage", [b"no database", b"SQLite format 3\0" + bytes(90), None])
def test_records_that_cannot_be_used_are_a_warning(files: list[Path], tmp_path: Path, caplog, damage):
    database = tmp_path / "db"
    database.mkdir() if damage is None else database.write_bytes(damage)
    assert recalled(FileRecords(database), files)[0] == [path.read_text() for path in files]
    assert f"{database} cannot be used" in caplog.text
    assert ("Delete it" in caplog.text) == (damage is not None)


def test_facts_that_nobody_used_for_long_are_deleted(files: list[Path], tmp_path: Path):
    old = FileRecords(tmp_path / "db")
    old._today -= 100
    recalled(old, files)
    used = FileRecords(tmp_path / "db")
    used._today -= 50
    assert recalled(used, files[:2])[1] == []
    assert recalled(FileRecords(tmp_path / "db"), files)[1] == [path.name for path in files[2:]]


def _read_until_killed(database: Path, files: list[Path], last: Path) -> None:
    def read(path: Path) -> str:
        if path == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return path.read_text()

    list(FileRecords(database).recall("text", files, read, str))


def test_what_was_read_before_a_kill_is_not_read_again(tmp_path: Path):
    files = [tmp_path / f"{number:03}" for number in range(700)]
    for path in files:
        path.write_text(path.name)
    killed = multiprocessing.get_context("fork").Process(
        target=_read_until_killed, args=(tmp_path / "db", files, files[600])
    )
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    found, read = recalled(FileRecords(tmp_path / "db"), files)
    assert found == [path.name for path in files]
    assert read == [path.name for path in files[512:]]  # the batch in which it died, and those after it


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, len(CHANGES)), st.booleans()), max_size=6))
def test_a_listing_is_that_of_the_files_as_they_are(steps: list[tuple[int, int, bool]]):
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{number}": Path(folder) / f"{number}" for number in range(4)}
        for name, path in files.items():
            path.write_text(f"file {name}")
        for number, kind, reopened in [(0, len(CHANGES), True), *steps]:
            if reopened:
                records = FileRecords(Path(folder) / "db")
            if kind < len(CHANGES):
                change(files[f"{number}"], CHANGES[kind])
            assert list_files(files, records=records) == b"".join(
                "{}\0{}\0{}\n".format(name, *measure(path)).encode() for name, path in files.items()
            )
