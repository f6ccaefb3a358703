"""`up.json` of an older or newer version, or damaged: `mirage down` works, the others say what to do."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.cluster.local import lifecycle, processes
from orchestrator.cluster.local.processes import TAG, Process
from orchestrator.cluster.local.s3_server import S3Server
from orchestrator.cluster.local.state import ClusterState, read, write
from orchestrator.errors import ClusterError

STATE = ClusterState(
    tag="no-such-tag-" + "0" * 8,
    ray_port=6379,
    dashboard_port=8265,
    temp_dir="/nowhere/mirage-x",
    s3=S3Server(9000, "key", "secret"),
    environment={"A": "b"},
    processes=(Process("raylet", 2**22 + 1, 1.5),),
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".mirage").mkdir()
    return tmp_path / ".mirage"


def _raw(home: Path) -> dict[str, object]:
    write(home, STATE)
    raw: dict[str, object] = json.loads((home / "up.json").read_text())
    return raw


def test_what_was_written_is_read(home: Path):
    write(home, STATE)
    assert read(home) == STATE


def test_fields_of_a_newer_version_are_ignored(home: Path):
    raw = _raw(home) | {"new": [1]}
    (home / "up.json").write_text(json.dumps(raw))
    assert read(home) == STATE


BROKEN: dict[str, Callable[[dict[str, object]], object]] = {
    "only a tag": lambda raw: {"tag": "x"},
    "list": lambda raw: [raw],
    "null": lambda raw: None,
    "port of text": lambda raw: raw | {"ray_port": "6379"},
    "port too large": lambda raw: raw | {"dashboard_port": 2**40},
    "no environment": lambda raw: {name: value for name, value in raw.items() if name != "environment"},
    "nul": lambda raw: raw | {"environment": {"A": "\0"}},
    "odd process": lambda raw: raw | {"processes": [{"name": "x"}]},
}


@pytest.mark.parametrize("kind", [*BROKEN, "empty", "no text", "deep", "fifo", "circle"])
def test_an_unreadable_file_never_stops_down_and_others_name_it(home: Path, kind: str):
    file = home / "up.json"
    if kind in BROKEN:
        file.write_text(json.dumps(BROKEN[kind](_raw(home))))
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "circle":
        file.symlink_to(file)
    else:
        file.write_bytes({"empty": b"", "no text": b"\xff\x00", "deep": b"[" * 100_000}[kind])
    for ask in (read, lambda home: lifecycle.environment(home.parent)):
        with pytest.raises(ClusterError, match=r"up\.json is damaged.*mirage down"):
            ask(home)
    assert lifecycle.status(home.parent).state == "broken"
    assert lifecycle.uses(home.parent) == []
    assert lifecycle.down(home.parent) == ["nothing ran; up.json is removed"]
    assert not os.path.lexists(file)
    assert lifecycle.down(home.parent) == []


@pytest.mark.parametrize("by", ["variable", "argument"])
def test_down_stops_the_processes_of_its_folder_without_a_record(home: Path, by: str):
    (home / "up.json").write_text("{")
    environment = {**os.environ, TAG: "lost"} | ({"MIRAGE_HOME": str(home)} if by == "variable" else {})
    command = ["sleep", "600"] if by == "variable" else ["sh", "-c", "sleep 600; :", str(home / "store")]
    with (
        subprocess.Popen(command, env=environment) as ours,
        subprocess.Popen(
            ["sleep", "600"], env={**environment, "MIRAGE_HOME": "/elsewhere", TAG: "other"}
        ) as theirs,
    ):
        try:
            assert any(str(ours.pid) in line for line in lifecycle.down(home.parent))
            ours.wait(10)
            assert theirs.poll() is None
        finally:
            ours.kill()
            theirs.kill()


def test_a_folder_that_up_did_not_make_is_not_removed(home: Path, tmp_path: Path):
    (tmp_path / "precious").mkdir()
    (home / "up.json").write_text(json.dumps(_raw(home) | {"temp_dir": str(tmp_path / "precious")}))
    lifecycle.down(home.parent)
    assert (tmp_path / "precious").is_dir()


@given(pid=st.integers(1, 2**70), started=st.floats(allow_nan=True, allow_infinity=True))
@settings(max_examples=50, deadline=None)
def test_an_id_that_no_process_has_is_no_process(pid: int, started: float):
    if pid != os.getpid():
        assert not processes.is_alive(Process("x", pid, -1e18 if abs(started) < 1e17 else started))
