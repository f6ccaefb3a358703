"""Comparing photographs takes fewer comparisons than there are pairs, and memory for the photographs alone."""

from __future__ import annotations

import numpy as np
import pytest

from shards import similar
from shards.similar import FINGERPRINT, similar_images
from tests.scale.counted import peak_bytes
from tests.scale.growth import grows

PHOTOGRAPHS = [1_000, 3_000, 9_000]


def different(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    prints = np.zeros(count, FINGERPRINT)
    prints["exact"] = rng.integers(0, 256, (count, 32), np.uint8).view("V32")[:, 0]
    prints["hash"] = rng.integers(0, 2**63, count, dtype=np.uint64) << np.uint64(1)
    prints["thumbnail"] = rng.integers(0, 256, (count, 256))
    return prints


def alike(count: int) -> np.ndarray:
    rng = np.random.default_rng(count)
    prints = different(count)
    prints["hash"] = np.uint64(0xABCDEF0123456788) ^ (
        np.uint64(1) << rng.integers(1, 64, count).astype(np.uint64)
    )
    prints["thumbnail"] = np.clip(
        different(1)["thumbnail"].astype(int) + rng.integers(-5, 6, (count, 256)), 0, 255
    )
    return prints


@pytest.mark.parametrize("photographs", [different, alike])
def test_comparisons_and_memory(photographs, monkeypatch: pytest.MonkeyPatch):
    """The constant part of the memory, the buckets and a batch of candidates, hides in none of the sizes."""
    compared = [0]
    compare = similar._Buckets._compare

    def counted(self, links, first, second):
        compared[0] += len(first)
        compare(self, links, first, second)

    monkeypatch.setattr(similar._Buckets, "_compare", counted)
    pairs = []

    def cost(count: int) -> float:
        prints, tested = photographs(count), np.arange(count) % 10 == 0
        compared[0] = 0
        peak = peak_bytes(lambda: similar_images(prints, tested))
        pairs.append(compared[0] / (count * (count - 1) / 2))
        assert peak < 24_000_000 + 1_000 * count
        return peak

    grows(cost, PHOTOGRAPHS, at_most=1.0)
    assert pairs[-1] < 0.05, "share of all pairs that were compared"
