"""A run whose numbers are not finite fails, and leaves no result, no version and no checkpoint behind."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from torch import Tensor, nn

from mirage import MIRAGE, ModelConfig
from mirage.weights import dumps, not_finite
from orchestrator.config.constraints import Costs
from orchestrator.config.schema import METRIC
from orchestrator.errors import EvaluationError, RegistryError, TrainingError
from orchestrator.evaluation.extremes import extremes
from orchestrator.evaluation.image_results import ImageResult, evaluate_image
from orchestrator.evaluation.ranking import rank_value
from orchestrator.evaluation.scores import ImageScore
from orchestrator.registry import registration
from orchestrator.run_files import RESULT
from orchestrator.runner import run_any
from orchestrator.sweeps.trial_table import TrialRow, TrialTable
from orchestrator.tracking.uri import resolve_tracking_uri
from orchestrator.training.checkpoint import Retention
from orchestrator.training.engines.base import Engine
from orchestrator.training.finite import require_finite_scores, require_taken_steps
from shards.evaluation import EvalItem
from tests.orchestrator.training.test_loop import CPU, Listener, run

WRONG = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_a_diverged_run_ends_with_one_error_and_registers_nothing(
    small_job, tmp_path, at_home, rate: float
) -> None:
    job = small_job(
        name=f"diverges-{rate:.0e}".replace("+", ""),
        storage=str(tmp_path),
        train={"learning_rate": rate, "ema_decay": None},
        checkpoint={"every_steps": 1000},
        track={"register_as": "diverges"},
        data={"pack": small_job().data.pack.model_dump(mode="json")},
    )
    with pytest.raises(TrainingError, match="diverged"):
        run_any(job, lambda line: None, in_process=True)
    assert not list(tmp_path.rglob(RESULT))
    assert not list(tmp_path.rglob("weights/*"))
    assert not MlflowClient(resolve_tracking_uri(None)).search_model_versions("name = 'diverges'")


class Spoilt(Engine):
    """An engine that leaves one weight NaN after a step, which the gradient does not show."""

    def __init__(self, device: torch.device, after: int) -> None:
        super().__init__(device)
        self.left = after

    def step(self, optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
        norm = super().step(optimizer, max_norm)
        self.left -= 1
        if self.left == 0:
            with torch.no_grad():
                optimizer.param_groups[0]["params"][0].view(-1)[0] = math.nan
        return norm


def test_weights_that_are_not_finite_never_replace_a_checkpoint(small_job, small_data, tmp_path) -> None:
    job = small_job(checkpoint={"every_steps": 1, "keep": 1, "keep_best": 0})
    with pytest.raises(TrainingError, match="not finite at step 4"):
        run(job, small_data, tmp_path, engine=Spoilt(CPU, 4))
    (record,) = (tmp_path / "checkpoints").iterdir()
    assert json.loads(record.read_bytes())["step"] == 3
    driver = Listener()
    assert run(job, small_data, tmp_path, driver).status == "finished"
    assert driver.resumed_at() == [3]


class Overflowing(Engine):
    """An engine whose gradient overflows in all steps but the first, while the forward pass is finite."""

    steps = 0

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        self.steps += 1
        return super().clip(parameters, max_norm) if self.steps == 1 else torch.tensor(math.inf)


def test_a_run_that_skipped_most_steps_does_not_finish(small_job, small_data, tmp_path) -> None:
    for _ in range(2):  # nor when it is submitted again
        with pytest.raises(TrainingError, match="5 of 6 steps were skipped"):
            run(small_job(), small_data, tmp_path, engine=Overflowing(CPU))
    assert not (tmp_path / RESULT).exists()


def test_a_step_whose_gradient_alone_overflows_leaves_batch_norm_alone(
    small_job, small_data, tmp_path
) -> None:
    job = small_job(train={"ema_decay": None}, checkpoint={"every_steps": 1, "keep": 9})
    with pytest.raises(TrainingError, match="skipped"):
        run(job, small_data, tmp_path, engine=Overflowing(CPU))
    records = [json.loads(path.read_bytes()) for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert len({record["blobs"]["model"] for record in records}) == 1


def score(psnr: float = 30.0, ssim: float = 0.9) -> ImageScore:
    return ImageScore("a", "haze", psnr, ssim, 20.0, 0.8, (1.0,) * 6)


@pytest.mark.parametrize(
    "wrong", [score(math.nan), score(-math.inf), score(ssim=math.nan), score(ssim=math.inf)]
)
def test_a_score_that_is_not_finite_is_named(wrong: ImageScore) -> None:
    with pytest.raises(TrainingError, match="1 of 3 scores are not finite, first haze of a"):
        require_finite_scores([score(), wrong, score()])


def test_an_image_that_equals_the_clean_one_has_an_infinite_psnr_and_passes() -> None:
    require_finite_scores([score(), score(math.inf, 1.0)])


def test_half_of_the_steps_may_be_skipped() -> None:
    require_taken_steps(3, 6)
    with pytest.raises(TrainingError, match="4 of 6"):
        require_taken_steps(4, 6)


values = st.one_of(st.floats(), st.sampled_from([*WRONG, None, "31", True, [1.0]]))


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=8), st.booleans(), st.integers(1, 3))
def test_no_score_that_is_not_finite_keeps_a_checkpoint(
    scores: list[object], larger: bool, best: int
) -> None:
    records = {f"{i:09d}-x": {"metrics": {METRIC: value}} for i, value in enumerate(scores)}
    records["999999999-x"] = {"metrics": {}}
    kept = Retention(1, best, larger_is_better=larger).kept(records, 0) - {"999999999-x"}
    finite = [value for value in scores if rank_value(value) > -math.inf]
    expected = sorted(finite, reverse=larger)[:best]  # type: ignore[type-var]
    assert sorted((records[name]["metrics"][METRIC] for name in kept), reverse=larger) == expected


def test_the_newest_is_the_one_of_the_highest_step_however_many_digits_it_has() -> None:
    records = {name: {"metrics": {}} for name in ("999999999-x", "1000000000-x")}
    assert Retention(1, 0).kept(records, 0) == {"1000000000-x"}


def row(number: int, psnr: float) -> TrialRow:
    trial = TrialRow(number, {}, "", Costs(1, 1, 1, 1), status="finished", step=1)
    trial.observed = {1: {METRIC: psnr}}
    return trial


@pytest.mark.parametrize("wrong", WRONG)
def test_a_trial_whose_score_is_not_finite_is_never_the_best(wrong: float) -> None:
    table = TrialTable([row(0, wrong), row(1, -3.0), row(2, wrong), row(3, -2.0)])
    assert [trial.number for trial in table.ranked()][:2] == [3, 1]
    assert table.best() is table.trials[3]
    assert TrialTable([row(0, wrong)]).best() is None
    assert row(0, wrong).curve == []


def result(image: str, psnr: float) -> ImageResult:
    return ImageResult("set", "digest", "", "haze", image, "rgb", 8, 8, psnr, 0.9, None, 20.0, 0.8, 0.1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_an_image_without_a_score_is_shown_as_the_worst(order: tuple[int, ...]) -> None:
    found = [result("a", 30.0), result("b", math.nan), result("c", 20.0)]
    shown = [(rank, one.image) for rank, one in extremes([found[i] for i in order], 1)]
    assert shown == [("worst", "b"), ("best", "a")]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", ["patch_embed", "running_var"])
def test_a_version_whose_weights_are_not_finite_is_not_registered(wrong: float, name: str) -> None:
    config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)
    model = MIRAGE(config)
    assert not_finite(model) == []
    tensors = model.state_dict()
    key = next(key for key in tensors if name in key)
    tensors[key].view(-1)[-1] = wrong
    assert not_finite(model) == [key]
    with pytest.raises(RegistryError, match=f"1 tensors are not finite, first {key}"):
        registration.register(
            "sqlite:///not-there.db",
            "name",
            run_id="none",
            weights=dumps(model),
            card="",
            metrics={},
            tags={},
            idempotency_key="key",
        )
    assert not Path("not-there.db").exists()


def test_a_mask_of_minus_infinity_is_no_weight() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([-math.inf]))
    assert not_finite(module) == []


def test_a_result_of_an_older_version_that_is_not_finite_is_not_published(
    small_job, tmp_path, at_home
) -> None:
    job = small_job(
        name="old-nan", storage=str(tmp_path / "store"), track={"register_as": None}, example=None
    )
    run_any(job, lambda line: None, in_process=True)
    (file,) = tmp_path.rglob(RESULT)
    result = json.loads(file.read_bytes())
    del result["sha256"]
    result["scores"][0]["psnr"] = math.nan
    file.chmod(0o644)
    file.write_text(json.dumps(result))
    with pytest.raises(TrainingError, match=r"1 of .* scores are not finite"):
        run_any(job, lambda line: None, in_process=True)


@pytest.mark.parametrize("wrong", WRONG)
def test_an_evaluation_of_a_model_whose_output_is_not_finite_is_one_error(wrong: float) -> None:
    image = np.zeros((16, 16, 3), np.uint8)

    def restore(degraded: Tensor) -> Tensor:
        out = degraded.clone()
        out[0, 3, 5] = wrong
        return out

    item = EvalItem("photograph", "haze", image, image)
    with pytest.raises(EvaluationError, match="set: haze of photograph: the model's output is not finite"):
        evaluate_image(item, restore, ["rgb"], ("set", "digest"), CPU)
