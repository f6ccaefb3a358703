"""Checking the ledger of a run takes the same memory for any number of steps."""

from __future__ import annotations

from pathlib import Path

import torch

from shards.ledger import SampleLedger, read_ledger
from shards.store import LocalStore
from shards.stream import Batch
from tests.scale.counted import peak_bytes
from tests.scale.growth import stays_flat

IMAGES, WORKERS, CHECKPOINT = 32, 2, 100


def test_the_memory_of_a_check_does_not_grow_with_the_run(tmp_path: Path):
    none = torch.zeros(IMAGES // WORKERS)

    def cost(steps: int) -> float:
        store = LocalStore(tmp_path / f"{steps}")
        for rank in range(WORKERS):
            ledger = SampleLedger(store, 0, rank, WORKERS)
            for step in range(steps):
                first = step * IMAGES + rank * IMAGES // WORKERS
                positions = torch.arange(first, first + IMAGES // WORKERS)
                ids = [f"photograph-{int(p)}" for p in positions]
                ledger.record(step, Batch(none, none, none, positions, ["rain"] * len(ids), ids, (0, IMAGES)))
                if step % CHECKPOINT == CHECKPOINT - 1:
                    ledger.flush()
        peak = peak_bytes(lambda: read_ledger(store, steps * IMAGES))
        assert peak < 4 << 20  # 256 bytes a position would be 16 MB at 2,000 steps
        return peak

    stays_flat(cost, [200, 600, 2_000])
