"""A space gives jobs that can be run, or says why not, before anything starts."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.loader import dump_job, job_from_mapping, load_job
from orchestrator.config.search_space import RandomSampler, candidate, grid, job_keys, random_points, sample
from orchestrator.config.sweep_schema import Domain, SweepJob
from orchestrator.errors import JobFileError
from orchestrator.models.network import make
from tests.orchestrator.sweeps.conftest import make_sweep

__all__ = ["make_sweep"]  # a fixture

HEAD = """name: mine
kind: sweep
recipe: fast
setting: 5deg
data: {manifests: mine}
train: {steps: 90, warmup_steps: 5}
validation: {every_steps: 10}
track: {experiment: mine}
sweep:
  trials: 4
"""


def problems(folder: Path, text: str, trials: int = 4) -> str:
    path = folder / "sweep.yaml"
    path.write_text(HEAD.replace("trials: 4", f"trials: {trials}") + text)
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    return str(caught.value)


def test_every_problem_of_a_space_has_its_line(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "  space:\n"
        "    model.dmi: {choice: [12]}\n"
        "    train.learning_rate: {log_range: [1.0e-4, 1.0e-2]}\n"
        "    model.drop_path: {range: [0.0, 2.0]}\n"
        "    model.kernels: {choice: [dynamic, frozen]}\n"
        "    workers.max: {choice: [1, 2]}\n"
        "    loss.spd_weight: {choice: [0.1], when: {model.alignment: spd}}\n"
        "  constraints: [params < 3]\n",
    )
    assert "sweep.yaml:12  sweep.space.model.dmi" in told
    assert 'Did you mean "model.dim"?' in told
    assert ":13 " not in told
    assert "sweep.yaml:14" in told
    assert "less than 1" in told
    assert "sweep.yaml:15" in told
    assert "'frozen'" in told
    assert "sweep.yaml:16" in told
    assert "where and how fast a job runs" in told
    assert "sweep.yaml:17" in told
    assert 'depends on "model.alignment"' in told
    assert "sweep.yaml:18" in told
    assert "for example parameters <= 6.3M" in told
    assert told.endswith("6 problems. Nothing was started.")


@pytest.mark.parametrize(
    ("domain", "says"),
    [
        ("{range: [2, 1]}", "from the smaller to the larger number"),
        ("{log_range: [0, 1]}", "must begin above 0"),
        ("{choice: [1], range: [0, 1]}", "not choice and range together"),
        ("{points: 3}", "none is given"),
        ("{choice: [1, 2], points: 2}", "points divide a range"),
        ("[1, 2]", "write {choice: [1, 2]} for several values"),
    ],
)
def test_a_domain_that_is_none_says_what_to_write(tmp_path: Path, domain: str, says: str) -> None:
    assert says in problems(tmp_path, f"  space: {{loss.spd_weight: {domain}}}\n")


@pytest.mark.parametrize("name", ["pbt", "pb2"])
def test_population_based_training_refuses_keys_that_change_the_network_and_says_why(
    tmp_path: Path, name: str
) -> None:
    told = problems(
        tmp_path,
        "  space:\n"
        "    model.drop_path: {range: [0.0, 0.5]}\n"
        "    train.global_batch_size: {integer: [4, 8]}\n"
        "    loss.spd_weight: {range: [0.0, 0.1]}\n"
        "    train.learning_rate: {log_range: [1.0e-4, 1.0e-2]}\n"
        "    model.alignment: spd\n"
        f"  scheduler: {{name: {name}, first_steps: 10}}\n",
    )
    assert "model.drop_path cannot change during training: weights of one trial would not fit another" in told
    assert "train.global_batch_size cannot change during training" in told
    assert "loss.spd_weight 0.0 leaves out a part of the state" in told
    assert "train.learning_rate" in told.partition("Keys that can: ")[2]
    assert "sweep.space.train.learning_rate" not in told
    assert ("sweep.space.model.alignment" in told) is (name == "pb2")


def test_population_based_training_needs_several_trials(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "  space: {loss.spd_weight: {range: [0.1, 0.2]}}\n  scheduler: {name: pbt, first_steps: 10}\n",
        trials=1,
    )
    assert "at least two trials" in told


@pytest.mark.parametrize("name", ["hyperband", "pbt"])
def test_a_search_that_learns_does_not_go_with_trials_that_start_together(tmp_path: Path, name: str) -> None:
    told = problems(
        tmp_path,
        "  space: {loss.spd_weight: {range: [0.1, 0.2]}}\n  search: {method: tpe}\n"
        f"  scheduler: {{name: {name}, first_steps: 10}}\n",
    )
    assert f"{name} starts all trials together, so tpe would have no results to learn from" in told


@pytest.mark.parametrize("section", ["search: {method: bohb}", "scheduler: bohb"])
def test_bohb_is_refused_and_its_packages_are_named(tmp_path: Path, section: str) -> None:
    told = problems(tmp_path, f"  space: {{loss.spd_weight: {{range: [0.1, 0.2]}}}}\n  {section}\n")
    assert "bohb needs the packages hpbandster and ConfigSpace" in told


def test_old_names_of_keys_give_the_same_sweep(make_sweep) -> None:
    new = {"choice": [0.01, 0.1], "when": {"model.alignment": "spd"}}
    alignment = {"choice": ["none", "spd"]}
    searching = {"method": "tpe"}
    now = make_sweep(
        space={"model.alignment": alignment, "loss.spd_weight": {**new, "default": 0}},
        search={**searching, "second_objective": "parameters"},
    )
    before = make_sweep(
        space={"model.alignment": alignment, "loss.spd_weight": {**new, "otherwise": 0}},
        search={**searching, "against": "parameters"},
    )
    assert now == before


def test_searchers_of_other_packages_take_no_conditions(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "  space:\n    model.alignment: {choice: [none, spd]}\n"
        "    loss.spd_weight: {choice: [0.1, 0.2], when: {model.alignment: spd}}\n"
        "  search: {method: hyperopt}\n",
    )
    assert "`when` cannot be used with search method hyperopt" in told


def test_a_grid_over_a_range_asks_for_points(tmp_path: Path) -> None:
    told = problems(
        tmp_path, "  space: {loss.spd_weight: {log_range: [0.01, 0.1]}}\n  search: {method: grid}\n"
    )
    assert "for a grid, give `points`" in told


def test_rungs_lie_on_validations_and_before_the_end(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "  space: {loss.spd_weight: 0.1}\n  scheduler: {name: asha, first_steps: 15}\n  steps: 200\n",
    )
    assert "15 is not a multiple of validation.every_steps, 10. Nearest: 10 or 20." in told
    assert "200 is more than train.steps, 90" in told


def test_a_space_without_any_possible_candidate_is_refused(tmp_path: Path) -> None:
    told = problems(tmp_path, "  space: {model.dim: {choice: [7, 25]}}\n")
    assert "no candidate is possible" in told
    assert "Nearest" in told


def test_asha_does_not_go_with_a_second_objective(tmp_path: Path) -> None:
    told = problems(
        tmp_path,
        "  space: {model.dim: {choice: [12, 24]}}\n  search: {method: tpe, second_objective: parameters}\n"
        "  scheduler: {name: asha, first_steps: 10}\n",
    )
    assert "asha compares PSNR alone" in told


def test_a_winner_that_is_registered_needs_a_name_to_register_under(tmp_path: Path) -> None:
    told = problems(tmp_path, "  space: {loss.spd_weight: 0.1}\n  winner: {then: retrain}\n")
    assert "track.register_as" in told
    assert "name the keys that retraining changes" in told


def test_impossible_widths_and_ratios_never_become_a_job(make_sweep) -> None:
    job = make_sweep(space={"model.dim": {"choice": [8, 12]}, "model.branch_ratios": {"choice": [[1, 1, 1]]}})
    refused, accepted = (candidate(job, values) for values in grid(job.sweep.space))
    assert refused.job is None
    assert "Nearest: 6 or 12" in refused.impossible
    assert accepted.job is not None
    assert accepted.job.model.dim == 12


def test_a_trial_is_the_sweeps_training_with_its_values_and_nothing_else(make_sweep) -> None:
    job = make_sweep({"workers": {"min": 2, "max": 4}, "track": {"experiment": "e", "register_as": "mine"}})
    made = candidate(job, {"model.dim": 18, "loss.spd_weight": 0.002}, "mine-t001").job
    assert made is not None
    assert (made.name, made.model.dim, made.loss.spd_weight) == ("mine-t001", 18, 0.002)
    assert (made.workers.min, made.workers.max) == (2, 2)
    assert made.track.register_as is None
    same = made.model_dump(mode="json", exclude={"name", "model", "loss", "workers", "track"})
    assert all(job.model_dump(mode="json")[key] == value for key, value in same.items() if key != "kind")


def test_any_argument_of_a_users_network_is_a_parameter(make_sweep, tmp_path) -> None:
    (tmp_path / "swept_network.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, width, deep, slope=0.1):\n"
        "        super().__init__(nn.Conv2d(3, width, 1), nn.LeakyReLU(slope))\n"
        "        self.extend(nn.Conv2d(width, width, 1) for _ in range(deep['layers']))\n"
        "        self.append(nn.Conv2d(width, 3, 1))\n"
    )
    arguments = {"width": 4, "deep": {"layers": 1}}
    model = {"class": "swept_network:Net", "path": str(tmp_path), "arguments": arguments}
    space = {
        "model.arguments.width": {"choice": [4, 8]},
        "model.arguments.deep.layers": {"integer": [1, 2], "points": 2},
        "model.arguments.slope": {"choice": [0.2]},
    }
    job = make_sweep({"model": model, "loss": {"spd_weight": 0}}, space=space)
    sizes = []
    for values in grid(job.sweep.space):
        made = candidate(job, values).job
        assert made is not None
        network = make(made.model).inner
        assert network[1].negative_slope == 0.2
        sizes.append(sum(p.numel() for p in network.parameters()))
    assert sizes == [4 * w + n * (w * w + w) + 3 * w + 3 for w in (4, 8) for n in (1, 2)]


def test_a_condition_decides_whether_a_knob_exists(make_sweep) -> None:
    space = {
        "model.alignment": {"choice": ["none", "spd"]},
        "loss.spd_weight": {"choice": [0.01, 0.1], "when": {"model.alignment": "spd"}, "default": 0},
    }
    job = make_sweep(space=space)
    points = list(grid(job.sweep.space))
    assert points == [
        {"model.alignment": "none"},
        {"model.alignment": "spd", "loss.spd_weight": 0.01},
        {"model.alignment": "spd", "loss.spd_weight": 0.1},
    ]
    without = candidate(job, points[0]).job
    assert without is not None
    assert without.loss.spd_weight == 0


def test_variants_change_several_keys_at_once(make_sweep) -> None:
    space = {
        "ablation": {"variants": {"full": {}, "no CL": {"model.alignment": "none", "loss.spd_weight": 0}}}
    }
    job = make_sweep(space=space)
    assert [job_keys(job.sweep.space, values) for values in grid(job.sweep.space)] == [
        {},
        {"model.alignment": "none", "loss.spd_weight": 0},
    ]
    assert all(candidate(job, values).job for values in grid(job.sweep.space))


def test_a_resolved_sweep_reads_back_as_itself(make_sweep) -> None:
    import yaml

    job = make_sweep(constraints=["parameters <= 0.5M"], search={"method": "tpe"})
    again = job_from_mapping(yaml.safe_load(dump_job(job)))
    assert isinstance(again, SweepJob)
    assert again == job


@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 500),
    st.floats(1e-8, 1e3),
    st.floats(1.001, 1e6),
    st.integers(-50, 50),
    st.integers(1, 9),
)
def test_draws_lie_in_their_domain_and_depend_on_seed_and_index_alone(
    seed: int, index: int, low: float, factor: float, first: int, more: int
) -> None:
    space = {
        "a": Domain(log_range=(low, low * factor)),
        "b": Domain(range=(-low, low)),
        "c": Domain(integer=(first, first + more)),
        "d": Domain(choice=("x", "y", "z")),
    }
    values = sample(space, RandomSampler(seed, index))
    assert values == sample(space, RandomSampler(seed, index))
    assert low <= values["a"] <= low * factor
    assert -low <= values["b"] <= low
    assert first <= values["c"] <= first + more
    assert values["d"] in ("x", "y", "z")
    assert json.loads(json.dumps(values)) == values


@given(st.integers(2, 9), st.floats(1e-6, 1.0), st.floats(1.5, 1e5))
def test_a_cut_log_range_has_both_ends_and_equal_ratios(points: int, low: float, factor: float) -> None:
    values = Domain(log_range=(low, low * factor), points=points).values
    assert values is not None
    assert (len(values), values[0], values[-1]) == (points, low, low * factor)
    steps = [math.log(b / a) for a, b in itertools.pairwise(values)]
    assert all(abs(step - steps[0]) < 1e-3 for step in steps)


def test_another_index_or_seed_is_another_draw() -> None:
    space = {"a": Domain(range=(0, 1))}
    drawn = {sample(space, RandomSampler(seed, index))["a"] for seed in range(5) for index in range(20)}
    assert len(drawn) == 100


def test_random_points_are_all_points_of_a_small_space_each_once() -> None:
    space = {"a": Domain(choice=("x", "y", "z")), "b": Domain(integer=(1, 3))}
    points = list(random_points(space, seed=1))
    assert len(points) == 9
    assert len({str(point) for point in points}) == 9
    assert points != list(random_points(space, seed=2))
