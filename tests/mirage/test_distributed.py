import pytest
import torch
from torch import Tensor

from tests.mirage import world
from tests.processes import run_processes

SHARES = [3, 3, 2]
Results = dict[str, dict[str, Tensor]]

# The covariance removes the mean: these two gradients are zero up to rounding.
ZERO_GRADIENTS = ("grad.spd_shallow.reduce.bias", "grad.spd_latent.reduce.bias")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results]:
    """Return the results for the same 8 images in one process and in three."""
    folder = tmp_path_factory.mktemp("worlds")
    run_processes(world.main, len(SHARES), SHARES, str(folder / "meet"), folder / "out")
    alone = {scenario: world.run(scenario, 0, [sum(SHARES)]) for scenario in world.SCENARIOS}
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
