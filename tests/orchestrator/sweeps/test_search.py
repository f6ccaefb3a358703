"""Searchers find what is there, respect constraints, and learn from trials that ended in any way."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from mirage import ModelConfig
from mirage.cost import macs, parameters
from orchestrator.config.constraints import Costs, format_quantity, parse, violations
from orchestrator.config.schema import METRIC
from orchestrator.config.search_space import candidate, grid
from orchestrator.config.sweep_schema import rungs
from orchestrator.errors import SweepError
from orchestrator.planning.candidate_costs import cost_of
from orchestrator.planning.sweep_plan import MAX_CONSECUTIVE_REJECTIONS, plan_sweep, preview
from orchestrator.sweeps.ray_search import searcher_of
from tests.orchestrator.sweeps.simulated import MemoryStore, SimulatedTune, run

WEIGHT = {"loss.spd_weight": {"log_range": [1e-4, 1.0]}, "model.dim": {"choice": [6, 12, 18, 24]}}


def score(values) -> float:
    return 25 - abs(math.log10(values["loss.spd_weight"]) + 2) - abs(values["model.dim"] - 18) / 6


def search(job, count: int) -> list[float]:
    """Return the scores of `count` trials, each of which ends before the next is suggested."""
    searcher, decode = searcher_of(job.sweep)
    scores = []
    for index in range(count):
        values = decode(searcher.suggest(str(index)))
        scores.append(score(values))
        searcher.on_trial_complete(str(index), {METRIC: scores[-1], "parameters": values["model.dim"] ** 2})
    return scores


def test_tpe_finds_more_than_random_search(make_sweep) -> None:
    better = 0
    for seed in range(5):
        learned = search(make_sweep(space=WEIGHT, search={"method": "tpe", "seed": seed}), 24)
        drawn = search(make_sweep(space=WEIGHT, search={"method": "random", "seed": seed}), 24)
        better += sum(learned[12:]) > sum(drawn[12:])
    assert better >= 4


def test_optuna_is_another_name_of_tpe(make_sweep) -> None:
    both = [search(make_sweep(space=WEIGHT, search={"method": name}), 12) for name in ("tpe", "optuna")]
    assert both[0] == both[1]


def test_a_second_objective_moves_tpe_to_small_models(make_sweep) -> None:
    def sizes(objective: str | None) -> float:
        searching = {"method": "tpe", "second_objective": objective, "startup_trials": 4}
        job = make_sweep(space=WEIGHT, search=searching, trials=20)
        table = run(job)
        return sum(row.values["model.dim"] for row in table.trials) / 20

    assert sizes("parameters") < sizes(None)


@pytest.mark.parametrize("method", ["random", "tpe", "grid"])
def test_nothing_runs_twice_and_a_small_space_ends(make_sweep, method: str) -> None:
    space = {
        "model.dim": {"choice": [6, 12]},
        "model.refinement_blocks": {"integer": [0, 2], "points": 3},
    }
    job = make_sweep(space=space, search={"method": method, "startup_trials": 2}, trials=9)
    table = run(job)
    assert len({str(row.values) for row in table.trials}) == len(table.trials) == 6
    assert len(table.notes) == 1


def test_a_missing_package_is_named(make_sweep) -> None:
    job = make_sweep(space=WEIGHT, search={"method": "hyperopt"})
    with pytest.raises(SweepError, match="not installed, run pip install hyperopt"):
        searcher_of(job.sweep)


def test_a_search_without_candidates_ends(make_sweep) -> None:
    space = {"model.dim": {"choice": [6, 7]}, "loss.spd_weight": {"log_range": [0.01, 0.1]}}
    job = make_sweep(space=space, constraints=["parameters >= 1M"], trials=3)
    table = run(job)
    assert not table.trials
    assert len(table.rejected) == MAX_CONSECUTIVE_REJECTIONS
    assert "candidates in a row were rejected" in table.notes[0]


def test_no_trial_starts_after_the_budget(make_sweep) -> None:
    job = make_sweep(max_device_hours=100 / 3600, search={"method": "grid"}, trials=9)
    table = run(job)  # a trial of 90 steps takes 90 device-seconds here
    assert [row.status for row in table.trials] == ["finished", "finished"]
    assert "max_device_hours" in table.notes[0]


# --- constraints ----------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_model(make_sweep) -> None:
    job = candidate(make_sweep(), {"model.dim": 18}).job
    assert job is not None
    found = cost_of(job)
    config = job.model.build()
    assert (found.parameters, found.macs_224) == (parameters(config), macs(config, 224, 224))
    assert found.parameters_at_inference < found.parameters


def test_training_memory_grows_with_crop_batch_and_average_and_shrinks_with_workers(make_sweep) -> None:
    def memory(**job) -> int:
        made = candidate(make_sweep(job), {}).job
        assert made is not None
        return cost_of(made).training_memory

    train = {"steps": 90, "global_batch_size": 8, "warmup_steps": 5, "precision": "fp32"}
    usual = memory()
    assert memory(data={"manifests": "mine", "crop_pixels": 128}) > 3 * usual
    assert memory(train={**train, "global_batch_size": 16}) > 1.5 * usual
    assert memory(train={**train, "micro_batches": 2}) < usual
    assert memory(train={**train, "activation_checkpointing": "all"}) < usual
    assert memory(workers={"min": 2, "max": 2}) < usual
    assert (
        memory(workers={"min": 1, "max": 1, "gpus": 1}) > 1.3 * usual
    )  # its kernels keep more than those of a CPU


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from(["<=", "<", ">=", ">"]))
def test_a_constraint_is_the_comparison_it_states(value: int, limit: int, relation: str) -> None:
    costs = Costs(value, 0, 0, 0)
    violated = bool(violations(costs, [f"parameters {relation} {limit}"]))
    assert violated != eval(f"{value} {relation} {limit}")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("parameters<=6.3M", 6.3e6), ("macs_224 <= 17G", 17e9), ("training_memory < 40GiB", 40 * 2**30)],
)
def test_units_are_read(text: str, limit: float) -> None:
    assert parse(text).limit == pytest.approx(limit)


def test_the_papers_tiny_model_meets_the_budget_that_its_small_one_exceeds() -> None:
    def costs(config: ModelConfig) -> Costs:
        return Costs(parameters(config), 0, macs(config, 224, 224), 0)

    budget = ["parameters <= 6.3M", "macs_224 <= 17G"]
    assert violations(costs(ModelConfig.tiny()), budget) == ""
    assert (
        violations(costs(ModelConfig.small()), budget)
        == "parameters 9.68M, not <= 6.3M; macs_224 26.68G, not <= 17G"
    )
    assert format_quantity("training_memory", 2**30) == "1.00 GiB"


def test_expensive_candidates_never_start_and_are_recorded(make_sweep) -> None:
    job = make_sweep(search={"method": "grid"}, trials=100, constraints=["parameters <= 0.45M"])
    table = run(job)
    assert table.rejected
    assert all("not <= 0.45M" in one.reason for one in table.rejected)
    assert all(row.costs.parameters <= 450_000 for row in table.trials)
    assert len(table.rejected) + len(table.trials) == 27


def test_a_searcher_learns_of_rejected_and_failed_trials_as_the_worst(make_sweep) -> None:
    job = make_sweep(search={"method": "grid"}, trials=4, constraints=["parameters <= 0.9M"])
    simulated = SimulatedTune(job, MemoryStore(), fails={1: 10})
    told: dict[str, float] = {}

    class Listening(Searcher):
        def suggest(self, trial_id):
            return next(points)

        def on_trial_complete(self, trial_id, result=None, error=False):
            told[trial_id] = result[METRIC]

    points = grid(job.sweep.space)
    simulated.search._searcher = Listening(metric=METRIC, mode="max")
    table = simulated.run()
    scored = [row.psnr for row in table.trials if row.status == "finished"]
    failed = next(score for name, score in told.items() if name.startswith("00001"))
    assert failed < min(scored)
    assert len(told) == len(table.trials) + len(table.rejected)


# --- stopping -------------------------------------------------------------------------------------------------


@given(st.integers(1, 500), st.integers(2, 5), st.integers(1, 100_000))
def test_rungs_grow_by_the_reduction_and_lie_before_the_end(first: int, reduction: int, length: int) -> None:
    found = rungs(first, reduction, length)
    assert all(step < length for step in found)
    assert all(b == a * reduction for a, b in itertools.pairwise(found))
    assert (not found) == (first >= length)


# --- planning -------------------------------------------------------------------------------------------------


def test_the_plan_shows_the_trials_that_will_run_and_the_rejected_ones(
    make_sweep, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    job = make_sweep(
        {"storage": str(tmp_path / "empty")},
        search={"method": "random"},
        trials=5,
        constraints=["parameters <= 0.9M"],
    )
    seen = preview(job)
    table = run(job)
    assert [values for values, _, _ in seen.accepted] == [trial.values for trial in table.trials]
    assert [why for _, why in seen.rejected] == [one.reason for one in table.rejected]
    text = plan_sweep(job)
    assert "0.001 to 0.1, logarithmic, 3 points in a grid" in text
    assert f"{len(seen.rejected)} rejected" in text
    assert "a full grid has 27 points" in text
    assert len(list(grid(job.sweep.space))) == 27


def test_a_sweep_is_planned_where_the_class_requires_the_argument_that_is_searched(
    make_sweep, tmp_path
) -> None:
    (tmp_path / "planned_network.py").write_text(
        "from torch import nn\n\nclass Net(nn.Conv2d):\n    def __init__(self, side):\n"
        "        if side % 2 == 0:\n            raise ValueError('an even side')\n"
        "        super().__init__(3, 3, side, padding='same')\n"
    )
    model = {"class": "planned_network:Net", "path": str(tmp_path)}
    job = make_sweep({"model": model}, space={"model.arguments.side": {"choice": [1, 2, 3]}})
    text = plan_sweep(job)
    assert "an even side" in text
    assert "2 accepted" in text
    assert all(f"side {side}" in text for side in (1, 3))
