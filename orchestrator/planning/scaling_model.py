"""Model of how the cost of a training step scales with the number of workers.

    step      compute of the slowest worker + waits for data + communication
    run       steps + checkpoints + work lost to preemptions and restarts

Communication of one step, per micro-batch where it is inside the model:

    gradients      one ring all-reduce of 4 bytes per parameter, after the last micro-batch: 2 (p - 1) messages of
                   1/p; with very many workers a pipelined tree, where that is faster
    batch norm     two small all-reduces for each of the model's blocks (35 of T: 70), one forward and one backward
    negatives      the embeddings of the global micro-batch, summed as zero-padded rows, forward and backward

A small all-reduce is a tree of 2 ceil(log2 p) messages, dominated by latency. Nothing is assumed to overlap with the
backward pass. The inputs are measured (`mirage bench scaling`) or assumed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Network:
    """The network between the workers."""

    latency_seconds: float
    """Latency of one message."""
    bytes_per_second: float
    """Bandwidth of one worker's link, in each direction."""

    def ring(self, size: float, workers: int) -> float:
        """Return the seconds of a ring all-reduce of `size` bytes."""
        if workers == 1:
            return 0.0
        messages = 2 * (workers - 1)
        return messages * self.latency_seconds + messages / workers * size / self.bytes_per_second

    def all_reduce(self, size: float, workers: int) -> float:
        """Return the seconds of an all-reduce by the faster of a ring and a pipelined tree, as NCCL chooses."""
        if workers == 1:
            return 0.0
        messages = 2 * math.ceil(math.log2(workers))
        tree = messages * self.latency_seconds + 2 * size / self.bytes_per_second
        return min(self.ring(size, workers), tree)

    def tree(self, size: float, workers: int) -> float:
        """Return the seconds of a small all-reduce: up and down a binary tree."""
        if workers == 1:
            return 0.0
        messages = 2 * math.ceil(math.log2(workers))
        return messages * (self.latency_seconds + size / self.bytes_per_second)


@dataclass(frozen=True)
class StepCost:
    """Work and messages of one step, on any hardware."""

    parameters: int
    """Number of parameters."""
    blocks: int
    """Number of blocks with synchronised batch norm: one small all-reduce forward and one backward each."""
    norm_channels: int
    """Mean number of channels of those norms."""
    embedding: int
    """Number of InfoNCE features of an image, both depths together."""
    micro_batches: int = 1


@dataclass(frozen=True)
class WorkerSpeed:
    """Speed and reliability of one worker."""

    step_seconds: float
    """Fixed time of a step: optimiser, launches."""
    image_seconds: float
    """Time per image of the worker's share."""
    data_seconds: float = 0.0
    """Wait for data per step."""
    spread: float = 0.0
    """Standard deviation of a worker's step time over its mean, independent between steps."""
    preemptions_per_hour: float = 0.0
    """Preemptions per hour of one worker."""


@dataclass(frozen=True)
class CheckpointPolicy:
    """Checkpoint interval, and the costs of a checkpoint and a restart."""

    checkpoint_steps: int = 500
    checkpoint_seconds: float = 0.0
    """Time that training stops for one checkpoint."""
    restart_seconds: float = 60.0
    """Time from the loss of a worker to the next step."""


@dataclass(frozen=True)
class ScalingPoint:
    """Result for one number of workers: seconds of a step by cause."""

    workers: int
    global_batch: int
    compute: float
    straggling: float
    data: float
    gradients: float
    norms: float
    negatives: float
    useful: float
    """Share of a run's time that is progress; the rest is checkpoints, restarts and lost work."""

    @property
    def communication(self) -> float:
        """Return the seconds of all messages."""
        return self.gradients + self.norms + self.negatives

    @property
    def step(self) -> float:
        """Return the seconds of a step."""
        return self.compute + self.straggling + self.data + self.communication

    @property
    def images_per_second(self) -> float:
        """Return the images per second over a run, including lost time."""
        return self.useful * self.global_batch / self.step


def straggler_excess(workers: int, spread: float) -> float:
    """Return the excess of the slowest of `workers` over the mean, relative to it (Blom's approximation)."""
    return spread * NormalDist().inv_cdf((workers - 0.375) / (workers + 0.25)) if workers > 1 else 0.0


def useful_share(step: float, preemptions_per_second: float, policy: CheckpointPolicy) -> float:
    """Return the share of time that is progress, with memoryless preemptions at this rate of all workers together.

    A checkpoint interval either completes or is repeated after a restart (Daly, 2006).
    """
    interval = policy.checkpoint_steps * step
    if preemptions_per_second == 0:
        return interval / (interval + policy.checkpoint_seconds)
    exponent = preemptions_per_second * (interval + policy.checkpoint_seconds)
    if exponent > 700:
        return 0.0
    return interval / ((1 / preemptions_per_second + policy.restart_seconds) * math.expm1(exponent))


def best_checkpoint_steps(step: float, preemptions_per_second: float, checkpoint_seconds: float) -> int:
    """Return the best checkpoint interval in steps, by Young's formula."""
    if preemptions_per_second == 0:
        raise ValueError("without preemptions no checkpoint interval is best")
    seconds = math.sqrt(2 * max(checkpoint_seconds, step) / preemptions_per_second)
    return max(1, round(seconds / step))


def predict(
    workers: int,
    global_batch: int,
    cost: StepCost,
    speed: WorkerSpeed,
    network: Network,
    policy: CheckpointPolicy | None = None,
) -> ScalingPoint:
    """Return the times of `workers` that share `global_batch` images. Raises ValueError when one gets no image."""
    micro_batch = global_batch // cost.micro_batches
    if workers > micro_batch:
        raise ValueError(f"{workers} workers cannot share a micro-batch of {micro_batch} images")
    largest = cost.micro_batches * math.ceil(micro_batch / workers)
    compute = speed.step_seconds + largest * speed.image_seconds
    small = 4 * (2 * cost.norm_channels + 1)
    norms = cost.micro_batches * 2 * cost.blocks * network.tree(small, workers)
    negatives = cost.micro_batches * 2 * 2 * network.all_reduce(4 * cost.embedding / 2 * micro_batch, workers)
    seconds = {
        "compute": compute,
        "straggling": compute * straggler_excess(workers, speed.spread),
        "data": speed.data_seconds,
        "gradients": network.all_reduce(4 * cost.parameters, workers),
        "norms": norms,
        "negatives": negatives,
    }
    rate = workers * speed.preemptions_per_hour / 3600
    useful = useful_share(sum(seconds.values()), rate, policy or CheckpointPolicy())
    return ScalingPoint(workers, global_batch, **seconds, useful=useful)


def efficiency(point: ScalingPoint, one: ScalingPoint) -> float:
    """Return the throughput per worker at `point` relative to one worker alone, at `one`."""
    return point.images_per_second / point.workers / one.images_per_second
