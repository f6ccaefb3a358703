"""A plan warns of what is known before the start, and is silent about a job without pitfalls."""

from __future__ import annotations

import os

import pytest
import torch

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.planning.estimate import ComputeRate, rate_of
from orchestrator.planning.pitfalls import pitfalls
from orchestrator.planning.throughput import StepTimer, Throughput
from shards.crop_schedule import CropSchedule, TrainingStage
from shards.mixture import Mixture, MixtureEntry

GOOD = {
    "train": {"steps": 400, "warmup_steps": 20, "ema_decay": 0.98, "global_batch_size": 8},
    "validation": {"every_steps": 100},
    "checkpoint": {"every_steps": 100},
}
QUIET = ComputeRate(1e9, "", measured=True)


def job(**changes: dict[str, object]) -> Job:
    base: dict[str, object] = {"name": "x", "recipe": "fast", "setting": "derain"}
    base |= {"data": {"manifests": "x"}, "track": {"experiment": "x"}}
    sections = {name: {**GOOD.get(name, {}), **changes.get(name, {})} for name in {*GOOD, *changes}}
    found = job_from_mapping({**base, **sections})
    assert isinstance(found, Job)
    return found


def warnings(made: Job, steps: int = 400, samples: int = 100, rate: ComputeRate = QUIET) -> list[str]:
    return list(pitfalls(made, Mixture((MixtureEntry("rain", samples, 10),)), steps, rate))


def test_a_job_without_pitfalls_has_no_warning() -> None:
    assert warnings(job()) == []


@pytest.mark.parametrize(
    ("change", "just_possible", "key"),
    [
        ({"train": {"warmup_steps": 400}}, {"train": {"warmup_steps": 399}}, "train.warmup_steps (400)"),
        (
            {"validation": {"every_steps": 400}},
            {"validation": {"every_steps": 399}},
            "validation.every_steps (400)",
        ),
        (
            {"checkpoint": {"every_steps": 400}},
            {"checkpoint": {"every_steps": 399}},
            "checkpoint.every_steps (400)",
        ),
        ({"train": {"ema_decay": 0.999}}, {"train": {"ema_decay": 0.997}}, "train.ema_decay (0.999)"),
        ({"train": {"global_batch_size": 128}}, {"train": {"global_batch_size": 100}}, "has 100 samples"),
        (
            {"train": {"steps": None, "epochs": 16, "schedule": "release"}},
            {"train": {"steps": None, "epochs": 17, "schedule": "release"}},
            "train.schedule release",
        ),
    ],
)
def test_each_pitfall_is_one_warning_that_names_its_key(
    change: dict[str, dict[str, object]], just_possible: dict[str, dict[str, object]], key: str
) -> None:
    (warning,) = warnings(job(**change))
    assert key in warning
    assert warnings(job(**just_possible)) == []


def test_the_ema_warning_states_the_decay_that_is_reached() -> None:
    (warning,) = warnings(job(train={"ema_decay": 0.999}))
    assert f"{401 / 410:.3f} at the end" in warning


def test_times_of_quiet_machines_are_preferred_and_busy_ones_are_a_warning() -> None:
    made, stages = job(), CropSchedule((TrainingStage(0, 64, 8),))
    quiet, busy = Throughput(2.0, 100, 1, "CPU", 1.0), Throughput(9.0, 100, 1, "CPU", 10.0)
    only_busy = rate_of(made, stages, [(made, busy)])
    assert only_busy.busy
    assert "busy with other work" in warnings(made, rate=only_busy)[0]
    both = rate_of(made, stages, [(made, busy), (made, quiet)])
    assert not both.busy
    assert both.per_second == rate_of(made, stages, [(made, quiet)]).per_second


def test_records_of_older_versions_count_as_quiet() -> None:
    assert not Throughput(2.0, 100, 1, "CPU").is_busy


def test_a_run_records_the_load_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    timer = StepTimer()
    for _ in range(10):
        timer.step_ended()
    found = timer.throughput(1, torch.device("cpu"))
    assert found is not None
    assert found.load_per_core == 3.0
    assert found.is_busy


def test_a_kernel_behind_a_resize_to_less_than_its_radius_is_a_warning() -> None:
    def told(crop: int) -> list[str]:
        data = {"manifests": "x", "crop_pixels": crop, "mixture": {"mine": 1}}
        pipelines = {"mine": [{"use": "real_esrgan"}]}
        return warnings(job(data=data, degradations=pipelines, evaluate={"degradations": ["mine"]}))

    (warning,) = told(48)
    assert warning.startswith("degradations.mine.0.use: gaussian_blur has a kernel of up to 10 pixels")
    assert "has 48 pixels, 7 at the smallest scale before it" in warning
    assert told(64) == []
