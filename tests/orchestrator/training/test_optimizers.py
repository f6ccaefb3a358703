"""Every optimiser with every schedule trains, on any number of workers, and resumes to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import EngineChoice, Job, Train
from orchestrator.data import datasets
from orchestrator.errors import ModelError, TrainingError
from orchestrator.runner import plan_any
from orchestrator.training import loss_network, optimizers
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.factory import engine_for
from shards.dataset import Dataset
from shards.store import LocalStore
from tests.claims import assert_same_weights, final_weights
from tests.mirage.test_perceptual import published
from tests.orchestrator.conftest import SMALL
from tests.orchestrator.training.test_loop import CPU, Listener, run
from tests.processes import run_processes

STEPS = 4
OPTIMIZERS = {
    "adamw": {"learning_rate": 1e-2},
    "adam": {"learning_rate": 1e-2, "weight_decay": 0.1},
    "sgd": {"learning_rate": 1e-1, "momentum": 0.9, "nesterov": True},
    "plain sgd": {"optimizer": "sgd", "learning_rate": 1e-1, "momentum": 0.0},
    "lion": {"learning_rate": 1e-3, "betas": [0.9, 0.99]},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "release": {"steps": None, "epochs": 4.0, "schedule_epochs": 40.0},
    "cosine": {"minimum_rate": 1e-5},
    "restarts": {"cycles": [{"steps": 1}, {"steps": 2, "weight": 0.5, "minimum_rate": 1e-5}]},
    "multistep": {"milestones": [2, 3]},
    "plateau": {"patience": 0, "rate_factor": 0.5},
    "constant": {},
}


@pytest.fixture
def job(small_data, at_home: Path, tmp_path: Path):
    """Make the job of a small network with an optimiser and a schedule; an epoch has one step."""

    folder = at_home.parent / "network"
    folder.mkdir(exist_ok=True)
    (folder / "small_network.py").write_text(NETWORK)

    def make(optimizer: str, schedule: str, **changes: Any) -> Job:
        """`changes` are keys of `train`, or whole sections."""
        train = {
            "steps": STEPS,
            "global_batch_size": 6,
            "precision": "fp32",
            "ema_decay": None,
            "warmup_steps": 1,
        }
        train |= {
            "optimizer": optimizer,
            "schedule": schedule,
            **OPTIMIZERS[optimizer],
            **SCHEDULES[schedule],
        }
        train |= {key: changes.pop(key) for key in list(changes) if key in Train.model_fields}
        values = {
            **SMALL,
            "storage": str(tmp_path),
            "model": {"class": "small_network:Net", "path": str(folder)},
            "loss": {"spd_weight": 0},
            "data": {"manifests": small_data.uris[0], "crop_pixels": 16, "mixture": {"haze": 3}},
            "evaluate": {"degradations": ["haze"]},
            "example": None,
            "train": train,
            "workers": {"max": 2},
            "validation": {**SMALL["validation"], "every_steps": 1},  # type: ignore[dict-item]
            "track": {"experiment": "tests", "every_steps": 1},
        }
        values |= changes
        return job_from_mapping(values)

    return make


NETWORK = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1))

    def forward(self, x):
        return x + self.layers(x)
"""


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stopped_run_ends_with_the_same_bits(job, small_data, tmp_path, optimizer, schedule) -> None:
    made, whole, first, second = job(optimizer, schedule), Listener(), Listener(stop_after=2), Listener()
    run(made, small_data, tmp_path / "whole", whole)
    run(made, small_data, tmp_path / "parts", first)
    run(made, small_data, tmp_path / "parts", second)
    assert_same_weights(final_weights(tmp_path / "parts"), final_weights(tmp_path / "whole"))
    rates = {step: values["optim/lr"] for step, values in whole.scalars.items()}
    assert rates == {s: v["optim/lr"] for s, v in (first.scalars | second.scalars).items()}
    assert len(set(rates.values())) > 1 or schedule in ("plateau", "constant")


def test_a_plateau_is_remembered_by_a_checkpoint(job, small_data, tmp_path) -> None:
    made = job("sgd", "plateau", learning_rate=1e3, weight_decay=0.0, steps=8)  # destroys the network at once
    whole, first, second = Listener(), Listener(stop_after=5), Listener()
    run(made, small_data, tmp_path / "whole", whole)
    run(made, small_data, tmp_path / "parts", first)
    run(made, small_data, tmp_path / "parts", second)
    rates = [whole.scalars[step]["optim/lr"] for step in range(1, 9)]
    assert rates[4] < rates[0]
    assert rates[5:] == [second.scalars[step]["optim/lr"] for step in range(6, 9)]
    assert rates[-1] < rates[4]


def _losses(rank: int, world: int, jobs: dict[str, str], home: str, folder: str) -> None:
    """Train jobs one after another on several workers; worker 0 writes the losses."""
    os.environ.update(MIRAGE_HOME=home, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for name, text in jobs.items():
        made, driver = job_from_mapping(json.loads(text)), Listener()
        assert isinstance(made, Job)
        run(made, datasets.open_dataset(made), Path(folder, name), driver, engine_for(made, CPU))
        if rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps(driver.scalars))
    dist.destroy_process_group()


def assert_two_workers_train_as_one(jobs: dict[str, Job], data: Dataset, home: Path, folder: Path) -> None:
    texts = {name: made.model_dump_json(by_alias=True) for name, made in jobs.items()}
    run_processes(_losses, 2, 2, texts, str(home), str(folder))
    for name, made in jobs.items():
        alone = Listener()
        one = made.model_copy(update={"engine": EngineChoice()})
        run(one, data, folder / "alone" / name, alone)
        shared = json.loads((folder / f"{name}.json").read_text())
        for step, values in alone.scalars.items():
            for key in [k for k in values if k.startswith("loss/") or k == "optim/lr"]:
                assert shared[str(step)][key] == pytest.approx(values[key], rel=1e-4, abs=1e-7), (
                    name,
                    key,
                    step,
                )


TERMS = {
    f"{name}_weight": 0.1
    for name in ("l1", "fourier", "charbonnier", "mse", "psnr", "ssim", "edge", "perceptual")
}


def test_two_workers_take_the_steps_of_one(job, small_data, at_home, tmp_path, vgg_file) -> None:
    jobs = {name: job(name, "plateau", steps=STEPS) for name in OPTIMIZERS}
    loss = {
        **TERMS,
        "spd_weight": 0,
        "perceptual_network": str(vgg_file),
        "perceptual_layers": {"conv1_2": 1},
    }
    jobs["terms"] = job("adamw", "restarts", loss=loss)
    for folder in ("terms", "alone/terms"):
        loss_network.store_network(jobs["terms"], LocalStore(tmp_path / folder))
    assert_two_workers_train_as_one(jobs, small_data, at_home, tmp_path)
    first = json.loads((tmp_path / "terms.json").read_text())["1"]
    named = {name.removesuffix("_weight") for name in TERMS}
    assert {f"loss/{name}" for name in named} <= set(first)
    assert first["loss/total"] == pytest.approx(sum(0.1 * first[f"loss/{name}"] for name in named), rel=1e-5)
    assert sum(first[f"loss_share/{name}"] for name in named) == pytest.approx(1)


@pytest.mark.slow
def test_every_stage_of_deepspeed_takes_the_same_steps(job, small_data, at_home, tmp_path) -> None:
    jobs = {
        f"{name}-{stage}": job(name, "multistep", engine={"name": "deepspeed", "zero_stage": stage})
        for name in OPTIMIZERS
        for stage in range(4)
    }
    assert_two_workers_train_as_one(jobs, small_data, at_home, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_deepspeed_resumes_with_ddp_and_the_other_way(
    job, small_data, at_home, tmp_path
) -> None:
    """The whole run and the resumed ones have the same losses, so no moment is lost on the way."""
    texts = {}
    for name in ("sgd", "lion"):
        plain = job(name, "constant")
        run(plain, small_data, tmp_path / name, alone := Listener())
        for stage in (1, 2, 3):
            sharded = job(name, "constant", engine={"name": "deepspeed", "zero_stage": stage})
            for first, second in ((plain, sharded), (sharded, plain)):
                pair = [made.model_dump_json(by_alias=True) for made in (first, second)]
                texts[f"{name}-{first.engine.name}-{stage}"] = (pair, alone.scalars)
    run_processes(_resumed, 2, 2, {k: pair for k, (pair, _) in texts.items()}, str(at_home), str(tmp_path))
    for case, (_, expected) in texts.items():
        resumed = json.loads((tmp_path / f"{case}.json").read_text())
        for step in (3, 4):
            found = resumed[str(step)]["loss/total"]
            assert found == pytest.approx(expected[step]["loss/total"], rel=1e-4), (case, step)


def _resumed(rank: int, world: int, pairs: dict[str, list[str]], home: str, folder: str) -> None:
    """Train two steps of each pair's first job, and the rest as its second; worker 0 writes the losses."""
    os.environ.update(MIRAGE_HOME=home, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for case, texts in pairs.items():
        for text, driver in zip(texts, (Listener(stop_after=2), Listener()), strict=True):
            made = job_from_mapping(json.loads(text))
            assert isinstance(made, Job)
            run(made, datasets.open_dataset(made), Path(folder, f"run-{case}"), driver, engine_for(made, CPU))
        if rank == 0:
            assert driver.resumed_at() == [2]
            Path(folder, f"{case}.json").write_text(json.dumps(driver.scalars))
    dist.destroy_process_group()


def test_a_first_step_that_is_skipped_leaves_no_momentum(job) -> None:
    """torch's own fused SGD begins its momentum with memory that the skipped step leaves as it was."""
    weight = torch.nn.Parameter(torch.ones(1000))
    engine = Engine(CPU)
    optimizer = optimizers.make(job("sgd", "constant").train, [weight], CPU)
    for group in optimizer.param_groups:
        group["lr"].fill_(0.1)
    weight.grad = torch.full((1000,), torch.nan)
    engine.step(optimizer, None)
    assert weight.eq(1).all()
    weight.grad = torch.zeros(1000)
    engine.step(optimizer, None)
    torch.testing.assert_close(
        weight.detach(), torch.full((1000,), 1 - 0.1 * (1.9 * 0.01))
    )  # its weight decay


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(job, optimizer: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    made = optimizers.make(job(optimizer, "constant").train, [weight], CPU)
    for group in made.param_groups:
        group["lr"].fill_(0.1)
    for gradient in (torch.nan, torch.inf):
        weight.grad = torch.full((3,), gradient)
        Engine(CPU).step(made, 1.0)
        assert weight.eq(1).all()
    weight.grad = torch.ones(3)
    Engine(CPU).step(made, 1.0)
    assert weight.lt(1).all()


def test_lion_without_its_package_is_one_error_that_names_it(job, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lion_pytorch", None)
    with pytest.raises(TrainingError, match="pip install lion-pytorch"):
        optimizers.require_installed(job("lion", "constant").train)


@pytest.fixture(scope="session")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(published("VGG-16"), file)
    return file


def test_a_run_keeps_its_own_copy_of_the_perceptual_network(job, tmp_path, vgg_file) -> None:
    file = tmp_path / "vgg.pth"
    shutil.copy(vgg_file, file)
    loss = {
        "spd_weight": 0,
        "perceptual_weight": 1,
        "perceptual_network": str(file),
        "perceptual_layers": {"conv2_1": 1},
    }
    made, store = job("adamw", "constant", loss=loss), LocalStore(tmp_path / "run")
    loss_network.store_network(made, store)
    file.unlink()
    loss_network.store_network(made, store)
    network = loss_network.load_network(made, store, CPU)
    torch.testing.assert_close(network.convolutions["conv2_1"].bias, published("VGG-16")["features.5.bias"])


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "other tensors", "no such layer"])
def test_a_file_that_holds_no_vgg_is_one_error_that_names_it(job, tmp_path, vgg_file, kind: str) -> None:
    file, layers = tmp_path / "vgg.pth", {"conv1_1": 1}
    if kind == "text":
        file.write_text("no tensors")
    elif kind == "pickle":
        torch.save({"features.0.weight": Path}, file)
    elif kind == "other tensors":
        torch.save({"conv.weight": torch.zeros(1)}, file)
    elif kind == "no such layer":
        file, layers = vgg_file, {"conv5_4": 1}
    loss = {
        "spd_weight": 0,
        "perceptual_weight": 1,
        "perceptual_network": str(file),
        "perceptual_layers": layers,
    }
    with pytest.raises(ModelError, match=r"loss\.perceptual_network .*vgg"):
        plan_any(job("adamw", "constant", loss=loss))
