"""`bench scaling`: parameters come out of rows that they made, and a real run of two workers fills every column."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.bench.plots import draw
from orchestrator.bench.scaling import fit, fitted_parameters, measured_table, simulate
from orchestrator.bench.scaling_worker import ScalingRow
from orchestrator.planning.scaling_model import (
    CheckpointPolicy,
    Network,
    StepCost,
    WorkerSpeed,
    efficiency,
    predict,
)

LOAD = StepCost(parameters=6_207_412, blocks=35, norm_channels=24, embedding=128)
MACHINE = WorkerSpeed(step_seconds=0.2, image_seconds=0.3)
NETWORK = Network(latency_seconds=1e-4, bytes_per_second=2e9)


def row(workers: int) -> ScalingRow:
    """What a machine would measure that is exactly as the model says."""
    point = predict(workers, 8, LOAD, MACHINE, NETWORK)
    return ScalingRow(
        workers=workers,
        share=8 // workers,
        compute=point.compute,
        communication=point.communication,
        data=0.0,
        spread=0.0,
        gradients=NETWORK.ring(4 * LOAD.parameters, workers),
        small=NETWORK.tree(0, workers),
    )


def test_the_models_parameters_come_back_from_rows_that_they_made() -> None:
    machine, network = fit([row(1), row(2), row(4)], LOAD)
    assert (machine.step_seconds, machine.image_seconds) == pytest.approx((0.2, 0.3))
    assert (network.latency_seconds, network.bytes_per_second) == pytest.approx((1e-4, 2e9))


def test_efficiency_is_what_a_worker_yields_over_one_alone() -> None:
    rows = [row(1), row(4)]
    share = rows[0].step / (4 * rows[1].step)
    assert f"{100 * share:.1f} %" in measured_table(rows, 8).splitlines()[-1]
    assert "measured" in fitted_parameters(rows, LOAD, MACHINE, NETWORK, 8)


def test_simulated_curves_reach_the_issues_ends_and_preemptions_only_cost() -> None:
    curves = simulate(LOAD, 0.05, CheckpointPolicy())
    assert (curves["strong"][-1].workers, curves["strong"][-1].global_batch) == (32, 32)
    assert (curves["weak"][-1].workers, curves["weak"][-1].global_batch) == (4096, 131_072)
    one = curves["weak"][0]
    for calm, preempted in zip(curves["weak"], curves["weak, preempted"], strict=True):
        assert efficiency(preempted, one) < efficiency(calm, one) <= 1


def test_the_figure_is_a_picture(tmp_path: Path) -> None:
    draw(tmp_path / "curves.png", [row(1), row(2)], simulate(LOAD, 0.05, CheckpointPolicy()), 8, 0.05)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_two_real_workers_are_measured_and_written_down(tmp_path: Path) -> None:
    file = tmp_path / "scaling.json"
    options = ["--size", "demo", "--crop", "32", "--batch", "4", "--steps", "2", "--workers", "1", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "bench", "scaling", *options, "--json", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    one, two = found["rows"]
    assert (one["share"], two["share"]) == (4, 2)
    assert one["gradients"] == one["communication"] == 0 < two["gradients"]
    assert min(each["compute"] for each in (one, two)) > 0
    assert min(each["data"] for each in (one, two)) > 0
    assert "measured, 4 images per step" in done.stdout
    assert "simulated on assumed GPUs" in done.stdout


def test_more_workers_than_images_are_refused_before_anything_runs() -> None:
    from orchestrator.bench.__main__ import main

    assert main(["scaling", "--workers", "16", "--batch", "8"]) == 2
