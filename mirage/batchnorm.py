"""Batch normalisation as a scale and a shift, with statistics of the global micro-batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mirage import kernels
from mirage.collective import all_reduce_sum

EPS = 1e-5
MOMENTUM = 0.1


class NormAffine(NamedTuple):
    """The affine form of a batch norm: `x * scale + shift` normalises x."""

    scale: Tensor
    """(c,)"""
    shift: Tensor
    """(c,)"""
    image_mean: Tensor
    """(b, c), the mean of x over the pixels of each image: a by-product, which the filter generator needs."""


class BatchNorm(nn.Module):
    """BatchNorm2d that returns its affine form, so that the next 1x1 convolution absorbs it.

    `synced` computes the statistics over the images of all processes, weighted by their numbers of pixels. The running
    statistics are then equal in every process.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, synced: bool) -> None:
        super().__init__()
        self.synced = synced
        self.updates_statistics = True
        """Whether training updates the running statistics; False while activation checkpointing runs a block again."""
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> NormAffine:
        """Return the affine form for x (b, h, w, c)."""
        if not self.training:
            return self.from_running_statistics(x.mean((1, 2)))
        image_mean, squares = kernels.moments(x)
        mean, var = self._batch_statistics(image_mean, squares, pixels=x.shape[1] * x.shape[2])
        return self._affine(mean, var, image_mean)

    def from_running_statistics(self, image_mean: Tensor) -> NormAffine:
        """Return the affine form of eval mode, for images with this mean (b, c)."""
        return self._affine(self.running_mean, self.running_var, image_mean)

    def _affine(self, mean: Tensor, var: Tensor, image_mean: Tensor) -> NormAffine:
        scale = self.weight * torch.rsqrt(var + EPS)
        return NormAffine(scale, self.bias - mean * scale, image_mean)

    def _batch_statistics(self, image_mean: Tensor, squares: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
        """Pool per-image statistics (b, c) over images and processes with one all-reduce.

        In float64, because the variance of the means is a difference of large sums.
        """
        mean, squares = image_mean.double(), squares.double()
        count = mean.new_full((1,), mean.shape[0] * pixels)
        packed = torch.cat((count, pixels * mean.sum(0), squares.sum(0) + pixels * mean.square().sum(0)))
        if self.synced:
            packed = all_reduce_sum(packed)
        count, total, square_sum = torch.split(packed, [1, mean.shape[1], mean.shape[1]])
        mean = total / count
        var = square_sum / count - mean.square()
        if self.updates_statistics:
            self._update_running(mean, var, count)
        return mean.to(self.weight.dtype), var.to(self.weight.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Move the running statistics towards those of a batch with `count` pixels."""
        self.num_batches_tracked += 1
        unbiased = var * count / (count - 1)
        # A batch that is not finite must not enter the averages: the training step will be skipped.
        finite = torch.isfinite(mean) & torch.isfinite(unbiased)
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.copy_(torch.where(finite, running.lerp(batch.to(running.dtype), MOMENTUM), running))
