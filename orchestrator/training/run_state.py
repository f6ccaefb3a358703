"""The state of a run on one worker: build it at step 0 or from a checkpoint."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mirage import MIRAGE, compile
from mirage.cuda_graphs import side_stream
from mirage.loss import LossWeights
from mirage.perceptual import PerceptualDistance
from orchestrator.config.schedule import Plateau, learning_rate
from orchestrator.config.schema import Job
from orchestrator.errors import CheckpointError
from orchestrator.events import LogMessage
from orchestrator.models import network
from orchestrator.models.batch_statistics import use_global_statistics
from orchestrator.models.network import Network
from orchestrator.planning.throughput import StepTimer
from orchestrator.training import graphed_step, initial_weights, loss_network, optimizers
from orchestrator.training.checkpoint import CheckpointState
from orchestrator.training.determinism import seed_generators
from orchestrator.training.driver import Driver
from orchestrator.training.ema import WeightAverage
from orchestrator.training.engines.base import Engine, trainable
from orchestrator.training.graphed_step import GraphedStep
from orchestrator.training.skipped_steps import SkippedSteps
from orchestrator.training.tensor_groups import TensorGroups, is_writable, same_form
from shards.crop_schedule import CropSchedule
from shards.store import Store
from shards.stream import TrainStream


@dataclass
class TrainingRun:
    """Model, optimizer and counters of a run on one worker."""

    job: Job
    engine: Engine
    model: Network
    """The plain model."""
    wrapped: nn.Module
    """The same model as the engine wrapped it."""
    optimizer: torch.optim.Optimizer
    loss_weights: LossWeights
    perceptual: PerceptualDistance | None
    """The perceptual term, if the job weights it."""
    ema: WeightAverage | None
    steps_per_epoch: int
    stages: CropSchedule
    skipped: SkippedSteps
    graph: GraphedStep | None = None
    """Replays recorded steps; None: every step runs eagerly."""
    step: int = 0
    skipped_samples: int = 0
    """Damaged samples that this worker left out since it started."""
    validation: dict[str, float] = field(default_factory=dict)
    """Metrics of the newest validation."""
    plateau: Plateau = field(default_factory=Plateau)
    """State of schedule `plateau`, equal on all workers."""
    clock: StepTimer = field(default_factory=StepTimer)

    def __post_init__(self) -> None:
        self.keep_buffers()

    def keep_buffers(self) -> None:
        """Remember the buffers, such as BatchNorm statistics, as they are before a step."""
        self._kept = self._buffers()
        self._kept_values = TensorGroups(self._kept.values()).flat()

    def restore_buffers_unless(self, finite: Tensor) -> None:
        """Set the buffers to what `keep_buffers` remembered, unless the step was `finite`, a bool on the device."""
        pairs = self._pairs()
        buffers, before = TensorGroups(now for now, _ in pairs), TensorGroups(value for _, value in pairs)
        both = zip(buffers.flat(), before.flat(), strict=True)
        buffers.assign([torch.where(finite, now, value) for now, value in both])

    def changed_buffers(self) -> list[tuple[Tensor, bool]]:
        """Return each buffer that `keep_buffers` remembered, and whether it changed since."""
        return [(now, not torch.equal(now, value)) for now, value in self._pairs()]

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Return each buffer with its remembered value, except buffers whose shape or dtype has changed."""
        parts = TensorGroups(self._kept.values()).parts(self._kept_values)
        values = {id(tensor): part for tensor, part in parts}
        before = {name: values[id(tensor)] for name, tensor in self._kept.items()}
        pairs = [(now, before[name]) for name, now in self._buffers().items() if name in before]
        return [(now, value) for now, value in pairs if same_form(now, value)]

    def _buffers(self) -> dict[str, Tensor]:
        # Listed each time, since a network may assign another tensor to a buffer.
        return {name: buffer for name, buffer in self.model.named_buffers() if is_writable(buffer)}

    @property
    def position(self) -> int:
        """Number of samples that all workers have consumed: the whole state of the data."""
        return self.stages.position_at(self.step)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of step `step`, from 0, after the validations so far."""
        return learning_rate(self.job.train, step, self.steps_per_epoch, self.plateau.reductions)

    def without_compilation(self) -> AbstractContextManager[None]:
        """Return a context for everything but training steps: each image size would be compiled, to run once."""
        return compile.force_eager() if self.job.train.compile == "blocks" else nullcontext()

    def evaluation_model(self) -> Network:
        """Return the model to validate, evaluate and register; all workers call this together."""
        if self.ema is not None:
            return self.ema.network
        if not self.engine.sharded:
            return self.model
        # Workers evaluate different images, so each needs all parameters.
        copy = network.make(self.job.model).to(self.engine.device)
        with self.engine.full_params(self.model):
            copy.load_state_dict(self.model.state_dict())
        return copy


def start(
    job: Job, engine: Engine, stream: TrainStream, store: Store, state: CheckpointState | None
) -> TrainingRun:
    """Return a run at step 0, or at the checkpoint `state`; `store` holds the initial weights."""
    seed_generators(job.seed)
    model = network.make(job.model).to(engine.device)
    if isinstance(model, MIRAGE):
        model.drop_path_seed = job.seed
        model.checkpoint_activations(job.train.activation_checkpointing)
        if job.loss.spd_weight == 0 and model.config.alignment != "none":
            # Without its loss term the SPD head has no gradient, and DDP would wait for one.
            for head in (model.spd_shallow, model.spd_latent):
                head.requires_grad_(False)
    elif job.model.batch_norm != "local":
        use_global_statistics(model.inner)
    if state is not None:
        try:
            model.load_state_dict(dict(state.tensors["model"]))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise CheckpointError(
                f"the weights of the checkpoint of step {state.step} do not fit the model: {first} Give the job "
                "another name."
            ) from error
    elif job.init_from is not None:
        initial_weights.load_stored(job, model, store)
    averaged = None
    if job.train.ema_decay is not None:
        averaged = WeightAverage(model)
        if state is not None:
            averaged.network.load_state_dict(dict(state.tensors["ema"]))
    optimizer = optimizers.make(job.train, [p for _, p in trainable(model)], engine.device)
    # DistributedDataParallel must be made on the stream on which its steps are recorded.
    on_side_stream = job.train.cuda_graph == "auto" and not graphed_step.obstacle(job, engine.device)
    with torch.cuda.stream(side_stream(engine.device)) if on_side_stream else nullcontext():
        wrapped = engine.wrap(model, optimizer)
    run = TrainingRun(
        job=job,
        engine=engine,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        loss_weights=job.loss.build(),
        perceptual=loss_network.load_network(job, store, engine.device),
        ema=averaged,
        steps_per_epoch=stream.order.steps_per_epoch,
        stages=stream.stages,
        skipped=SkippedSteps(engine.device, state.skipped_steps if state is not None else 0),
    )
    if state is not None:
        engine.load_optimizer_state(model, optimizer, state.tensors["optimizer"])
        if engine.loss_scale is not None:
            engine.loss_scale.load(state.gradient_scale)
        run.step, run.validation, run.plateau = state.step, dict(state.metrics), state.plateau
    return run


def compile_blocks(run: TrainingRun, driver: Driver) -> None:
    """Compile the model's blocks if all workers can; otherwise on no worker, with one warning."""
    obstacle = compile.compiler_error(run.engine.device.type)
    if not run.engine.all_reduce_any(bool(obstacle)):
        compile.compile_blocks(run.model)
    elif run.engine.rank == 0:
        why = obstacle or "another worker has no compiler."
        driver.emit(LogMessage(f"train.compile: cannot compile, the blocks run eagerly: {why}", "warning"))


def record_steps(run: TrainingRun, driver: Driver) -> None:
    """Have steps recorded and replayed if all workers can; otherwise they run eagerly, and one line says why."""

    def run_eagerly(why: str) -> None:
        if run.engine.rank == 0:
            driver.emit(LogMessage(f"train.cuda_graph: steps run eagerly: {why}"))

    def after_failure(why: str) -> None:
        run.optimizer.zero_grad(set_to_none=True)
        run.wrapped = run.model  # a recording that failed leaves DDP in mid-step
        run.wrapped = run.engine.wrap(run.model, run.optimizer)
        run_eagerly(why)

    if why := graphed_step.obstacle(run.job, run.engine.device):
        run_eagerly(why)
    else:
        recorder = graphed_step.recorder(run.engine.device)
        run.graph = GraphedStep(recorder, run.engine.all_reduce_any, after_failure)
