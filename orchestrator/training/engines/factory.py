"""Choose the engine that a job asks for."""

from __future__ import annotations

from datetime import timedelta

import torch

from orchestrator.config.schema import Job
from orchestrator.training.engines.base import Engine
from orchestrator.training.engines.ddp import DDPEngine


def engine_for(job: Job, device: torch.device) -> Engine:
    """Return the engine that `job` asks for, in an initialised `torch.distributed` world."""
    control_timeout = timedelta(seconds=job.workers.collective_timeout_seconds)
    if job.engine.name == "ddp":
        return DDPEngine(device, job.train.precision, control_timeout)
    from orchestrator.training.engines.deepspeed import DeepSpeedEngine

    train, stage = job.train, job.engine.zero_stage
    return DeepSpeedEngine(
        device, train.precision, stage, train.micro_batches, train.clip_norm, control_timeout
    )
