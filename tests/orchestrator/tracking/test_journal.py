"""A journal survives full disks, power cuts and endless runs: only what is damaged is set aside, by name."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.tracking import background, journal, runs
from orchestrator.tracking.client import connect
from orchestrator.tracking.journal import DAMAGED, Journal, JournalFullError


def line(step: int) -> bytes:
    return json.dumps({"step": step, "time": 1, "values": {"loss/total": float(step)}}).encode() + b"\n"


def taken_from(spool: Path, content: bytes) -> list[int]:
    """Return the steps that a sender takes from an abandoned journal with this content."""
    left = Journal.create(spool, "run")
    left.path.write_bytes(content)
    left.close()
    (found,) = Journal.abandoned(spool, "run")
    taken = take_all(found)
    found.discard()
    return taken


def take_all(found: Journal) -> list[int]:
    """Return the steps that a sender takes from a journal."""
    taken = []
    while True:
        steps, mark = found.pending(10)
        found.sent(mark)
        if not steps:
            return taken
        taken += [step.step for step in steps]


DAMAGED_LINES = {
    "zeros": b"\x00" * 200 + b"\n",
    "cut": b'{"step": 7, "time": 17\n',
    "a list": b"[1]\n",
    "a number": b"3\n",
    "no text": b"\xff\xfe\n",
    "deep": b"[" * 100_000 + b"\n",
    "another key": b'{"step": 7, "time": 1, "values": {}, "x": 1}\n',
    "values are a list": b'{"step": 7, "time": 1, "values": [1]}\n',
    "a value is text": b'{"step": 7, "time": 1, "values": {"a": "b"}}\n',
    "the step is text": b'{"step": "7", "time": 1, "values": {}}\n',
    "the step is true": b'{"step": true, "time": 1, "values": {}}\n',
    "the step is too large": b'{"step": 99999999999999999999, "time": 1, "values": {}}\n',
    "the time is negative": b'{"step": 7, "time": -1, "values": {}}\n',
    "a value is too large": b'{"step": 7, "time": 1, "values": {"a": 1' + b"0" * 400 + b"}}\n",
    "empty": b"\n",
}


@pytest.mark.parametrize("kind", DAMAGED_LINES)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_damaged_line_is_set_aside_by_name_and_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, where: int
) -> None:
    lines = [line(1), line(2)]
    lines.insert(where, DAMAGED_LINES[kind])
    assert taken_from(tmp_path, b"".join(lines)) == [1, 2]
    (aside,) = (tmp_path / DAMAGED).iterdir()
    assert aside.read_bytes() == DAMAGED_LINES[kind]
    assert str(aside) in caplog.text


def test_of_two_merged_lines_the_second_is_sent(tmp_path: Path) -> None:
    assert taken_from(tmp_path, line(1) + line(2)[:30] + line(3) + line(4)) == [1, 3, 4]
    (aside,) = (tmp_path / DAMAGED).iterdir()
    assert aside.read_bytes() == line(2)[:30] + line(3)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_of_one_place_costs_the_lines_that_it_touches(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    spool = tmp_path_factory.mktemp("spool")
    content = b"".join(map(line, range(6)))
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, min(start + 60, len(content))))
    other = data.draw(st.binary(max_size=60))
    taken = taken_from(spool, content[:start] + other + content[end:])
    ends = list(itertools.accumulate(len(line(step)) for step in range(6)))
    touched = {step for step in range(6) if ends[step] > start - 1 and ends[step] - len(line(step)) < end + 1}
    assert set(range(6)) - touched <= set(taken)


@pytest.mark.parametrize("name", ["no-image.png", "3-x-sheet.png", "3-5-sheet.png"])
def test_a_damaged_image_is_set_aside_and_blocks_nothing(store: str, tmp_path: Path, name: str) -> None:
    run_id = runs.start_run(store, "journal", "image", {}, {})
    left = Journal.create(tmp_path, run_id)
    left.add_image("sheet", b"no png", 1)
    left.add_artifact("report.md", b"text")
    (left.folder / name).write_bytes(b"no png")
    left.close()
    assert background.sync(store, run_id, tmp_path) >= 1
    assert [file.path for file in connect(store).list_artifacts(run_id)] == ["report.md"]
    assert len(list((tmp_path / DAMAGED).iterdir())) == 2
    assert not (tmp_path / run_id).exists()


def test_one_list_of_checkpoints_waits_and_it_is_the_newest_although_the_clock_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = Journal.create(tmp_path, "run")
    left.folder.mkdir()
    (left.folder / f"checkpoints-{2 * 10**18}.json").write_text('{"checkpoints": "of an earlier release"}')
    for number in range(12):
        monkeypatch.setattr(journal.time, "time_ns", lambda number=number: 10**18 - number)
        left.add_checkpoints({"checkpoints": number})
    content, files = left.checkpoints() or ({}, [])
    assert content == {"checkpoints": 11}
    assert [*left.folder.iterdir()] == files
    assert len(files) == 1
    left.close()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\x00", b'{"checkpoints": 3, "status": 4}'])
@pytest.mark.parametrize("name", ["checkpoints-9999999999999999999.json", "status.json"])
def test_a_damaged_list_or_status_is_set_aside_and_blocks_nothing(
    store: str, tmp_path: Path, name: str, content: bytes
) -> None:
    run_id = runs.start_run(store, "journal", name, {}, {})
    left = Journal.create(tmp_path, run_id)
    left.add(1, {"loss/total": 1.0})
    left.folder.mkdir()
    (left.folder / name).write_bytes(content)
    left.close()
    assert background.sync(store, run_id, tmp_path) == 1
    assert [file.name for file in (tmp_path / DAMAGED).iterdir()] == [f"{run_id}-{left.path.stem}-{name}"]


def test_a_metric_that_mlflow_refuses_is_set_aside_alone(store: str, tmp_path: Path) -> None:
    run_id = runs.start_run(store, "journal", "refused", {}, {})
    left = Journal.create(tmp_path, run_id)
    for step in range(5):
        left.add(step, {"loss/total": 1.0, "not a name!": 2.0, "x" * 300: 3.0})
    left.close()
    background.sync(store, run_id, tmp_path)
    assert len(connect(store).get_metric_history(run_id, "loss/total")) == 5
    (aside,) = (tmp_path / DAMAGED).iterdir()
    names = [name for text in aside.read_text().splitlines() for name in json.loads(text)["values"]]
    assert sorted(names) == sorted(["not a name!", "x" * 300] * 5)


@pytest.mark.parametrize("name", ["report.md", "a/b/c.txt"])
def test_a_newer_file_replaces_one_that_waits(store: str, tmp_path: Path, name: str) -> None:
    run_id = runs.start_run(store, "journal", "files", {}, {})
    left = Journal.create(tmp_path, run_id)
    left.add_artifact(name, b"old")
    left.add_artifact(name, b"new")
    left.close()
    assert background.sync(store, run_id, tmp_path) == 1
    local = connect(store).download_artifacts(run_id, name, str(tmp_path))
    assert Path(local).read_bytes() == b"new"


@pytest.mark.parametrize("stray", ["folder", "empty", "part"])
def test_a_stray_thing_in_the_spool_blocks_nothing(store: str, tmp_path: Path, stray: str) -> None:
    run_id = runs.start_run(store, "journal", "stray", {}, {})
    left = Journal.create(tmp_path, run_id)
    left.add(1, {"loss/total": 1.0})
    left.close()
    odd = tmp_path / run_id / {"folder": "0-1.jsonl", "empty": "0-1.jsonl", "part": "0-1.part"}[stray]
    odd.mkdir() if stray == "folder" else odd.write_bytes(b"")
    (tmp_path / "file.jsonl").write_text("")
    assert background.sync(store, run_id, tmp_path) == 1
    assert [each.problem for each in background.sync_all(store, tmp_path)] == []


# --- size ------------------------------------------------------------------------------------------------------


def test_what_was_sent_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    mine = Journal.create(tmp_path, "run", {"server": "x", "run": "y"})
    for step in range(2000):
        mine.add(step, {"loss/total": 1.0})
        mine.add_image("sheet", b"x" * 500, step)
        if step % 3 == 0:
            take_all(mine)
            for image in mine.images():
                mine.remove(image.file)
        assert mine.path.stat().st_size < 4000
    mine.close()


def test_a_journal_that_is_never_empty_is_compacted_and_stays_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "COMPACT_BYTES", 1000)
    monkeypatch.setattr(journal, "MAX_BYTES", 4000)
    mine = Journal.create(tmp_path, "run", {"server": "x", "run": "y"})
    taken = []
    for step in range(500):
        mine.add(step, {"loss/total": 1.0})
        if step % 2:
            steps, mark = mine.pending(1)
            mine.add(1000 + step, {"loss/total": 1.0})
            mine.sent(mark)
            taken += [each.step for each in steps]
            if step % 10 == 9:
                for _ in range(5):
                    steps, mark = mine.pending(2)
                    mine.sent(mark)
                    taken += [each.step for each in steps]
        assert mine.path.stat().st_size < 6000
        assert list(Journal.abandoned(tmp_path, "run")) == []
    taken += take_all(mine)
    assert sorted(taken) == sorted([*range(500), *range(1001, 1500, 2)])
    mine.close()
    (found,) = Journal.abandoned(tmp_path, "run")
    assert found.about == {"server": "x", "run": "y"}
    found.close()


def test_a_full_journal_takes_more_when_something_was_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 500)
    mine = Journal.create(tmp_path, "run")
    for step in range(7):
        mine.add(step, {"loss/total": 1.0})
    with pytest.raises(JournalFullError):
        mine.add(7, {"loss/" + "x" * 100: 1.0})
    assert take_all(mine) == list(range(7))
    mine.add(200, {"loss/total": 1.0})
    assert take_all(mine) == [200]
    mine.close()


FULL_DISK = """
import sys
from pathlib import Path
from orchestrator.tracking.journal import Journal
spool, filler = Path(sys.argv[1]) / "spool", Path(sys.argv[1]) / "filler"
mine = Journal.create(spool, "run")
filler.write_bytes(b"x" * int(sys.argv[2]))
step = lost = 0
while not lost:
    step += 1
    try:
        mine.add(step, {f"loss/{name}": 1.0 for name in range(40)})
    except OSError:
        lost = step
filler.unlink()
for later in range(step + 1, step + 10):
    mine.add(later, {"loss/total": 1.0})
steps, mark = mine.pending(10**9)
mine.sent(mark)
print([each.step for each in steps] == [n for n in range(1, step + 10) if n != lost], lost > 1)
print(list(spool.iterdir()) == [spool / "run"])
"""


def test_a_disk_that_is_full_for_a_moment_costs_the_lines_of_that_moment(tmp_path: Path) -> None:
    """A file system of 64 KiB, in a mount namespace of its own."""
    shell = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1" 30000'
    words = [str(tmp_path), sys.executable, FULL_DISK]
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh", *words]
    ended = subprocess.run(inside, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        # tests/conftest.py lists this reason
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")  # containers may forbid it
    assert ended.stdout.split() == ["True", "True", "True"], ended.stderr


def test_a_write_that_takes_a_part_only_is_completed(tmp_path: Path) -> None:
    class Slow:
        """A file of which each write takes at most three bytes."""

        def __init__(self, file: Path) -> None:
            self.file = file.open("ab", buffering=0)

        def write(self, content: bytes) -> int:
            return self.file.write(content[:3])

        def fileno(self) -> int:
            return self.file.fileno()

    file = tmp_path / "file"
    slow = Slow(file)
    journal._write_whole(slow, b"0123456789\n")  # type: ignore[arg-type]
    assert file.read_bytes() == b"0123456789\n"
    slow.file.close()


def test_what_waits_is_told_in_words_and_in_bytes(tmp_path: Path) -> None:
    mine = Journal.create(tmp_path, "run", {"server": "x", "run": "y"})
    assert (mine.waiting(), mine.waiting_bytes()) == ("", 0)
    for step in (1, 2):
        mine.add(step, {"loss/total": 1.0})
    mine.add_image("sheet", b"x" * 500, 1)
    mine.add_artifact("report.md", b"x" * 70)
    mine.add_artifact("report.md", b"x" * 30)
    mine.add_checkpoints({"checkpoints": []})
    mine.end("FINISHED")
    assert mine.waiting() == "2 steps, 1 image, 1 file, the list of checkpoints, the status of the run"
    files = [path for path in mine.folder.rglob("*") if path.is_file()]
    assert len(files) == 4
    line_bytes = mine.path.stat().st_size - len(b'{"server": "x", "run": "y"}\n')
    assert mine.waiting_bytes() == line_bytes + sum(path.stat().st_size for path in files)
    for file in files:
        mine.remove(file)
    assert (mine.waiting(), mine.waiting_bytes()) == ("2 steps", line_bytes)
    assert take_all(mine) == [1, 2]
    assert (mine.waiting(), mine.waiting_bytes()) == ("", 0)
    mine.discard()
    assert list(tmp_path.iterdir()) == []


def test_steps_are_sent_up_to_a_number_of_values_but_at_least_one_step(tmp_path: Path) -> None:
    mine = Journal.create(tmp_path, "run")
    for step in range(4):
        mine.add(step, {"a": 1.0, "b": 2.0})
    assert [len(mine.pending(most)[0]) for most in (1, 2, 3, 4, 8, 100)] == [1, 1, 1, 2, 4, 4]
    mine.close()


def test_a_journal_takes_as_many_bytes_as_its_limit_and_not_one_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "MAX_BYTES", 100)
    mine = Journal.create(tmp_path, "run")
    with pytest.raises(JournalFullError):
        mine.add_artifact("a", b"x" * 101)
    mine.add_artifact("a", b"x" * 100)
    with pytest.raises(JournalFullError):
        mine.add_artifact("b", b"x")
    mine.close()
