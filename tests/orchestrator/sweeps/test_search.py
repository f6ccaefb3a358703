"""Searches find what is there, cost nothing where a candidate is too dear, and stop what is no use."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirage import ModelConfig
from mirage.cost import macs, parameters
from orchestrator.config.constraints import Costs, amount, parse, rejection
from orchestrator.config.search_space import candidate, grid
from orchestrator.config.sweep_schema import rungs
from orchestrator.sweeps.costs import cost_of
from orchestrator.sweeps.plan import plan_sweep, preview
from orchestrator.sweeps.search import Tried, propose
from orchestrator.sweeps.successive_halving import decide
from shards.store import LocalStore
from tests.orchestrator.sweeps.given import run

WEIGHT = {"loss.spd_weight": {"log_range": [1e-4, 1.0]}, "model.dim": {"choice": [6, 12, 18, 24]}}


def score(values) -> float:
    return 25 - abs(math.log10(values["loss.spd_weight"]) + 2) - abs(values["model.dim"] - 18) / 6


def search(job, count: int) -> list[Tried]:
    tried: list[Tried] = []
    for _ in range(count):
        made = propose(job.sweep, tried)
        assert made is not None
        tried.append(Tried(made.values, (score(made.values),)))
    return tried


def test_tpe_finds_more_than_draws_do(make_sweep) -> None:
    better = 0
    for seed in range(5):
        learned = search(make_sweep(space=WEIGHT, search={"method": "tpe", "seed": seed}), 24)
        drawn = search(make_sweep(space=WEIGHT, search={"method": "random", "seed": seed}), 24)
        last = [t.scores[0] for t in learned[12:] if t.scores]
        better += sum(last) / len(last) > sum(t.scores[0] for t in drawn[12:] if t.scores) / 12
    assert better >= 4


def test_a_second_objective_moves_tpe_to_small_models(make_sweep) -> None:
    def sizes(against: str | None) -> float:
        job = make_sweep(space=WEIGHT, search={"method": "tpe", "against": against, "startup_trials": 4})
        tried: list[Tried] = []
        for _ in range(24):
            made = propose(job.sweep, tried)
            assert made is not None
            scores = (25.0 + made.values["model.dim"] / 100, made.values["model.dim"] ** 2.0)
            tried.append(Tried(made.values, scores if against else scores[:1]))
        return sum(one.values["model.dim"] for one in tried) / len(tried)

    assert sizes("parameters") < sizes(None)


def test_nothing_is_proposed_twice_and_a_small_space_ends(make_sweep) -> None:
    space = {"model.dim": {"choice": [6, 12]}, "model.refinement_blocks": {"integer": [0, 2]}}
    for method in ("random", "tpe"):
        job = make_sweep(space=space, search={"method": method, "startup_trials": 2})
        tried = search_all(job)
        assert len(tried) == 6
        assert len({str(one.values) for one in tried}) == 6


def search_all(job) -> list[Tried]:
    tried: list[Tried] = []
    while (made := propose(job.sweep, tried)) is not None:
        tried.append(Tried(made.values, (1.0,)))
    return tried


def test_tpe_takes_failed_stopped_and_running_trials(make_sweep) -> None:
    job = make_sweep(space=WEIGHT, search={"method": "tpe", "startup_trials": 1})
    tried = [
        Tried({"loss.spd_weight": 0.1, "model.dim": 6}, (20.0,)),
        Tried({"loss.spd_weight": 0.2, "model.dim": 6}, (19.0,), step=10, at_end=False),
        Tried({"loss.spd_weight": 0.3, "model.dim": 6}, None),
        Tried({"loss.spd_weight": 0.4, "model.dim": 6}, None, running=True),
    ]
    made = propose(job.sweep, tried)
    assert made is not None
    assert made.why == "tpe, from 2 trials"
    assert made == propose(job.sweep, tried)


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
    assert memory(workers={"min": 1, "max": 1, "gpus": 1}) > 2 * usual


@given(st.integers(0, 10**12), st.integers(0, 10**12), st.sampled_from(["<=", "<", ">=", ">"]))
def test_a_constraint_is_the_comparison_it_states(value: int, limit: int, relation: str) -> None:
    costs = Costs(value, 0, 0, 0)
    broken = bool(rejection(costs, [f"parameters {relation} {limit}"]))
    assert broken != eval(f"{value} {relation} {limit}")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("parameters<=6.3M", 6.3e6), ("macs_224 <= 17G", 17e9), ("training_memory < 40GiB", 40 * 2**30)],
)
def test_units_are_read(text: str, limit: float) -> None:
    assert parse(text).limit == pytest.approx(limit)


def test_the_papers_models_stand_on_either_side_of_the_issues_budget() -> None:
    def costs(config: ModelConfig) -> Costs:
        return Costs(parameters(config), 0, macs(config, 224, 224), 0)

    budget = ["parameters <= 6.3M", "macs_224 <= 17G"]
    assert rejection(costs(ModelConfig.tiny()), budget) == ""
    assert (
        rejection(costs(ModelConfig.small()), budget)
        == "parameters 9.68M, not <= 6.3M; macs_224 26.68G, not <= 17G"
    )
    assert amount("training_memory", 2**30) == "1.00 GiB"


def test_too_dear_candidates_are_never_begun_and_are_written_down(make_sweep, tmp_path) -> None:
    job = make_sweep(search={"method": "grid"}, trials=100, constraints=["parameters <= 0.45M"])
    table, _ = run(job, LocalStore(tmp_path))
    assert table.rejected
    assert all("not <= 0.45M" in one.reason for one in table.rejected)
    assert all(trial.costs.parameters <= 450_000 for trial in table.trials)
    assert len(table.rejected) + len(table.trials) == 27


# --- stopping -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 40), max_size=30), st.floats(0, 40), st.integers(2, 5))
def test_a_rung_lets_the_best_share_pass(before: list[float], psnr: float, reduction: int) -> None:
    better = sum(other > psnr for other in before)
    decision = decide(100, psnr, before, reduction)
    assert decision.stop == (better >= max(1, (len(before) + 1) // reduction))
    if all(psnr >= other for other in before):
        assert not decision.stop


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
    table, _ = run(job, LocalStore(tmp_path / "book"))
    assert [values for values, _, _ in seen.accepted] == [trial.values for trial in table.trials]
    assert [why for _, why in seen.rejected] == [one.reason for one in table.rejected]
    text = plan_sweep(job)
    assert "0.001 to 0.1, logarithmic, 3 points in a grid" in text
    assert f"{len(seen.rejected)} rejected" in text
    assert "a full grid has 27 points" in text
    assert len(list(grid(job.sweep.space))) == 27
