"""`mirage down` stops nothing that a running command uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cluster.local import lifecycle, state
from orchestrator.cluster.local.state import ClusterState
from orchestrator.cluster.local.users import users, using
from tests.claims import ROOT, mirage, wait_until


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose cluster has been recorded, and has no processes left."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    home = state.project_home(tmp_path)
    (tmp_path / "ray").mkdir()
    state.write(home, ClusterState("a-tag-of-no-process", 1, 2, str(tmp_path / "ray"), None, {}))
    return tmp_path


USER = """
import sys
from pathlib import Path
from orchestrator.cluster.local.users import using
with using(Path(sys.argv[1]), "train job demo"):
    input()
"""


def test_down_refuses_while_a_command_runs_and_names_it(project: Path) -> None:
    command = [sys.executable, "-c", USER, str(project / ".mirage")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) as running:
        wait_until(lambda: users(project / ".mirage"), "the command runs")
        refused = mirage("down")
        assert refused.status == 2, refused.text
        assert f"train job demo: process {running.pid}" in refused.text
        assert "mirage down --force" in refused.text
        assert lifecycle.status(project).state != "down"
        running.kill()
    assert mirage("down").status == 0, "what was killed uses nothing"
    assert lifecycle.status(project).state == "down"


def test_down_with_force_stops_the_cluster_all_the_same(project: Path) -> None:
    with using(project / ".mirage", "train job demo"):
        assert mirage("down", "--force").status == 0
    assert lifecycle.status(project).state == "down"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"what": "x", "process": "{}"}'])
def test_a_cut_record_of_a_command_is_ignored(project: Path, content: str) -> None:
    (project / ".mirage" / "running").mkdir()
    (project / ".mirage" / "running" / "7.json").write_text(content)
    assert users(project / ".mirage") == []


def test_a_command_ends_with_its_record_also_in_a_folder_that_cannot_be_written(project: Path) -> None:
    with using(project / ".mirage", "train job demo"):
        assert len(users(project / ".mirage")) == 1
    assert users(project / ".mirage") == []
    (project / "file").touch()
    with using(project / "file", "train job demo"):
        pass
