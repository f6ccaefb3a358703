"""Keyed permutations and uniform draws of integers."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SCRAMBLE = np.uint64(0xBF58476D1CE4E5B9)


def permute(offsets: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Map `offsets` by a keyed bijection of [0, size).

    A balanced Feistel network permutes the next power of four. Values outside [0, size) are permuted again until they
    are inside (cycle walking), which preserves the bijection. The expected number of passes is below four.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = offsets.astype(np.uint64)
    outside = np.ones(out.shape, bool)
    while outside.any():
        left, right = out[outside] >> half, out[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        out[outside] = (left << half) | right
        outside &= out >= np.uint64(size)
    return out.astype(np.int64)


def permutation(size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the complete keyed permutation of [0, size) for one epoch, for tests and small sets."""
    return permute(np.arange(size, dtype=np.int64), size, keys_of(seed, epoch, "permutation"))


def keys_of(seed: int, epoch: int, purpose: str) -> NDArray[np.uint64]:
    """Return the round keys of one permutation or draw."""
    digest = hashlib.blake2b(
        struct.pack("<qq", seed, epoch) + purpose.encode(), digest_size=8 * _ROUNDS, person=b"sample order"
    ).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def _mix(value: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    mixed = (value + key) * _GOLDEN  # unsigned array arithmetic wraps, as intended
    mixed ^= mixed >> np.uint64(29)
    mixed *= _SCRAMBLE
    mixed ^= mixed >> np.uint64(32)
    return mixed


def uniform(offsets: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Draw uniformly from [0, size), independently for each offset; the bias of the modulus is below size / 2**64."""
    mixed = offsets.astype(np.uint64)
    for key in keys:
        mixed = _mix(mixed, key)
    return (mixed % np.uint64(size)).astype(np.int64)
