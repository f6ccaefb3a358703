"""`bench checkpoint`: shares follow from the times, and a real run fills every column in both kinds of store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.bench.__main__ import main
from orchestrator.bench.checkpoint import CheckpointTiming, checkpoint_cost

TIMINGS = [
    CheckpointTiming(steps=4, wall=8.0, cpu=6.0, stall=1.0, write=3.0, cpu_with=9.0),
    CheckpointTiming(steps=4, wall=4.0, cpu=2.0, stall=0.5, write=2.0, cpu_with=3.0),
    CheckpointTiming(steps=4, wall=4.0, cpu=2.0, stall=0.1, write=9.0, cpu_with=3.5),
]


def test_a_share_is_of_the_training_between_two_checkpoints() -> None:
    found = checkpoint_cost("folder", 100, TIMINGS)
    assert (found.step, found.stall, found.write, found.cpu) == (1.0, 0.5, 3.0, 1.5)
    assert found.stalled_share == pytest.approx(0.5 / 500.5)
    assert found.share_at_most == pytest.approx(1.5 / (1.5 + 500 * 0.5))


def test_steps_that_took_less_cpu_with_a_checkpoint_than_without_are_no_gain() -> None:
    assert checkpoint_cost("folder", 100, [CheckpointTiming(1, 1.0, 2.0, 0.1, 0.1, cpu_with=1.0)]).cpu == 0


@pytest.mark.slow
def test_real_checkpoints_are_timed_in_a_folder_and_on_s3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "checkpoint.json"
    options = ["--size", "demo", "--crop", "16", "--batch", "2", "--steps", "1", "--repeats", "1"]
    assert main(["checkpoint", *options, "--json", str(file)]) == 0
    local, remote = json.loads(file.read_text())["rows"]
    assert (local["store"], remote["store"]) == ("folder", "S3")
    assert local["bytes"] == pytest.approx(remote["bytes"], rel=0.01)
    # Model, averaged weights and two moments, in fp32; what is kept is one checkpoint.
    assert local["bytes"] == pytest.approx(4 * 4 * 363_000, rel=0.2)
    for row in (local, remote):
        assert row["stall"] > 0
        assert row["write"] > 0
        assert row["stall"] < row["step"] + row["write"]
    assert "at one per 500 steps" in capsys.readouterr().out
