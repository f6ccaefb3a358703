"""What we use of DeepSpeed without a public interface is still there and has its effect."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import orchestrator

SCRIPT = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
from orchestrator.training.engines.deepspeed_internals import SHARED_MEMORY_OPERATOR, import_deepspeed
assert SHARED_MEMORY_OPERATOR in deepspeed.ops.__compatible_ops__, "the table has no such operator"
deepspeed.ops.__compatible_ops__[SHARED_MEMORY_OPERATOR] = True
import_deepspeed(torch.device("cpu"))
from deepspeed.comm.torch import build_shm_op
assert build_shm_op() is None, "DeepSpeed compiles the operator though the table says False"
"""


def test_deepspeed_still_reads_its_table_of_operators() -> None:
    root = str(Path(orchestrator.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (
        f"DeepSpeed {version('deepspeed')} has changed deepspeed.ops.__compatible_ops__: "
        f"adapt orchestrator/training/engines/deepspeed_internals.py\n{done.stderr}"
    )
