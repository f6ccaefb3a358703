"""Time and memory to restore one image, measured in a separate process so that nothing else counts.

python -m orchestrator.promotion.inference_cost WEIGHTS SIDE DIGEST        prints the measurement as JSON

The process runs the code in WEIGHTS, if there is any: its caller has the consent to the file of this digest.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import RegistryError
from orchestrator.promotion.gates import InferenceCost
from orchestrator.registry.resolve import ModelFile

REPEATS = 3
"""Timed restorations, after one untimed; the result is their median."""


def measure_inference_cost(model: ModelFile, side: int) -> InferenceCost:
    """Return the cost of restoring a square image of `side` pixels. Raises RegistryError, ModelError."""
    model.require_consent()
    weights = model.path
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "orchestrator.promotion.inference_cost",
            str(weights),
            str(side),
            model.digest,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RegistryError(f"{weights}: latency and memory cannot be measured at {side} pixels: {last}")
    return InferenceCost(**json.loads(done.stdout.splitlines()[-1]))


def main(weights: str, side: int, digest: str) -> None:
    """Measure in this process and print the result."""
    import torch

    from orchestrator.models.network_file import loads

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = ModelFile(weights, Path(weights), digest).data()
    network = loads(data, device, trusted="all")
    degraded = torch.rand(1, 3, side, side, device=device)
    seconds = []
    for _ in range(1 + REPEATS):
        before = time.perf_counter()
        network.restore(degraded)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # KiB on Linux
    )
    cost = InferenceCost(statistics.median(seconds[1:]), peak / 2**30, side, device.type)
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
