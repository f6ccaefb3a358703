"""Batch normalisation whose statistics are those of the global micro-batch.

It is an affine map, which the operator after it folds into its own weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirage import kernels
from mirage.collective import all_reduce_sum


class BatchNorm(nn.Module):
    """The weights and statistics of a BatchNorm2d, for `kernels.gated_convolution`.

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

    def forward(self, x: Tensor) -> kernels.NormStatistics:
        """Return the statistics of x (b, h, w, c); in training one all-reduce pools them over the processes."""
        if not self.training:
            return self.in_eval_mode(x.mean((1, 2)))
        image_mean, sums = kernels.batch_sums(x)
        if self.synced:
            sums = all_reduce_sum(sums)
        if self.updates_statistics:
            kernels.update_running(sums, self.running_mean, self.running_var, self.num_batches_tracked)
        return kernels.NormStatistics(image_mean, sums, self.running_mean, self.running_var)

    def in_eval_mode(self, image_mean: Tensor) -> kernels.NormStatistics:
        """Return the statistics of eval mode, for images with this mean (b, c)."""
        return kernels.NormStatistics(image_mean, None, self.running_mean, self.running_var)
