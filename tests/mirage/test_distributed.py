import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mirage
from tests.mirage import world

SHARES = [3, 3, 2]
Results = dict[str, dict[str, Tensor]]

# The covariance removes the mean: these two gradients are zero up to rounding.
ZERO_GRADIENTS = ("grad.spd_shallow.reduce.bias", "grad.spd_latent.reduce.bias")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Return the results for the same 8 images in one process and in three."""
    folder = tmp_path_factory.mktemp("worlds")
    root = str(Path(mirage.__file__).parents[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    sizes = ",".join(map(str, SHARES))
    processes, logs = [], []
    for rank in range(len(SHARES)):
        command = [
            str(Path(__file__).with_name("world.py")),
            str(rank),
            sizes,
            str(folder / "meet"),
            str(folder / "out"),
        ]
        logs.append(folder / f"{rank}.log")
        with logs[-1].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", *command], env=environment, stderr=log
                )
            )
    try:
        alone = {scenario: world.run(scenario, 0, [sum(SHARES)]) for scenario in world.SCENARIOS}
        ends = [process.wait(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = {
        log.name: (end, log.read_text()[-4000:]) for end, log in zip(ends, logs, strict=True) if end != 0
    }
    assert not failed
    return alone, torch.load(folder / "out")


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor], kind: str) -> float:
    names = [name for name in a if name.startswith(kind) and name not in ZERO_GRADIENTS]
    assert names
    return max(float((a[name] - b[name]).abs().max()) for name in names)


@pytest.mark.parametrize("scenario", ["whole", "ddp", "checkpointed"])
@pytest.mark.parametrize("kind", ["loss.", "grad.", "buffer."])
def test_losses_gradients_and_statistics_do_not_depend_on_the_number_of_processes(
    worlds: tuple[Results, Results], scenario: str, kind: str
) -> None:
    assert largest_difference(worlds[0][scenario], worlds[1][scenario], kind) < 1e-9


def test_running_statistics_are_equal_on_all_ranks(worlds: tuple[Results, Results]) -> None:
    spread = {k: v for k, v in worlds[1]["whole"].items() if k.startswith("spread.")}
    assert spread
    assert all(float(value.abs().max()) == 0 for value in spread.values())


@pytest.mark.parametrize(
    "scenario", ["broken_batch_norm", "broken_negatives", "broken_drop_path", "broken_weighting"]
)
def test_leaving_one_thing_out_is_noticed(worlds: tuple[Results, Results], scenario: str) -> None:
    assert largest_difference(worlds[0][scenario], worlds[1][scenario], "grad.") > 1e-6


def test_local_batch_norm_leaves_each_rank_its_own_statistics(worlds: tuple[Results, Results]) -> None:
    spread = [v for k, v in worlds[1]["broken_batch_norm"].items() if k.startswith("spread.")]
    assert max(float(value.abs().max()) for value in spread) > 1e-6
