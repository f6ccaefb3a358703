"""What a job will do and what it takes, computed without Ray and without a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from mirage.cost import fast_macs, macs, parameters
from orchestrator.config import crop_stages
from orchestrator.config.presets import SETTINGS
from orchestrator.config.schedule import total_steps
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import PlanError
from orchestrator.models import user_model
from orchestrator.planning import throughput
from orchestrator.planning.estimate import GIB, Estimate, checkpoint_bytes, egress, estimate, rate_of
from orchestrator.planning.throughput import Throughput
from shards.crop_schedule import CropSchedule
from shards.dataset import Dataset
from shards.errors import ShardsError, UnreachableStoreError
from shards.mixture import Mixture

MACS_AT = 224
"""Image side for which MACs are stated, as the paper does."""


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a job; `render` says it in words."""

    job: Job
    parameters: int
    parameters_at_inference: int
    macs: int
    """Multiply-adds of one 3 x 224 x 224 image, plain reference form with the heads, as papers count them."""
    fast_macs: int
    """Those that this implementation does at inference."""
    mixture: Mixture
    """What an epoch is made of."""
    stages: CropSchedule
    """Crop and batch by step."""
    counts_from: str
    """Where the sample counts come from."""
    samples_per_epoch: int
    steps_per_epoch: int
    total_steps: int
    warnings: tuple[str, ...] = ()
    records: tuple[tuple[Job, Throughput], ...] = ()
    """How fast earlier runs in the same store went."""
    estimates: tuple[Estimate, ...] = ()
    """For workers.min and workers.max; none of a class of anybody's."""
    held_bytes: int | None = None
    """Size of the packed data; None where it is out of reach."""

    @property
    def samples(self) -> Mapping[str, tuple[int, Fraction | int]]:
        """Degradation -> (samples that the data holds, repeats)."""
        return {entry.degradation: (entry.count, entry.repeat) for entry in self.mixture.entries}

    def render(self) -> str:
        """Return the plan as text for a terminal."""
        job, train = self.job, self.job.train
        micro = train.global_batch_size // train.micro_batches
        workers = (
            f"{job.workers.min}"
            if job.workers.min == job.workers.max
            else f"{job.workers.min} to {job.workers.max}"
        )
        kind = f"{job.workers.gpus:g} GPU" if job.workers.gpus else f"{job.workers.cpus:g} CPU"
        size = "custom" if set(job.model.changes()) - {"shallow_tap"} else job.model.variant
        begins = [f"begins     from {job.init_from}"] if job.init_from else []
        if job.model.class_ is None:
            model = (
                f"MIRAGE {size}: {self.parameters:,} parameters ({self.parameters_at_inference:,} at inference), "
                f"{self.macs / 1e9:.2f} GMACs at {MACS_AT}² ({self.fast_macs / 1e9:.2f} as we run it)"
            )
        else:
            model = f"{job.model.class_}: {self.parameters:,} parameters; its MACs are not counted"
        lines = [
            f"job {job.name}   setting {job.setting}   recipe {job.recipe}   seed {job.seed}",
            "",
            f"model      {model}",
            *begins,
            f"loss       {job.loss.l1_weight:g} L1 + {job.loss.fourier_weight:g} Fourier + {job.loss.spd_weight:g} SPD",
            f"data       {', '.join(datasets.manifest_uris(job))}   (counts: {self.counts_from})",
        ]
        total = self.samples_per_epoch
        for entry in self.mixture.entries:
            repeat = f"{entry.repeat:<3}" if entry.repeat % 1 == 0 else f"{float(entry.repeat):<3.2f}"
            lines.append(
                f"             {entry.degradation:<9} {entry.count:>7,} x {repeat} = {entry.per_epoch:>8,}   "
                f"{100 * entry.per_epoch / total:4.1f} %"
            )
        lines += [
            f"epoch      {total:,} samples = {self.steps_per_epoch:,} steps of {train.global_batch_size} "
            f"(tail of {total - self.steps_per_epoch * train.global_batch_size} "
            f"{'dropped' if job.data.tail == 'drop' else 'carried over'})",
            f"training   {self.total_steps:,} steps = {self.total_steps / self.steps_per_epoch:,.2f} epochs, "
            f"{self.stages.position_at(self.total_steps):,} samples of {self._crops()}, {train.precision}",
            f"batch      {train.global_batch_size} images = {train.micro_batches} x {micro} over {workers} "
            f"worker{'' if workers == '1' else 's'} of {kind} each",
            f"           statistics over {self._statistics()}; {micro - 1} SPD negatives per image",
            f"engine     {self._engine()}",
            f"rate       {train.optimizer} {train.learning_rate:g}, schedule {train.schedule}",
            f"evaluate   {', '.join(job.evaluate.degradations)}   protocol {job.evaluate.protocol}   "
            f"{'EMA' if train.ema_decay else 'raw'} weights",
            f"registers  {job.track.register_as or 'nothing'}",
            *self._takes(),
        ]
        return "\n".join([*lines, *(f"warning: {text}" for text in self.warnings)])

    def _takes(self) -> list[str]:
        """Return memory, time, money and traffic, with what each rests on."""
        if not self.estimates:
            return ["takes      not known of a class of anybody's: run it for a few steps"]
        job, few, many = self.job, self.estimates[0], self.estimates[-1]
        held = few.memory
        state = held.weights + held.gradients + held.optimizer + held.averaged
        lines = [
            f"memory     {held.total / GIB:.2f} GiB a worker at {few.workers}"
            + (f", {many.memory.total / GIB:.2f} at {many.workers}" if many is not few else "")
            + f": {state / GIB:.2f} weights, gradients, optimiser{', EMA' if held.averaged else ''}; "
            f"{held.activations / GIB:.2f} kept for the backward pass; its temporaries on top",
            f"time       {'' if few.rate.measured else 'roughly '}"
            + ", ".join(
                f"{_hours(e.hours)} on {_workers(e.workers)} ({e.step_seconds:.3g} s a step)"
                for e in self.estimates
            )
            + f"; from {few.rate.source}",
        ]
        if few.money is None:
            lines.append("money      no price is known: give prices.worker_hour, or --prices FILE")
        else:
            costs = (f"{job.prices.currency} {e.money:,.2f} on {_workers(e.workers)}" for e in self.estimates)
            lines.append(f"money      {', '.join(costs)}")
        lines.append(f"egress     {self._egress()}")
        return lines

    def _egress(self) -> str:
        job, many = self.job, self.estimates[-1].workers
        saved = checkpoint_bytes(job) * (self.total_steps // job.checkpoint.every_steps)
        written = f"checkpoints write {saved / GIB:,.1f} GiB, of which {job.checkpoint.keep} stay"
        if self.held_bytes is None:
            return f"not known before the data is packed; {written}"
        epochs = self.total_steps / self.steps_per_epoch
        read = egress(job, self.held_bytes, epochs, many) / GIB
        price = job.prices.egress_gib
        money = "" if price is None else f", {job.prices.currency} {read * price:,.2f}"
        return (
            f"at most {read:,.2f} GiB of shards, at {_workers(many)} on nodes of their own{money}; {written}"
        )

    def _crops(self) -> str:
        """Return the crops in words: `128² pixels`, or stage by stage."""
        stages = self.stages.stages
        if len(stages) == 1:
            return f"{stages[0].pixels}² pixels"
        told = (f"{s.batch} x {s.pixels}² pixels from step {s.from_step:,}" for s in stages)
        return ", ".join(told)

    def _engine(self) -> str:
        engine = self.job.engine
        return engine.name if engine.name == "ddp" else f"{engine.name}, ZeRO stage {engine.zero_stage}"

    def _statistics(self) -> str:
        micro = self.job.train.global_batch_size // self.job.train.micro_batches
        if self.job.model.batch_norm == "local":
            return "each worker's own share (batch_norm: local): the result depends on the number of workers"
        return f"{micro} images, whatever the number of workers"


def make_plan(job: Job, *, strict: bool, dataset: Dataset | None = None) -> Plan:
    """Return the plan of `job`.

    With `strict`, the data must be there (PlanError says what is missing). Without, data out of reach is a warning
    and the setting's published counts stand in.
    """
    warnings: list[str] = []
    held_bytes, reachable = None, True
    try:
        dataset = dataset or datasets.open_dataset(job)
        held_bytes = sum(shard.size for manifest in dataset.manifests for shard in manifest.shards)
        datasets.check_holds(dataset, job)
        held, counts_from = datasets.counts(dataset, job), "manifest"
    except (ShardsError, PlanError) as error:
        if strict:
            raise
        reachable = not isinstance(error, UnreachableStoreError)
        published = SETTINGS[job.setting].published
        if job.data.pack is None and not published:
            raise  # nobody knows how much data of one's own there is but the data
        if job.data.pack is not None:
            held = datasets.planned_counts(job)
            counts_from = "to be packed"
        else:
            held = {d: published.get(d, 0) for d in job.data.mixture}
            counts_from = "published"
            warnings.append(f"the data cannot be used as it is, so the published counts stand in. {error}")
    order = datasets.order(job, held)
    stages = crop_stages.stages(job, order.positions_per_epoch)
    steps = total_steps(job.train, order.steps_per_epoch)
    records = tuple(throughput.earlier_runs(job)) if reachable and job.model.class_ is None else ()
    estimates = _estimates(job, stages, steps, records)
    if job.workers.memory_gib is not None and estimates:
        needed = estimates[0].memory.total / GIB
        if needed > job.workers.memory_gib:
            warnings.append(
                f"a worker needs {needed:.1f} GiB and has {job.workers.memory_gib:g} (workers.memory_gib). "
                "See what fits: mirage plan --shapes"
            )
    return Plan(
        job=job,
        **_costs(job),
        mixture=order.mixture,
        stages=stages,
        counts_from=counts_from,
        samples_per_epoch=order.mixture.samples_per_epoch,
        steps_per_epoch=order.steps_per_epoch,
        total_steps=steps,
        warnings=tuple(warnings),
        records=records,
        estimates=estimates,
        held_bytes=held_bytes,
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


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _costs(job: Job) -> dict[str, int]:
    """Return parameters and multiply-adds; of a class of anybody's only the parameters are known."""
    if job.model.class_ is not None:
        network = user_model.build(job.model.class_, job.model.path, job.model.arguments)
        count = sum(p.numel() for p in network.parameters())
        return {"parameters": count, "parameters_at_inference": count, "macs": 0, "fast_macs": 0}
    config = job.model.build()
    return {
        "parameters": parameters(config),
        "parameters_at_inference": parameters(config, spd_head=False),
        "macs": macs(config, MACS_AT, MACS_AT),
        "fast_macs": fast_macs(config, MACS_AT, MACS_AT),
    }
