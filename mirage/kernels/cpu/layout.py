"""The blocked channel layout of the C code: channels in blocks of `lanes()`, the last block padded with zeros.

The padding changes no result: `GELU(0) * 0` is 0, and so is every product with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mirage.kernels.cpu.library import lanes


def round_up(channels: int) -> int:
    """Return the number of channels including the padding of the last block."""
    return -(-channels // lanes()) * lanes()


def to_blocks(matrix: Tensor) -> Tensor:
    """Convert (k, n) → (blocks, k, lanes), the last block padded with zeros."""
    rows, columns = matrix.shape
    missing = round_up(columns) - columns
    padded = F.pad(matrix, (0, missing)) if missing else matrix
    return padded.reshape(rows, -1, lanes()).permute(1, 0, 2).contiguous()


def from_blocks(x: Tensor) -> Tensor:
    """Convert (blocks, k, lanes) → (k, channels), including the padding."""
    return x.permute(1, 0, 2).flatten(1)


def pad_parts(weight: Tensor, parts: int = 1) -> Tensor:
    """Pad each part of a weight (parts * n, ...) with zeros to whole blocks."""
    split = weight.view(parts, -1, *weight.shape[1:])
    missing = round_up(split.shape[1]) - split.shape[1]
    if not missing:
        return weight
    return torch.cat((split, split.new_zeros(parts, missing, *split.shape[2:])), 1).flatten(0, 1)


def unpad_parts(weight: Tensor, n: int, parts: int = 1) -> Tensor:
    """Invert `pad_parts` for parts of n channels."""
    return weight.view(parts, -1, *weight.shape[1:])[:, :n].flatten(0, 1)


class GatedParts:
    """The hidden channels of a gated unit: those that pass and those that are convolved, each in whole blocks."""

    def __init__(self, hidden: int, convolved: int) -> None:
        self.passed, self.convolved = hidden - convolved, convolved
        self.blocks = round_up(self.passed) // lanes(), round_up(convolved) // lanes()

    def pad(self, weight: Tensor, parts: int) -> Tensor:
        """Pad (parts * n, ...) → (parts * channels of the blocks, ...)."""
        if self.passed == 0:
            return pad_parts(weight, parts)
        split = weight.view(parts, self.passed + self.convolved, *weight.shape[1:])
        pieces = split[:, : self.passed], split[:, self.passed :]
        padded = [pad_parts(x.flatten(0, 1), parts).view(parts, -1, *weight.shape[1:]) for x in pieces]
        return torch.cat(padded, 1).flatten(0, 1)

    def unpad(self, weight: Tensor, parts: int) -> Tensor:
        """Invert `pad`."""
        split = weight.view(parts, -1, *weight.shape[1:])
        first = lanes() * self.blocks[0]
        return torch.cat((split[:, : self.passed], split[:, first : first + self.convolved]), 1).flatten(0, 1)


def filters_to_blocks(filters: Tensor) -> Tensor:
    """Convert (b, m, 7, 7) → (b, blocks, 49, lanes)."""
    batch, count = filters.shape[:2]
    padded = F.pad(filters.flatten(2), (0, 0, 0, round_up(count) - count))
    return padded.view(batch, -1, lanes(), padded.shape[2]).transpose(2, 3).contiguous()
