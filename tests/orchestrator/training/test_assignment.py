"""What a worker is told of its run."""

from __future__ import annotations

from pathlib import Path

from orchestrator.training.assignment import WorkerAssignment


def test_the_newest_checkpoint_is_that_of_the_last_step_whatever_else_lies_there(tmp_path: Path) -> None:
    assignment = WorkerAssignment({}, (), (), str(tmp_path), "", str(tmp_path))
    assert assignment.newest_checkpoint() == ""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("000000020-0123456789ab", "000000100-ba9876543210"):
        (folder / f"{name}.json").write_text("{}")
    for stray in ("zzz", "zzz.json", ".DS_Store", "000000999-0123456789ab.json.part", "000000999.json"):
        (folder / stray).touch()
    assert assignment.newest_checkpoint() == "000000100-ba9876543210"
