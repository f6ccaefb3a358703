"""How a training step scales over workers: a model of its costs, all of them stated.

    step      computing the slowest worker's share + waiting for data + communicating what is not hidden
    run       steps + checkpoints + what preemptions undo and the restarts they cost

Communication of one step, per micro-batch where it is inside the model:

    gradients      one ring all-reduce of 4 bytes a parameter, after the last micro-batch: 2 (p - 1) messages of 1/p;
                   among very many workers a pipelined tree, where that is quicker
    batch norm     two small all-reduces for each of the model's blocks (35 of T: 70), one forward and one backward
    negatives      the embeddings of the global micro-batch, summed as zero-padded rows, forward and backward

A small all-reduce is taken as a tree, 2 ceil(log2 p) messages, whose time is latency. Nothing is hidden behind the
backward pass unless `hidden` says how much of the gradients' reduction is. Pure arithmetic: what is put in was measured
(`mirage bench scaling`) or assumed, and whoever prints a result says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist


@dataclass(frozen=True)
class Network:
    """What joins the workers."""

    latency_seconds: float
    """Of one message."""
    bytes_per_second: float
    """Of one worker's link, each way."""

    def ring(self, size: float, workers: int) -> float:
        """Seconds of a ring all-reduce of `size` bytes."""
        if workers == 1:
            return 0.0
        messages = 2 * (workers - 1)
        return messages * self.latency_seconds + messages / workers * size / self.bytes_per_second

    def all_reduce(self, size: float, workers: int) -> float:
        """Seconds of an all-reduce by the quicker of a ring and a pipelined tree, as NCCL chooses: rings when few."""
        if workers == 1:
            return 0.0
        messages = 2 * math.ceil(math.log2(workers))
        tree = messages * self.latency_seconds + 2 * size / self.bytes_per_second
        return min(self.ring(size, workers), tree)

    def tree(self, size: float, workers: int) -> float:
        """Seconds of a small all-reduce: up a binary tree and down again."""
        if workers == 1:
            return 0.0
        messages = 2 * math.ceil(math.log2(workers))
        return messages * (self.latency_seconds + size / self.bytes_per_second)


@dataclass(frozen=True)
class StepCost:
    """What one step of a job asks for, whatever runs it."""

    parameters: int
    blocks: int
    """Blocks with synchronised batch norm: each takes one small reduction forward and one backward."""
    norm_channels: int
    """Mean width of those norms."""
    embedding: int
    """Numbers that an image contributes to InfoNCE, both depths together."""
    micro_batches: int = 1


@dataclass(frozen=True)
class WorkerSpeed:
    """What one worker is, and how reliable."""

    step_seconds: float
    """Of a step that holds no images: the optimiser, launches."""
    image_seconds: float
    """That each further image of the worker's share takes."""
    data_seconds: float = 0.0
    """Spent waiting for data, per step."""
    spread: float = 0.0
    """Standard deviation of a worker's time over its mean, independent from step to step: what makes stragglers."""
    preemptions_per_hour: float = 0.0
    """Of one worker."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """How a run is kept safe."""

    checkpoint_steps: int = 500
    checkpoint_seconds: float = 0.0
    """That training stands still for one checkpoint."""
    restart_seconds: float = 60.0
    """From a lost worker to the next step."""


@dataclass(frozen=True)
class ScalingPoint:
    """One number of workers: seconds of a step by cause, and what is left of it over a run."""

    workers: int
    global_batch: int
    compute: float
    straggling: float
    data: float
    gradients: float
    norms: float
    negatives: float
    kept: float
    """Share of the time of a run that is steps which count: the rest is checkpoints, restarts and work done twice."""

    @property
    def communication(self) -> float:
        """Seconds of all messages that nothing hides."""
        return self.gradients + self.norms + self.negatives

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return self.compute + self.straggling + self.data + self.communication

    @property
    def images_per_second(self) -> float:
        """Over a run, with its losses."""
        return self.kept * self.global_batch / self.step


def straggler_excess(workers: int, spread: float) -> float:
    """Return by how much of the mean the slowest of `workers` exceeds it (Blom's approximation for normal times)."""
    return spread * NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25)) if workers > 1 else 0.0


def useful_share(step: float, preemptions_per_second: float, policy: CheckpointPolicy) -> float:
    """Return the share of time that is progress, when preemptions come without memory at this rate over all workers.

    A stretch between two checkpoints succeeds whole or is done again after a restart (Daly, 2006).
    """
    stretch = policy.checkpoint_steps * step
    if preemptions_per_second == 0:
        return stretch / (stretch + policy.checkpoint_seconds)
    exponent = preemptions_per_second * (stretch + policy.checkpoint_seconds)
    if exponent > 700:
        return 0.0
    return stretch / ((1 / preemptions_per_second + policy.restart_seconds) * math.expm1(exponent))


def best_checkpoint_steps(step: float, preemptions_per_second: float, checkpoint_seconds: float) -> int:
    """Return the interval that loses least, after Young's formula."""
    if preemptions_per_second == 0:
        raise ValueError("without preemptions the best interval is none")
    seconds = math.sqrt(2 * max(checkpoint_seconds, step) / preemptions_per_second)
    return max(1, round(seconds / step))


def predict(
    workers: int,
    global_batch: int,
    cost: StepCost,
    speed: WorkerSpeed,
    network: Network,
    policy: CheckpointPolicy | None = None,
    hidden: float = 0.0,
) -> ScalingPoint:
    """Return the point of `workers` that share `global_batch` images.

    `hidden`: share of the gradients' reduction behind the backward pass. ValueError with less than one image each.
    """
    micro_batch = global_batch // cost.micro_batches
    if workers > micro_batch:
        raise ValueError(f"{workers} workers cannot share a micro-batch of {micro_batch} images")
    largest = cost.micro_batches * math.ceil(micro_batch / workers)
    compute = speed.step_seconds + largest * speed.image_seconds
    small = 4 * (2 * cost.norm_channels + 1)
    norms = cost.micro_batches * 2 * cost.blocks * network.tree(small, workers)
    negatives = cost.micro_batches * 2 * 2 * network.all_reduce(4 * cost.embedding / 2 * micro_batch, workers)
    point = ScalingPoint(
        workers=workers,
        global_batch=global_batch,
        compute=compute,
        straggling=compute * straggler_excess(workers, speed.spread),
        data=speed.data_seconds,
        gradients=(1 - hidden) * network.all_reduce(4 * cost.parameters, workers),
        norms=norms,
        negatives=negatives,
        kept=1.0,
    )
    rate = workers * speed.preemptions_per_hour / 3600
    return replace(point, kept=useful_share(point.step, rate, policy or CheckpointPolicy()))


def efficiency(point: ScalingPoint, one: ScalingPoint) -> float:
    """Return what a worker yields at `point` over what it yields alone, at `one`."""
    return point.images_per_second / point.workers / (one.images_per_second / one.workers)


def strong(
    counts: tuple[int, ...],
    global_batch: int,
    cost: StepCost,
    speed: WorkerSpeed,
    network: Network,
    policy: CheckpointPolicy,
) -> list[ScalingPoint]:
    """Return one point for each number of workers that share one batch."""
    return [predict(n, global_batch, cost, speed, network, policy) for n in counts]


def weak(
    counts: tuple[int, ...],
    each: int,
    cost: StepCost,
    speed: WorkerSpeed,
    network: Network,
    policy: CheckpointPolicy,
) -> list[ScalingPoint]:
    """Return one point for each number of workers that take `each` images apiece: the global batch grows with them."""
    return [predict(n, n * each, cost, speed, network, policy) for n in counts]
