"""Recorded steps have the numbers of eager ones. `tests/gpu/test_step_graphs.py` tests real graphs on a GPU.

Stand-ins for a recorder of CUDA graphs, which a CPU cannot have: `Tape` replays the list of tensor operations of one
step, on the same memory and with every number of the host as a constant, as a graph does; `Repeater` calls the function
again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from mirage.collective import BatchShare
from mirage.cuda_graphs import Recording
from orchestrator.config.identity import run_id
from orchestrator.config.job_types import JobOutcome
from orchestrator.events import LogMessage
from orchestrator.training import graphed_step
from orchestrator.training.engines.base import Engine
from orchestrator.training.graphed_step import GraphedStep
from orchestrator.training.run_state import TrainingRun
from orchestrator.training.step import compute
from orchestrator.training.step_input import StepInput
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_loop import CPU, Listener, run
from tests.orchestrator.training.test_step import FULL, inputs, run_of

ONE = torch.ones(1)
STEP = [StepInput(ONE, ONE, ONE, ONE, BatchShare(0, 1), 0)]


def total(given: Sequence[StepInput]) -> dict[str, Tensor]:
    return {"loss": given[0].clean.sum()}


class Repeater:
    """A recorder whose replay calls the function again; it counts its calls."""

    def __init__(self, why: str = "", error: str = "") -> None:
        self.why, self.error = why, error
        self.eager = self.recorded = self.replayed = 0

    def eagerly(self, function: Callable[[], Any]) -> Any:
        self.eager += 1
        return function()

    def obstacle(self) -> str:
        return self.why

    def record(self, function: Callable[[], Tensor]) -> Recording[Tensor]:
        if self.error:
            raise RuntimeError(self.error)
        self.recorded += 1
        result = torch.empty(0)

        def replay() -> None:
            self.replayed += 1
            found = function()
            result.resize_(found.shape).copy_(found)

        return Recording(replay, result)


def aliases(tree: Any) -> Any:
    """Return tensors with the same memory, which keep their shape if that of the others is changed in place."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), tree)


class Operations(TorchDispatchMode):
    """Lists what is done with tensors: operator, arguments and result."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, *aliases((args, kwargs or {}, result))))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do all of it again, on the same memory."""
        for func, *memory in self.calls:
            args, kwargs, result = aliases(memory)
            for old, new in zip(tree_leaves(result), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # equal: a view, or in place
                    old.copy_(new)


class Tape(Repeater):
    """A recorder of the operations on tensors of one step."""

    def __init__(self, state: Callable[[], list[Tensor]]) -> None:
        super().__init__()
        self.state = state

    def record(self, function: Callable[[], Tensor]) -> Recording[Tensor]:
        before = [tensor.detach().clone() for tensor in self.state()]
        with Operations() as operations:
            result = function()
        with torch.no_grad():  # listing the operations takes the step, recording a CUDA graph does not
            for tensor, value in zip(self.state(), before, strict=True):
                tensor.copy_(value)

        def replay() -> Tensor:
            operations.replay()
            return result

        return super().record(replay)


def state_of(run: TrainingRun) -> list[Tensor]:
    """Return all tensors that a step changes."""
    networks = [run.model] if run.ema is None else [run.model, run.ema.network]
    found: list[Tensor] = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    found += [value for slots in run.optimizer.state.values() for value in slots.values()]
    found += [value for value in vars(run.skipped).values() if isinstance(value, Tensor)]
    if run.engine.loss_scale is not None:
        found += [run.engine.loss_scale.factor, run.engine.loss_scale.finite_steps]
    return found


def test_a_recorded_step_on_other_data_is_the_eager_step_to_the_bit(
    small_job, small_data, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed_step, "WARM_UP", 1)
    torch.manual_seed(3)
    job = small_job(train=FULL, model={"drop_path": 0.5})
    given = [inputs(job) for _ in range(3)]
    for i, step in enumerate(given):
        for each in step:
            each.positions.add_(10 * i)  # other blocks are dropped
    given[1][0].degraded[0, 0, 0, 0] = math.inf  # a step that is skipped
    results = []
    for recorded in (False, True):
        state = run_of(job, small_data, tmp_path)
        recorder = Tape(lambda state=state: state_of(state))  # type: ignore[misc]
        graph = GraphedStep(recorder, state.engine.all_reduce_any, pytest.fail)
        scalars = []
        for i, step in enumerate(given):
            for group in state.optimizer.param_groups:
                group["lr"].fill_(1e-3 / (1 + i))
            if state.ema is not None:
                state.ema.set_weight(0.9, i)
            take = graph.take if recorded else lambda given, function: function(given)
            scalars.append(take(step, lambda found, state=state: compute(state, found)))  # type: ignore[misc]
        results.append((scalars, state_of(state)))
        assert state.skipped.total() == 1
        assert (recorder.eager, recorder.recorded, recorder.replayed) == (
            (1, 1, 2) if recorded else (0, 0, 0)
        )
    (eager, left), (replayed, right) = results
    for a, b in zip(eager, replayed, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n].float().nan_to_num(7), b[n].nan_to_num(7)) for n in a)
    assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def on_gpus(monkeypatch: pytest.MonkeyPatch) -> Repeater:
    """Record the steps of runs, with a stand-in, after two eager steps."""
    recorder = Repeater()
    monkeypatch.setattr(graphed_step, "obstacle", lambda job, device: "")
    monkeypatch.setattr(graphed_step, "recorder", lambda device: recorder)
    monkeypatch.setattr("orchestrator.training.run_state.side_stream", lambda device: None)
    monkeypatch.setattr(graphed_step, "WARM_UP", 1)
    return recorder


STAGES = {
    "crop_pixels": [
        {"from_step": 0, "pixels": 16},
        {"from_step": 2, "pixels": 32},
        {"from_step": 4, "pixels": 32, "batch": 2},
    ]
}


def test_a_run_records_each_form_of_its_batches_once_and_resumes_to_the_same_weights(
    small_job, small_data, tmp_path, on_gpus: Repeater
) -> None:
    job = small_job(data=STAGES, train={"cuda_graph": "auto"})
    run(small_job(data=STAGES), small_data, tmp_path / "eager")
    assert on_gpus.eager == 0
    assert run(job, small_data, tmp_path / "run", Listener(stop_after=4)) == JobOutcome("stopped", 4, 6)
    assert (on_gpus.eager, on_gpus.recorded, on_gpus.replayed) == (2, 2, 2)
    driver = Listener()
    run(job, small_data, tmp_path / "run", driver)
    assert driver.resumed_at() == [4]
    assert (on_gpus.eager, on_gpus.recorded, on_gpus.replayed) == (3, 3, 3)
    assert_same_weights(final_weights(tmp_path / "run"), final_weights(tmp_path / "eager"))


def texts(driver: Listener) -> list[str]:
    return [e.text for e in driver.events if isinstance(e, LogMessage) and "train.cuda_graph" in e.text]


def test_a_run_that_cannot_record_says_so_once_and_ends(
    small_job, small_data, tmp_path, on_gpus: Repeater
) -> None:
    on_gpus.error = "no room\nin detail"
    driver = Listener()
    assert (
        run(small_job(train={"steps": 3, "cuda_graph": "auto"}), small_data, tmp_path, driver).status
        == "finished"
    )
    assert texts(driver) == ["train.cuda_graph: steps run eagerly: no room"]
    assert (on_gpus.eager, on_gpus.recorded, on_gpus.replayed) == (1, 0, 0)


def test_without_enough_memory_nothing_is_recorded() -> None:
    told: list[str] = []
    recorder = Repeater(why="a graph needs about 9.0 GiB, and 1.0 GiB are free")
    graph = GraphedStep(recorder, bool, told.append)
    for _ in range(graphed_step.WARM_UP + 3):
        assert graph.take(STEP, total)["loss"] == 1
    assert told == [recorder.why]
    assert (recorder.eager, recorder.recorded) == (graphed_step.WARM_UP, 0)


def test_if_one_worker_cannot_record_none_does() -> None:
    told: list[str] = []
    flags: list[bool] = []

    def any_worker(flag: bool) -> bool:
        flags.append(flag)
        return len(flags) == 2  # the other one fails to record

    graph = GraphedStep(Repeater(), any_worker, told.append)
    for _ in range(graphed_step.WARM_UP + 3):
        assert graph.take(STEP, total)["loss"] == 1
    assert flags == [False, False]
    assert told == ["another worker cannot record its step"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"engine": {"name": "deepspeed"}}, "DeepSpeed reads values"),
        ({"model": {"alignment": "geodesic"}}, "eigenvalues"),
        ({"model": {"alignment": "log_euclidean"}}, "eigenvalues"),
        ({"model": {"alignment": "euclidean"}}, ""),
    ],
)
def test_what_cannot_be_recorded_is_known_before(small_job, changes: dict[str, Any], why: str) -> None:
    job = small_job(**changes)
    found = graphed_step.obstacle(job, torch.device("cuda"))
    assert (why in found) if why else not found
    assert graphed_step.obstacle(job, CPU) == "the workers have no GPU"


def test_a_graph_does_not_change_which_run_it_is(small_job, small_data) -> None:
    graphed = small_job(train={"cuda_graph": "auto"})
    assert run_id(graphed, small_data.digests) == run_id(small_job(), small_data.digests)


def test_a_run_on_a_cpu_says_once_why_it_records_nothing(small_job, small_data, tmp_path) -> None:
    driver = Listener()
    run(small_job(train={"steps": 1, "cuda_graph": "auto"}), small_data, tmp_path, driver, Engine(CPU))
    assert texts(driver) == ["train.cuda_graph: steps run eagerly: the workers have no GPU"]
