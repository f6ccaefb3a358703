"""DropPath: the blocks that each sample skips, as a function of the sample and not of the process that holds it."""

from __future__ import annotations

import torch
from torch import Tensor

# Constants of the splitmix64 finaliser, as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right logically: torch's own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Scramble int64 bijectively (splitmix64); products wrap around."""
    x = (x ^ _shift_right(x, 30)) * _MIX1
    x = (x ^ _shift_right(x, 27)) * _MIX2
    return x ^ _shift_right(x, 31)


def uniform_by_key(keys: Tensor, rows: int, seed: int) -> Tensor:
    """Return (rows, b) float64 in [0, 1) for int64 keys (b,), each a function of its key, row and the seed alone."""
    row = torch.arange(1, rows + 1, device=keys.device)[:, None] * _GOLDEN  # (rows, 1)
    # Filled on the device: a tensor of the host's number would be copied, for which the host waits.
    seeds = torch.full((1,), seed, dtype=torch.int64, device=keys.device)
    state = _mix(_mix(keys + _mix(seeds + _GOLDEN)) + row)
    return _shift_right(state, 11).double() * 2.0**-53


def drop_path_scales(
    probability: float, blocks: int, batch: int, keys: Tensor | None, seed: int, device: torch.device
) -> Tensor:
    """Return factors (blocks, b): 0 where a sample skips a block, 1 / (1 - probability) elsewhere, with mean 1.

    Without keys they are drawn from torch's global generator.
    """
    if keys is None:
        return _scales(torch.rand(blocks, batch, device=device), probability)
    return _scales(uniform_by_key(keys.to(device), blocks, seed), probability)


def _scales(draws: Tensor, probability: float) -> Tensor:
    return (draws < 1 - probability).double() / (1 - probability)
