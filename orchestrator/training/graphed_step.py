"""Replay recorded training steps: one launch instead of thousands.

A CUDA graph holds kernels with their addresses and with every number of the host. What differs between steps is
therefore in tensors that stay in place: images, positions, learning rate, weight of the average, counters. There is one
graph for each form of the inputs, such as each crop size of a schedule. The first steps of a form run eagerly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mirage.cuda_graphs import CudaRecorder, LRUCache, Recording
from orchestrator.config.schema import Job
from orchestrator.training.step_input import StepInput

WARM_UP = 11
"""Eager steps before a recording: as many as PyTorch's notes on CUDA graphs ask for with DistributedDataParallel."""
_FORMS = 4
"""Forms of inputs whose graphs are kept."""

T = TypeVar("T")
Compute = Callable[[Sequence[StepInput]], dict[str, Tensor]]


class GraphRecorder(Protocol):
    """What records a function; `CudaRecorder` says more."""

    def eagerly(self, function: Callable[[], T]) -> T:
        """Call the function."""

    def obstacle(self) -> str:
        """Return why it cannot be recorded."""

    def record(self, function: Callable[[], T]) -> Recording[T]:
        """Record it without running it."""


class _RecordedStep(NamedTuple):
    inputs: list[StepInput]
    names: list[str]
    """Names of the scalars."""
    recording: Recording[Tensor]
    """Its result holds the scalars, (names,)."""


class GraphedStep:
    """Steps of one run, eager until they are recorded.

    any_worker: tells whether a flag is set on any worker. on_failure: called with the reason, on all workers, when
    one of them cannot record its step; from then on all steps run eagerly.
    """

    def __init__(
        self, recorder: GraphRecorder, any_worker: Callable[[bool], bool], on_failure: Callable[[str], None]
    ) -> None:
        self._recorder, self._any_worker, self._on_failure = recorder, any_worker, on_failure
        self._failed = False
        self._taken: Counter[Hashable] = Counter()
        self._recorded: LRUCache[Hashable, _RecordedStep] = LRUCache(_FORMS)

    def take(self, inputs: Sequence[StepInput], compute: Compute) -> dict[str, Tensor]:
        """Take a step, with the results of `compute(inputs)`."""
        form = tuple(each.form() for each in inputs)
        if form not in self._recorded and self._taken[form] >= WARM_UP and not self._failed:
            self._record(form, inputs, compute)
        if self._failed:
            return compute(inputs)
        if form not in self._recorded:
            self._taken[form] += 1
            return self._recorder.eagerly(lambda: compute(inputs))
        return self._replay(self._recorded.get(form, _missing), inputs)

    def _record(self, form: Hashable, inputs: Sequence[StepInput], compute: Compute) -> None:
        """Record the step on all workers or on none."""
        why = self._recorder.obstacle()
        recorded = None
        if not self._any_worker(bool(why)):
            try:
                recorded = self._recorded_step(inputs, compute)
            except RuntimeError as error:  # what torch raises where CUDA cannot record, or has no memory left
                why = str(error).strip().splitlines()[0]
        if self._any_worker(recorded is None):
            self._failed = True
            self._recorded = LRUCache(_FORMS)
            self._on_failure(why or "another worker cannot record its step")
        else:
            assert recorded is not None
            step = recorded
            self._recorded.get(form, lambda: step)

    def _recorded_step(self, inputs: Sequence[StepInput], compute: Compute) -> _RecordedStep:
        memory = [each.clone() for each in inputs]
        names: list[str] = []

        def scalars() -> Tensor:
            found = compute(memory)
            names.extend(found)
            return torch.stack([value.float() for value in found.values()])

        return _RecordedStep(memory, names, self._recorder.record(scalars))

    @staticmethod
    def _replay(step: _RecordedStep, inputs: Sequence[StepInput]) -> dict[str, Tensor]:
        for mine, given in zip(step.inputs, inputs, strict=True):
            for memory, tensor in zip(mine.tensors(), given.tensors(), strict=True):
                memory.copy_(tensor)
        step.recording.replay()
        values = step.recording.result.clone()  # the next step overwrites the result
        return dict(zip(step.names, values.unbind(), strict=True))


def obstacle(job: Job, device: torch.device) -> str:
    """Return why the steps of a job cannot be recorded on a worker's device; empty if nothing is known against it."""
    if device.type != "cuda":
        return "the workers have no GPU"
    if job.engine.name == "deepspeed":
        return "DeepSpeed reads values of the device in each step"
    if job.train.optimizer == "lion":
        return "Lion waits for the norm of the gradient"
    if job.model.class_ is not None:
        return "the code of model.class may do something else in each step"
    if job.model.alignment in ("log_euclidean", "geodesic"):
        return f"the host waits for the eigenvalues of model.alignment {job.model.alignment}"
    if dist.is_initialized() and (backend := dist.get_backend()) != "nccl":
        return f"{backend} sums over workers on the host"
    return ""


def recorder(device: torch.device) -> GraphRecorder:
    """Return what records steps on a device."""
    return CudaRecorder(device)


def _missing() -> _RecordedStep:
    raise AssertionError("only called for recorded forms")
