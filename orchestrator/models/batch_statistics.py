"""BatchNorm layers of user-defined networks with the statistics of the global micro-batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mirage.collective import all_reduce_sum, world_size
from mirage.kernels.reference import at_least_fp32
from orchestrator.errors import ModelError


class GlobalBatchNorm(nn.BatchNorm2d):
    """A batch norm whose statistics are those of the images of all processes, weighted by their numbers of pixels.

    `torch.nn.SyncBatchNorm` computes the same, but refuses tensors on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, c, ...); in eval mode as torch does."""
        if world_size() == 1 or not self.training:
            return super().forward(x)
        wide = at_least_fp32(x)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = wide.new_full((1,), x.numel() // x.shape[1], dtype=torch.float64)
        # In float64, because the variance is a difference of large sums.
        sums = (wide.sum(axes, dtype=torch.float64), wide.square().sum(axes, dtype=torch.float64))
        pooled = all_reduce_sum(torch.cat((count, *sums)))
        count, total, squares = torch.split(pooled, [1, x.shape[1], x.shape[1]])
        mean = total / count
        var = squares / count - mean.square()
        if self.running_mean is not None:
            self._update_running(mean.detach(), var.detach(), count)
        scale, shift = torch.rsqrt(var + self.eps), -mean * torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale, shift = scale * self.weight, shift * self.weight + self.bias
        of_channel = (1, -1, *(1 for _ in axes[1:]))
        scale, shift = (v.to(wide.dtype).view(of_channel) for v in (scale, shift))
        normalised: Tensor = (wide * scale + shift).to(x.dtype)
        return normalised

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept every number of axes that the layer accepted before."""

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = var * count / (count - 1).clamp(min=1)
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(batch.to(running.dtype), momentum)


_LAYERS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def use_global_statistics(network: nn.Module) -> None:
    """Make every batch norm of `network` a GlobalBatchNorm with the same parameters and names.

    Raises ModelError for layers that compute something else than torch's batch norms, whose code this would drop.
    """
    for name, layer in network.named_modules():
        if type(layer) in _LAYERS:
            layer.__class__ = GlobalBatchNorm  # keeps its tensors, its hooks and its place in the network
        elif isinstance(layer, _LAYERS) and not isinstance(layer, GlobalBatchNorm):
            raise ModelError(
                f"{name} is a {type(layer).__name__}, a batch norm of its own kind, whose statistics cannot be "
                "those of the global batch. Set model.batch_norm: local."
            )
