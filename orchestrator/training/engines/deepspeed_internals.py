"""Import DeepSpeed without compiling its extensions on a CPU.

DeepSpeed has no public switch for this, so this module changes its private table of available operators.
`tests/orchestrator/training/engines/test_deepspeed_internals.py` fails when an upgrade removes the table or the entry.
"""

from __future__ import annotations

import os
from typing import Any

import torch

SHARED_MEMORY_OPERATOR = "deepspeed_shm_comm"
"""Collectives through shared memory: compiled at first use, for about a minute. Without them, DeepSpeed uses gloo."""


def import_deepspeed(device: torch.device) -> Any:
    """Return the package `deepspeed`, set up for this kind of device; on a CPU it compiles nothing."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATOR] = False
    return deepspeed
