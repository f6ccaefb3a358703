"""Networks of the user train on any number of workers and engines as in one process, and resume to the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from orchestrator.config.identity import run_id
from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import JobFileError, ModelError
from orchestrator.models.batch_statistics import use_global_statistics
from orchestrator.resilience.resume_proof import ProofConfig, prove_resume
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.factory import engine_for
from orchestrator.training.loop import train
from shards.store import LocalStore
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.conftest import SMALL
from tests.orchestrator.training.test_loop import CPU, Listener, run
from tests.processes import run_processes

NETWORK = '''
import random
import numpy as np
import torch
import torch.utils.checkpoint
from torch import nn

class Net(nn.Module):
    """A small network with one trait that other networks have."""

    def __init__(self, trait):
        super().__init__()
        self.trait = trait
        self.into, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        if trait == "never used":
            self.spare = nn.Linear(3, 4)
        if trait == "used by input":
            self.experts = nn.ModuleList(nn.Conv2d(6, 6, 1) for _ in range(3))
        if trait == "label":
            self.of_label = nn.Embedding(8, 6)
        if trait == "batch norm":
            self.norm = nn.BatchNorm2d(6)
        if trait == "shared weights":
            self.again = self.into
        if trait == "buffers":
            self.register_buffer("mean", torch.zeros(6))
            self.register_buffer("steps", torch.tensor(0))
            self.register_buffer("constant", torch.rand(6))
        if trait == "cached buffers":
            self.register_buffer("grid", None, persistent=False)
            self.register_buffer("mask", torch.ones(1, 1), persistent=False)

    def forward(self, x, labels=None):
        if self.trait == "multiple of 64":
            assert x.shape[2] % 64 == x.shape[3] % 64 == 0, x.shape
        f = self.into(x).relu()
        if self.trait == "draws in evaluation":
            f = f + 0.1 * torch.randn_like(f) * random.random() * float(np.random.rand())
        if self.trait == "cached buffers" and self.mask.shape != x.shape[2:]:
            self.grid, self.mask = torch.zeros(x.shape[2:]), torch.ones(x.shape[2:])
        if self.trait == "used by input":
            chosen = [0 if image.mean() < 0.4 else 1 for image in x]
            f = torch.cat([self.experts[k](row[None]) for k, row in zip(chosen, f)])
        if self.trait == "label" and labels is not None:
            f = f + self.of_label(labels)[:, :, None, None]
        if self.trait == "batch norm":
            f = self.norm(f)
        if self.trait == "dropout" and self.training:
            f = nn.functional.dropout2d(f, 0.3) * random.uniform(0.9, 1.1) * np.random.uniform(0.9, 1.1)
        if self.trait == "shared weights":
            f = f + self.again(x)
        if self.trait == "reentrant checkpoint":
            f = torch.utils.checkpoint.checkpoint(self.out, f, use_reentrant=True)
            return x + f
        if self.trait == "buffers":
            if self.training:
                self.mean.lerp_(f.detach().mean((0, 2, 3)), 0.1)
                self.steps += 1
            f = f - self.constant[:, None, None]
        image = x + 0.1 * self.out(f)
        return (image, f) if self.trait in ("tuple", "own loss term") else image

def call(network, degraded, labels):
    if network.trait == "label":
        return network(degraded, labels)
    image, f = network(degraded)
    return image, {"size": f.square().mean((1, 2, 3))}
'''
TRAITS = (
    "never used",
    "used by input",
    "label",
    "batch norm",
    "shared weights",
    "buffers",
    "tuple",
    "own loss term",
)
STEPS = 4


@pytest.fixture
def values(small_data, at_home: Path, tmp_path: Path):
    """Make the values of a job that trains `Net` with a trait."""
    module = f"networks_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{module}.py").write_text(NETWORK)

    def make(trait: str, **changes: object) -> dict[str, object]:
        model = {"class": f"{module}:Net", "path": str(tmp_path), "arguments": {"trait": trait}, "stride": 16}
        loss: dict[str, object] = {"spd_weight": 0}
        if trait in ("label", "own loss term"):
            model["adapter"] = f"{module}:call"
        if trait == "own loss term":
            loss["auxiliary_weights"] = {"size": 0.3}
        data = {**SMALL["data"], "manifests": small_data.uris[0]}  # type: ignore[dict-item]
        if trait == "multiple of 64":
            model["stride"] = data["crop_pixels"] = 64
        settings = {**SMALL["train"], "steps": STEPS, "learning_rate": 1e-2}  # type: ignore[dict-item]
        track = {"experiment": "tests", "every_steps": 1}
        base = {
            **SMALL,
            "storage": str(tmp_path),
            "model": model,
            "loss": loss,
            "data": data,
            "train": settings,
        }
        return {**base, "track": track, "workers": {"max": 3}, **changes}

    return make


def made(values: dict[str, object]) -> Job:
    job = job_from_mapping(values)
    assert isinstance(job, Job)
    return job


def _worker(rank: int, world: int, jobs: dict[str, str], home: str, folder: str, stop: int) -> None:
    """Train several jobs one after another; worker 0 writes the losses, the gradient norms and the warnings."""
    os.environ.update(MIRAGE_HOME=home, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet-{world}-{stop}", rank=rank, world_size=world
    )
    for name, text in jobs.items():
        job, driver = made(json.loads(text)), Listener(stop_after=stop or None)
        train(
            job,
            datasets.open_dataset(job),
            LocalStore(Path(folder, name)),
            engine_for(job, CPU),
            driver,
            "test",
        )
        if rank == 0:
            Path(folder, f"{name}.json").write_text(json.dumps([driver.scalars, driver.warnings()]))
    dist.destroy_process_group()


def shared(jobs: dict[str, dict[str, object]], world: int, home: Path, folder: Path, stop: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    texts = {name: json.dumps(values) for name, values in jobs.items()}
    run_processes(_worker, world, world, texts, str(home), str(folder), stop)


def assert_same_steps(alone: Listener, scalars: dict[str, dict[str, float]], case: str) -> None:
    """Compare the loss, its terms and the gradient norm of each step."""
    for step, expected in alone.scalars.items():
        for name in [n for n in expected if n.startswith("loss/") or n == "optim/grad_norm"]:
            assert scalars[str(step)][name] == pytest.approx(expected[name], rel=2e-3, abs=1e-6), (
                case,
                step,
                name,
            )


@pytest.mark.parametrize("world", [2, 3])
def test_losses_and_gradients_do_not_depend_on_the_number_of_workers(
    values, small_data, at_home, tmp_path, world: int
) -> None:
    traits = (*TRAITS, "multiple of 64")
    shared({trait: values(trait) for trait in traits}, world, at_home, tmp_path / "shared")
    for trait in traits:
        alone = Listener()
        run(made(values(trait)), small_data, tmp_path / "alone" / trait, alone)
        scalars, warnings = json.loads((tmp_path / "shared" / f"{trait}.json").read_text())
        assert_same_steps(alone, scalars, trait)
        assert warnings[:1] == alone.warnings()[:1], (
            trait
        )  # how many inputs a worker sees depends on their number
        found, expected = (final_weights(tmp_path / kind / trait) for kind in ("shared", "alone"))
        for name, tensor in expected.items():
            torch.testing.assert_close(
                found[name], tensor, rtol=2e-2, atol=2e-4, msg=lambda m, n=(trait, name): f"{n}: {m}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_of_deepspeed_takes_the_same_steps(
    values, small_data, at_home, tmp_path, stage: int
) -> None:
    traits = ["never used", "batch norm", "own loss term", "shared weights"]
    if stage < 3:  # DeepSpeed itself refuses stage 3 where workers use different layers
        traits.append("used by input")
    engine = {"name": "deepspeed", "zero_stage": stage}
    shared({trait: values(trait, engine=engine) for trait in traits}, 2, at_home, tmp_path / "shared")
    for trait in traits:
        alone = Listener()
        run(made(values(trait)), small_data, tmp_path / "alone" / trait, alone)
        assert_same_steps(alone, json.loads((tmp_path / "shared" / f"{trait}.json").read_text())[0], trait)


def test_a_stopped_run_ends_with_the_same_bits(values, small_data, at_home, tmp_path) -> None:
    for trait in (*TRAITS, "dropout", "multiple of 64", "draws in evaluation"):
        job, whole, again = made(values(trait)), Listener(), Listener()
        run(job, small_data, tmp_path / "whole" / trait, whole)
        run(job, small_data, tmp_path / "parts" / trait, Listener(stop_after=2))
        run(job, small_data, tmp_path / "parts" / trait, again)
        assert again.resumed_at() == [2]
        assert again.scalars[STEPS]["loss/total"] == whole.scalars[STEPS]["loss/total"], trait
        assert_same_weights(
            final_weights(tmp_path / "parts" / trait), final_weights(tmp_path / "whole" / trait)
        )
    jobs = {trait: values(trait) for trait in ("dropout", "buffers", "used by input")}
    shared(jobs, 2, at_home, tmp_path / "whole on 2")
    shared(jobs, 2, at_home, tmp_path / "parts on 2", stop=2)
    shared(jobs, 2, at_home, tmp_path / "parts on 2")
    for trait in jobs:
        assert_same_weights(
            final_weights(tmp_path / "parts on 2" / trait), final_weights(tmp_path / "whole on 2" / trait)
        )


@pytest.mark.slow
@pytest.mark.parametrize("trait", ["dropout", "used by input", "own loss term"])
def test_a_killed_run_on_two_workers_is_bit_equal_at_every_checkpoint(values, at_home, trait: str) -> None:
    job = made(values(trait, train={**SMALL["train"], "steps": 100}))  # type: ignore[dict-item]
    proof = prove_resume(job, ProofConfig(kills=2, seed=0, steps=10, workers=2), print)
    assert proof.holds, proof.render()


def test_a_run_that_continues_on_another_number_of_workers_takes_the_same_steps(
    values, small_data, at_home, tmp_path
) -> None:
    jobs = {trait: values(trait) for trait in ("never used", "used by input", "batch norm", "own loss term")}
    shared(jobs, 2, at_home, tmp_path / "parts", stop=2)
    for trait in jobs:
        job, whole, again = made(values(trait)), Listener(), Listener()
        run(job, small_data, tmp_path / "whole" / trait, whole)
        run(job, small_data, tmp_path / "parts" / trait, again)
        assert again.resumed_at() == [2]
        later = {str(step): found for step, found in again.scalars.items() if step > 2}
        whole.scalars = {step: found for step, found in whole.scalars.items() if step > 2}
        assert_same_steps(whole, later, trait)


def test_unused_parameters_are_named_once(values, small_data, tmp_path) -> None:
    driver = Listener()
    run(made(values("never used")), small_data, tmp_path / "never", driver)
    assert driver.warnings() == [
        "2 of 6 parameters were not used in the first steps, so they do not learn: spare.bias, spare.weight."
    ]
    driver = Listener()
    run(made(values("used by input")), small_data, tmp_path / "some", driver)
    never, some = driver.warnings()
    assert "experts.2.bias, experts.2.weight" in never
    assert "parameters were used for some inputs only: experts." in some


def test_half_precision_and_micro_batches_train_them_too(values, small_data, tmp_path) -> None:
    for precision in ("bf16", "fp16"):
        for trait in ("batch norm", "own loss term", "used by input"):
            settings = {**values(trait)["train"], "precision": precision, "micro_batches": 2}
            driver = Listener()
            run(made(values(trait, train=settings)), small_data, tmp_path / precision / trait, driver)
            assert driver.scalars[STEPS]["loss/total"] == pytest.approx(
                driver.scalars[1]["loss/total"], rel=0.9
            )


def test_an_own_loss_term_is_logged_and_weighted(values, small_data, tmp_path) -> None:
    driver = Listener()
    run(made(values("own loss term")), small_data, tmp_path, driver)
    first = driver.scalars[1]
    weighted = first["loss/l1"] + 0.1 * first["loss/fourier"] + 0.3 * first["loss/size"]
    assert first["loss/size"] > 0
    assert first["loss/total"] == pytest.approx(weighted, rel=1e-5)
    assert first["loss_share/size"] == pytest.approx(0.3 * first["loss/size"] / first["loss/total"])


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({}, r"model.adapter returns size, which has no weight \(0 leaves it out\)"),
        ({"size": 1, "balance": 0.1}, "balance has a weight, and model.adapter does not return it"),
    ],
)
def test_terms_and_weights_must_be_the_same(
    values, small_data, tmp_path, weights: dict[str, float], says: str
) -> None:
    job = made(values("own loss term", loss={"spd_weight": 0, "auxiliary_weights": weights}))
    with pytest.raises(ModelError, match=says):
        run(job, small_data, tmp_path)


def test_a_weight_without_an_adapter_and_a_missing_adapter_are_refused(values, small_data, tmp_path) -> None:
    with pytest.raises(JobFileError, match=r"weights terms that model\.adapter returns"):
        made(values("tuple", loss={"spd_weight": 0, "auxiliary_weights": {"size": 1}}))
    model = {
        **values("tuple")["model"],
        "adapter": values("tuple")["model"]["class"].replace("Net", "missing"),
    }
    with pytest.raises(ModelError, match=r"model\.adapter .*has no function of that name"):
        run(made(values("tuple", model=model)), small_data, tmp_path)


def test_keys_that_are_not_set_leave_a_run_its_identity(values, small_data) -> None:
    job, with_adapter = made(values("tuple")), values("own loss term")
    content = job.model_dump()
    assert content["model"]["adapter"] is None  # it is in the job, and not in the identity
    assert run_id(job, small_data.digests) != run_id(made(with_adapter), small_data.digests)
    lighter = {**with_adapter, "loss": {"spd_weight": 0, "auxiliary_weights": {"size": 0.1}}}
    assert run_id(made(lighter), small_data.digests) != run_id(made(with_adapter), small_data.digests)


def _normalise(rank: int, world: int, folder: str) -> None:
    """Normalise uneven shares of a batch; worker 0 writes its outputs, the gradient of its input and the statistics."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    found = {}
    for name, (layer, x) in layers().items():
        network = torch.nn.Sequential(layer)
        use_global_statistics(network)
        mine = (x[:3] if rank == 0 else x[3:]).clone().requires_grad_()
        for _ in range(2):
            out = network(mine)
        (out * torch.arange(out[0].numel()).view_as(out[0])).sum().backward()
        found[name] = [out, mine.grad, *layer.buffers(), network.eval()(mine)]
    if rank == 0:
        torch.save(found, f"{folder}/found")
    dist.destroy_process_group()


def layers() -> dict[str, tuple[torch.nn.Module, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    images, rows = torch.randn(8, 4, 3, 2, generator=draw), torch.randn(8, 4, generator=draw)
    nn = torch.nn
    return {
        "2d": (nn.BatchNorm2d(4), images),
        "1d": (nn.BatchNorm1d(4), rows),
        "not affine": (nn.BatchNorm2d(4, affine=False), images),
        "cumulative": (nn.BatchNorm2d(4, momentum=None), images),
        "no running statistics": (nn.BatchNorm2d(4, track_running_stats=False), images),
    }


def test_global_batch_norm_of_two_workers_is_that_of_torch_on_the_whole_batch(tmp_path) -> None:
    run_processes(_normalise, 2, 2, str(tmp_path))
    found = torch.load(tmp_path / "found")
    for name, (layer, x) in layers().items():
        whole = x.clone().requires_grad_()
        for _ in range(2):
            out = layer(whole)
        (out * torch.arange(out[0].numel()).view_as(out[0])).sum().backward()
        expected = [out[:3], whole.grad[:3], *layer.buffers()]
        for one, other in zip(found[name], expected, strict=False):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
        if name != "no running statistics":  # there eval mode is by the batch that a worker has
            torch.testing.assert_close(found[name][-1], layer.eval()(x)[:3], rtol=1e-4, atol=1e-4)


class Activated(torch.nn.BatchNorm2d):
    """A batch norm that does more than normalise, as timm's."""


def test_a_batch_norm_of_its_own_kind_is_refused_rather_than_replaced() -> None:
    with pytest.raises(ModelError, match=r"0 is a Activated.*model\.batch_norm: local"):
        use_global_statistics(torch.nn.Sequential(Activated(3)))


def test_a_reentrant_checkpoint_is_refused(values, small_data, tmp_path) -> None:
    with pytest.raises(ModelError, match="Set use_reentrant=False there"):
        run(made(values("reentrant checkpoint")), small_data, tmp_path)


@pytest.mark.parametrize("name", ["total", "l1", "Balance", "a/b", ""])
def test_names_of_loss_terms_are_names_of_metrics(values, name: str) -> None:
    with pytest.raises(JobFileError, match="auxiliary_weights"):
        made(values("own loss term", loss={"spd_weight": 0, "auxiliary_weights": {name: 1}}))


def test_buffers_that_are_made_for_the_size_of_the_input_are_no_state(values, small_data, tmp_path) -> None:
    stages = [{"from_step": 0, "pixels": 16}, {"from_step": 2, "pixels": 32}]
    content = values("cached buffers")
    content["data"] = {**content["data"], "crop_pixels": stages}
    job = made(content)
    assert run(job, small_data, tmp_path, engine=Engine(CPU)).status == "finished"


def test_an_engine_of_one_process_leaves_buffers_alone(values, small_data, tmp_path) -> None:
    run(made(values("buffers")), small_data, tmp_path, engine=Engine(CPU))
    weights = final_weights(tmp_path)
    assert int(weights["steps"]) == STEPS
    assert float(weights["mean"].abs().sum()) > 0
