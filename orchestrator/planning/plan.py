"""Plan a training job: data, steps, memory, time and cost, computed without Ray and without a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from mirage.cost import fast_macs, macs, parameters
from orchestrator.config import crop_stages
from orchestrator.config.presets import SETTINGS
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import METRIC, Job
from orchestrator.console import count
from orchestrator.data import datasets
from orchestrator.errors import PlanError
from orchestrator.planning import throughput
from orchestrator.planning.estimate import GIB, Estimate, checkpoint_bytes, egress, estimate, rate_of
from orchestrator.planning.pitfalls import pitfalls
from orchestrator.planning.reading import reading
from orchestrator.planning.throughput import Throughput
from shards.crop_schedule import CropSchedule, TrainingStage
from shards.dataset import Dataset
from shards.errors import ShardsError, UnreachableStoreError
from shards.mixture import Mixture

if TYPE_CHECKING:
    from orchestrator.planning.network_cost import TrainingMemory

MACS_AT = 224
"""Image side in pixels for which MACs are stated, as in the paper."""
_GPU_GIB = (24, 48, 80, 141)
"""Memory of common GPUs."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a plan; `render` returns them as text."""

    job: Job
    parameters: int
    parameters_at_inference: int
    macs: int
    """Multiply-adds of one 3 x 224 x 224 image in the reference form with all heads, as papers count; 0: unknown."""
    fast_macs: int
    """Multiply-adds of this implementation at inference."""
    mixture: Mixture
    """Degradations of an epoch."""
    stages: CropSchedule
    """Crop size and batch size by step."""
    counts_source: str
    """Source of the sample counts."""
    samples_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    warnings: tuple[str, ...] = ()
    records: tuple[tuple[Job, Throughput], ...] = ()
    """Throughput of earlier runs in the same store."""
    estimates: tuple[Estimate, ...] = ()
    """For workers.min and workers.max; empty for a user-defined model."""
    packed_bytes: int | None = None
    """Size of the packed data; None where it cannot be read."""
    macs_unknown: str = ""
    """Why the multiply-adds of a user-defined network are not known."""
    network_memory: TrainingMemory | None = None
    """Memory to train a user-defined network with workers.min; None for a MIRAGE, or if it is not known."""
    reading: str = ""
    """What readers must deliver, and what pipelines cost."""

    @property
    def epochs(self) -> float:
        """Return how often the run reads its data; stages may change the batch on the way."""
        used = self.steps_per_epoch * self.job.train.global_batch_size
        return self.stages.position_at(self.total_steps) / used

    def render(self) -> str:
        """Return the plan as text for a terminal."""
        job, train = self.job, self.job.train
        micro = self._micro_batches()
        workers = (
            f"{job.workers.min}"
            if job.workers.min == job.workers.max
            else f"{job.workers.min} to {job.workers.max}"
        )
        kind = f"{job.workers.gpus:g} GPU" if job.workers.gpus else f"{job.workers.cpus:g} CPU"
        begins = [f"init       from {job.init_from}"] if job.init_from else []
        if job.model.class_ is None:
            model = (
                f"{job.model.label}: {self.parameters:,} parameters ({self.parameters_at_inference:,} at inference), "
                f"{self.macs / 1e9:.2f} GMACs at {MACS_AT}² ({self.fast_macs / 1e9:.2f} as executed)"
            )
        else:
            macs_text = (
                f"{self.macs / 1e9:.2f} GMACs at {MACS_AT}²"
                if self.macs
                else f"MACs unknown ({self.macs_unknown})"
            )
            model = f"{job.model.label}: {self.parameters:,} parameters, {macs_text}"
        lines = [
            f"job {job.name}   setting {job.setting}   recipe {job.recipe}   seed {job.seed}",
            "",
            f"model      {model}",
            *begins,
            f"loss       {job.loss.describe()}",
            f"data       {', '.join(datasets.manifest_uris(job))}   (counts: {self.counts_source})",
        ]
        total = self.samples_per_epoch
        negatives = (
            f"; {_then(n - 1 for n in micro)} SPD negatives per image" if job.model.class_ is None else ""
        )
        width = max(9, *(len(entry.degradation) for entry in self.mixture.entries))
        for entry in self.mixture.entries:
            repeat = f"{entry.repeat:<3}" if entry.repeat % 1 == 0 else f"{float(entry.repeat):<3.2f}"
            lines.append(
                f"             {entry.degradation:<{width}} {entry.count:>7,} x {repeat} = {entry.per_epoch:>8,}   "
                f"{100 * entry.per_epoch / total:4.1f} %"
            )
        lines += [
            f"epoch      {total:,} samples = {self.steps_per_epoch:,} steps of {train.global_batch_size} "
            f"(the last {total - self.steps_per_epoch * train.global_batch_size} "
            f"{'dropped' if job.data.tail == 'drop' else 'carried over'})",
            f"training   {self.total_steps:,} steps = {self.epochs:,.2f} epochs, "
            f"{self.stages.position_at(self.total_steps):,} samples of {self._crops()}, {train.precision}",
            f"batch      {_then(stage.batch for stage in self._stages())} images, {self._accumulation()}, "
            f"over {workers} worker{'' if workers == '1' else 's'} of {kind} each",
            f"           batch-norm statistics over {self._statistics()}{negatives}",
            f"engine     {self._engine()}",
            f"rate       {train.optimizer} {train.learning_rate:g}, schedule {train.schedule}{self._schedule()}",
            f"evaluate   {', '.join(job.evaluate.degradations)}   protocol {job.evaluate.protocol}   "
            f"{'EMA' if train.ema_decay else 'raw'} weights",
            f"registers  {job.track.register_as or 'nothing'}",
            *self._requirements(),
            *([f"readers    {self.reading}"] if self.reading else []),
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def _schedule(self) -> str:
        """Return the details of the schedule, if it has any."""
        train = self.job.train
        if train.schedule == "restarts":
            cycles = (f"{c.steps:,} steps at {c.weight:g} to {c.minimum_rate:g}" for c in train.cycles)
            return f": {', '.join(cycles)}"
        if train.schedule == "multistep":
            return f": x {train.rate_factor:g} at steps {', '.join(f'{step:,}' for step in train.milestones)}"
        if train.schedule == "plateau":
            return (
                f": x {train.rate_factor:g} after {train.patience + 1} validations without a higher {METRIC}"
            )
        return f" to {train.minimum_rate:g}" if train.minimum_rate else ""

    def _requirements(self) -> list[str]:
        """Return the lines about memory, time, cost and egress, each with its source."""
        if not self.estimates:
            return [
                self._network_memory(),
                "time       unknown for a user-defined network; the lines of training say how much is left",
            ]
        job, few, many = self.job, self.estimates[0], self.estimates[-1]
        memory = few.memory
        state = memory.weights + memory.gradients + memory.optimizer + memory.ema
        lines = [
            f"memory     {memory.total / GIB:.2f} GiB per worker with {count(few.workers, 'worker')}"
            + (f", {many.memory.total / GIB:.2f} with {many.workers}" if many is not few else "")
            + f": {state / GIB:.2f} weights, gradients, optimiser{', EMA' if memory.ema else ''}, "
            f"{memory.activations / GIB:.2f} activations; temporary buffers of the backward pass come on top",
            f"time       {'' if few.rate.measured else 'roughly '}"
            + ", ".join(
                f"{_hours(e.hours)} on {count(e.workers, 'worker')} ({e.step_seconds:.3g} s per step)"
                for e in self.estimates
            )
            + f"; speed from {few.rate.source}",
        ]
        if few.cost is None:
            lines.append("cost       unknown: set prices.worker_hour, or give --prices FILE")
        else:
            costs = (
                f"{job.prices.currency} {e.cost:,.2f} on {count(e.workers, 'worker')}" for e in self.estimates
            )
            lines.append(f"cost       {', '.join(costs)}")
        lines.append(f"egress     {self._egress()}")
        return lines

    def _network_memory(self) -> str:
        """Return the line about the memory of a user-defined network."""
        found = self.network_memory
        if found is None:
            return (
                "memory     unknown: the network does not run without its numbers; run a few steps to measure"
            )
        state = found.estimate.total - found.estimate.activations
        given = self.job.workers.memory_gib
        fits = ", ".join(
            f"{found.images_in(gib * GIB):,} in {gib:g} GiB" for gib in ([given] if given else _GPU_GIB)
        )
        return (
            f"memory     {found.estimate.total / GIB:.2f} GiB per worker with {count(self.job.workers.min, 'worker')}: "
            f"{state / GIB:.2f} weights, gradients, optimiser{', EMA' if found.estimate.ema else ''}, "
            f"{found.estimate.activations / GIB:.2f} activations; most images of a micro-batch per worker: {fits}; "
            "temporary buffers come on top"
        )

    def _egress(self) -> str:
        job, many = self.job, self.estimates[-1].workers
        saved = checkpoint_bytes(job) * (self.total_steps // job.checkpoint.every_steps)
        written = (
            f"checkpoints write {saved / GIB:,.1f} GiB in all; the newest {job.checkpoint.keep} are kept"
        )
        if self.packed_bytes is None:
            return f"unknown before the data is packed; {written}"
        read = egress(job, self.packed_bytes, self.epochs, many) / GIB
        price = job.prices.egress_gib
        cost = "" if price is None else f", {job.prices.currency} {read * price:,.2f}"
        return f"at most {read:,.2f} GiB of shards, for {count(many, 'worker')} on separate nodes{cost}; {written}"

    def _crops(self) -> str:
        """Return the crop sizes as text: `128² pixels`, or stage by stage."""
        stages = self._stages()
        if len(stages) == 1:
            return f"{stages[0].pixels}² pixels"
        texts = (f"{s.batch} x {s.pixels}² pixels from step {s.from_step:,}" for s in stages)
        return ", ".join(texts)

    def _engine(self) -> str:
        engine = self.job.engine
        return engine.name if engine.name == "ddp" else f"{engine.name}, ZeRO stage {engine.zero_stage}"

    def _accumulation(self) -> str:
        parts = self.job.train.micro_batches
        return (
            "no gradient accumulation"
            if parts == 1
            else f"{parts} micro-batches of {_then(self._micro_batches())}"
        )

    def _statistics(self) -> str:
        if self.job.model.batch_norm == "local":
            return "each worker's share (batch_norm: local): the result depends on the number of workers"
        return f"{_then(self._micro_batches())} images, for any number of workers"

    def _stages(self) -> Sequence[TrainingStage]:
        """Return the stages of crops and batches that the run reaches."""
        return [stage for stage in self.stages.stages if stage.from_step < max(1, self.total_steps)]

    def _micro_batches(self) -> list[int]:
        """Return the images of a micro-batch in each stage."""
        return [stage.batch // self.job.train.micro_batches for stage in self._stages()]


def _then(numbers: Iterable[int]) -> str:
    """Return the numbers of successive stages as text, one for those that are equal: `8` or `8, then 2`."""
    return ", then ".join(str(number) for number, _ in groupby(numbers))


def make_plan(job: Job, *, strict: bool, dataset: Dataset | None = None) -> Plan:
    """Return the plan of `job`.

    With `strict`, raises PlanError where data is missing. Otherwise missing data is a warning, and the published sample
    counts of the setting are used. Raises PlanError if a held-out photograph is too small for a pipeline's kernel.
    """
    warnings: list[str] = []
    packed_bytes, reachable = None, True
    try:
        dataset = dataset or datasets.open_dataset(job)
        packed_bytes = sum(shard.size for manifest in dataset.manifests for shard in manifest.shards)
        datasets.check_holds(dataset, job)
        held, counts_source = datasets.counts(dataset, job), "manifest"
    except (ShardsError, PlanError) as error:
        if strict:
            raise
        reachable = not isinstance(error, UnreachableStoreError)
        published = SETTINGS[job.setting].published
        if job.data.pack is None and not published:
            raise  # only the data tells the sample counts of setting `own`
        if job.data.pack is not None:
            held = datasets.planned_counts(job)
            counts_source = "to be packed"
        else:
            held = {d: published.get(d, 0) for d in job.data.mixture}
            counts_source = "published"
            warnings.append(f"the data cannot be used, so the counts are the published ones. {error}")
    else:
        datasets.check_kernels(dataset, job, job.evaluate.degradations)
    order = datasets.order(job, held)
    stages = crop_stages.stages(job, order.positions_per_epoch)
    steps = total_steps(job.train, order.steps_per_epoch)
    records = tuple(throughput.earlier_runs(job)) if reachable and job.model.class_ is None else ()
    estimates = _estimates(job, stages, steps, records)
    if job.workers.memory_gib is not None and estimates:
        needed = estimates[0].memory.total / GIB
        if needed > job.workers.memory_gib:
            warnings.append(
                f"a worker needs {needed:.1f} GiB, more than workers.memory_gib ({job.workers.memory_gib:g}). "
                "List what fits: mirage plan --shapes"
            )
    warnings += pitfalls(job, order.mixture, steps, estimates[0].rate if estimates else None)
    read = reading(job, order.mixture, stages, steps, estimates)
    warnings += [read.warning] if read.warning else []
    return Plan(
        job=job,
        **_costs(job),
        mixture=order.mixture,
        stages=stages,
        counts_source=counts_source,
        samples_per_epoch=order.mixture.samples_per_epoch,
        steps_per_epoch=order.steps_per_epoch,
        total_steps=steps,
        warnings=tuple(warnings),
        records=records,
        estimates=estimates,
        packed_bytes=packed_bytes,
        reading=read.words,
    )


def _estimates(
    job: Job, stages: CropSchedule, steps: int, records: tuple[tuple[Job, Throughput], ...]
) -> tuple[Estimate, ...]:
    if job.model.class_ is not None:
        return ()
    rate = rate_of(job, stages, records)
    counts = sorted({job.workers.min, job.workers.max})
    return tuple(estimate(job, stages, steps, workers, rate) for workers in counts)


def _hours(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:,.1f} min"


def _costs(job: Job) -> dict[str, Any]:
    """Return parameters and multiply-adds, and the memory of a user-defined model."""
    if job.model.class_ is not None:
        from orchestrator.planning import network_cost  # imports torch

        found = network_cost.network_cost(job.model, MACS_AT)
        return {
            "parameters": found.parameters,
            "parameters_at_inference": found.parameters,
            "macs": found.macs or 0,
            "fast_macs": found.macs or 0,
            "macs_unknown": found.reason,
            "network_memory": network_cost.training_memory(job, job.workers.min),
        }
    config = job.model.build()
    return {
        "parameters": parameters(config),
        "parameters_at_inference": parameters(config, spd_head=False),
        "macs": macs(config, MACS_AT, MACS_AT),
        "fast_macs": fast_macs(config, MACS_AT, MACS_AT),
    }
