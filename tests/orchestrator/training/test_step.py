"""A training step never reads a value of the device, and works on the same memory at every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from mirage import MIRAGE
from mirage.collective import BatchShare
from orchestrator.data import datasets
from orchestrator.errors import TrainingError
from orchestrator.training import ema
from orchestrator.training.backlog import Backlog
from orchestrator.training.engines.base import Engine
from orchestrator.training.run_state import TrainingRun, start
from orchestrator.training.saving import open_checkpoints, save
from orchestrator.training.skipped_steps import SkippedSteps
from orchestrator.training.step import compute
from orchestrator.training.step_input import StepInput
from shards.store import LocalStore
from tests.orchestrator.training.test_loop import Listener

pytestmark = pytest.mark.filterwarnings(
    "ignore:Accessing the data pointer of FakeTensor"
)  # copy.deepcopy does

CPU = torch.device("cpu")

PLAIN = {"ema_decay": None}
FULL = {
    **{"ema_decay": 0.9, "clip_norm": 0.1, "micro_batches": 2, "precision": "fp16"},
    **{"optimizer": "adam", "activation_checkpointing": "all"},
}


def run_of(job, dataset, folder) -> TrainingRun:
    engine = Engine(CPU, job.train.precision)
    return start(job, engine, datasets.train_stream(dataset, job), LocalStore(folder), None)


def inputs(job, images: int = 2, total: int = 2) -> list[StepInput]:
    return [
        StepInput(
            torch.rand(images, 3, 16, 16),
            torch.rand(images, 3, 16, 16),
            torch.arange(images),
            torch.zeros(images, dtype=torch.int64),
            BatchShare(0, total),
            0,
        )
        for _ in range(job.train.micro_batches)
    ]


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make tensors without values, which raise where a value is read or a shape depends on one."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode():
        # Neither moves nor copies of modules work on fake tensors.
        patch.setattr(nn.Module, "to", lambda self, *_: self)
        patch.setattr(ema, "copy", SimpleNamespace(deepcopy=lambda model: MIRAGE(model.config)))
        yield


@contextmanager
def workers(number: int) -> Iterator[None]:
    """A world of which this process is worker 0, whose collectives have no effect."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("train", [PLAIN, FULL], ids=["plain", "full"])
def test_a_step_reads_no_value_of_the_device(small_job, small_data, tmp_path, train) -> None:
    job = small_job(train=train)
    with fake_tensors():
        run = run_of(job, small_data, tmp_path)
        scalars = compute(run, inputs(job))
    assert all(value.shape == () for value in scalars.values())


def test_a_step_of_several_workers_reads_no_value_of_the_device(small_job, small_data, tmp_path) -> None:
    job = small_job()
    with workers(3), fake_tensors():  # statistics of batch norms and SPD descriptors are exchanged
        run = run_of(job, small_data, tmp_path)
        compute(run, inputs(job, total=6))


def test_a_value_that_is_read_in_a_step_is_found(
    small_job, small_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_job()
    with fake_tensors():
        run = run_of(job, small_data, tmp_path)
        monkeypatch.setattr(run.skipped, "step_taken", lambda finite: bool(finite))
        with pytest.raises(DataDependentOutputException):
            compute(run, inputs(job))


def test_the_state_of_a_run_stays_where_it_is_in_memory(small_job, small_data, tmp_path) -> None:
    job = small_job(train={"ema_decay": 0.9, "precision": "bf16"})
    run = run_of(job, small_data, tmp_path)
    assert run.ema is not None

    def addresses() -> list[int]:
        networks = (run.model, run.ema.network)  # type: ignore[union-attr]
        tensors: list[Tensor] = [
            t for network in networks for t in (*network.parameters(), *network.buffers())
        ]
        tensors += [value for slots in run.optimizer.state.values() for value in slots.values()]
        tensors += [group["lr"] for group in run.optimizer.param_groups]
        return [tensor.data_ptr() for tensor in tensors]

    compute(run, inputs(job))  # makes the optimiser's state
    before = addresses()
    for _ in range(2):
        compute(run, inputs(job))
    assert addresses() == before


def test_a_long_row_of_skipped_steps_is_found_though_a_finite_step_followed() -> None:
    skipped = SkippedSteps(CPU, total=7)
    for finite in (*[False] * 99, True, *[False] * 99):
        skipped.step_taken(torch.tensor(finite))
    skipped.require_finite_steps(199)
    assert skipped.total() == 7 + 2 * 99
    for finite in (False, True):
        skipped.step_taken(torch.tensor(finite))
    with pytest.raises(TrainingError, match=r"100 steps in a row were not finite \(step 201\)"):
        skipped.require_finite_steps(201)


def test_no_checkpoint_is_written_after_too_many_skipped_steps(small_job, small_data, tmp_path) -> None:
    run = run_of(small_job(), small_data, tmp_path)
    for _ in range(100):
        run.skipped.step_taken(torch.tensor(False))
    checkpoints = open_checkpoints(run.job, small_data, LocalStore(tmp_path), "test")
    with pytest.raises(TrainingError, match="100 steps in a row"):
        save(run, checkpoints, Listener())
    assert not (tmp_path / "checkpoints").exists()


def test_the_host_waits_for_the_step_before_the_last_two(monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[int] = []
    done: list[int] = []

    class Event:
        """The end of a step; no device is here."""

        def record(self, stream: None) -> None:
            self.number = len(queued)
            queued.append(self.number)

        def synchronize(self) -> None:
            done.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    backlog = Backlog(torch.device("cuda"))
    for step in range(5):
        backlog.step_queued()
        assert done == list(range(step - 1))
    Backlog(CPU).step_queued()
    assert len(queued) == 5
