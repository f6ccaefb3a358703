"""Gaussian noise as a function of (seed, key, pixel), computed on the device of the images.

Every value comes from an integer hash of its own counter, so a sample's noise does not depend on the batch, the worker
or the device. Logarithm and cosine use float64: two devices can differ only where a value is within rounding error of
a grey level.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

NoiseRule = Literal["release", "float"]

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer; multiplication wraps
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_LOW = 0xFFFFFFFF


def add_noise(clean: Tensor, sigma: Tensor, keys: Tensor, seed: int, rule: NoiseRule = "release") -> Tensor:
    """Add Gaussian noise of standard deviation `sigma`, in grey levels.

    `clean` is (b, 3, h, w) uint8, `sigma` (b,) float, `keys` (b,) int64. `rule="release"` clips to [0, 255] and
    truncates to uint8 as the authors do, which lowers the mean by half a level. `rule="float"` returns float32 grey
    levels, neither clipped nor quantised. `sigma` 0 adds nothing.
    """
    noisy = clean.double() + _normal(clean.shape, keys, seed) * sigma.double().view(-1, 1, 1, 1)
    if rule == "float":
        return noisy.float()
    return noisy.clamp_(0, 255).to(torch.uint8)


def _normal(shape: torch.Size, keys: Tensor, seed: int) -> Tensor:
    """Return standard normal values of `shape` (b, c, h, w), float64, by Box-Muller on 32-bit uniforms."""
    count = math.prod(shape[1:])
    pairs = torch.arange((count + 1) // 2, device=keys.device, dtype=torch.int64)
    stream = _hash(keys + _hash(torch.full_like(keys, seed)))  # (b,)
    bits = _hash(stream[:, None] + pairs * _GOLDEN)  # (b, pairs)
    uniform = (((bits >> 32) & _LOW).double() + 1) * 2.0**-32  # in (0, 1]: no log of 0
    radius = torch.sqrt(-2 * torch.log(uniform))
    angle = (bits & _LOW).double() * (2 * math.pi * 2.0**-32)
    values = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)  # (b, pairs, 2)
    return values.flatten(1)[:, :count].reshape(shape)


def _hash(value: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64, in wrapping signed arithmetic."""
    value = value + _GOLDEN
    value = (value ^ _shift(value, 30)) * _MIX_1
    value = (value ^ _shift(value, 27)) * _MIX_2
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Shift right logically; torch shifts arithmetically."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
