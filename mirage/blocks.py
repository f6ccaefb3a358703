"""The block of MIRAGE: three branches that mix a third of the channels each, and a gated feed-forward network.

All maps are channels last, (b, h, w, c): layer norm and 1x1 convolutions then work on contiguous rows, one row per
pixel. Paper: Sec. 4, Alg. 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage import kernels
from mirage.batchnorm import BatchNorm
from mirage.config import KERNEL_SIZE, ModelConfig
from mirage.kernels.reference import add_in_place, mix_channels


def pointwise(inputs: int, outputs: int) -> nn.Linear:
    """Return a 1x1 convolution, which on channels-last maps is a matrix product."""
    return nn.Linear(inputs, outputs, bias=False)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=kernels.NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (b, h, w, c)."""
        return kernels.layer_norm(x, self.weight, self.bias)


class Depthwise(nn.Module):
    """A 3x3 depthwise convolution with zero padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, 3))
        nn.init.uniform_(self.weight, -1 / 3, 1 / 3)  # torch's default for 9 inputs: 1 / sqrt(9)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x (b, h, w, c)."""
        return kernels.depthwise(x, self.weight)


class ChannelAttention(nn.Module):
    """Attention between channels, by how much they vary together over the image."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.qkv = pointwise(channels, 3 * channels)
        self.qkv_depthwise = Depthwise(3 * channels)
        self.temperature = nn.Parameter(torch.ones(heads))

    def forward(self, x: Tensor, gram: Tensor | None = None) -> Tensor:
        """Apply attention to x (b, h, w, c); gram is `self.gram` of the whole image if x is a part of it."""
        matrix, filters = self.qkv.weight, self.qkv_depthwise.weight
        if gram is None:
            return kernels.attention(x, matrix, filters, self.temperature)
        values = 2 * x.shape[3]
        v = kernels.depthwise(F.linear(x, matrix[values:]), filters[values:])
        return mix_channels(v, gram, self.temperature)

    def gram(self, x: Tensor, rows: slice) -> Tensor:
        """Return the inner products of q and k over some rows, (b, 2c, 2c): all that attention takes from an image.

        x (b, h, w, c) includes the rows above and below, which the 3x3 convolution reads.
        """
        qk = 2 * x.shape[3]
        matrix, filters = self.qkv.weight[:qk], self.qkv_depthwise.weight[:qk]
        return kernels.gram(kernels.depthwise(F.linear(x, matrix), filters)[:, rows].flatten(1, 2))


class GatedConvolution(nn.Module):
    """A 7x7 depthwise convolution with filters generated from the image, inside a gated unit.

    The batch norm, the temperature of the gate and the expansion are one affine map. Averaging commutes with it, so the
    generator needs only the average of its input, and the filters are known before anything is expanded.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        hidden = int(8 / 3 * channels)
        self.norm = BatchNorm(channels, synced=config.batch_norm == "synced")
        self.expand = pointwise(channels, 2 * hidden)  # gate | identity | convolved
        self.static = config.kernels == "static"
        if self.static:
            self.kernels = nn.Parameter(torch.empty(channels, KERNEL_SIZE, KERNEL_SIZE))
            nn.init.uniform_(self.kernels, -1 / KERNEL_SIZE, 1 / KERNEL_SIZE)
        else:
            self.kernel_hidden = pointwise(channels, channels)
            self.kernel_out = pointwise(channels, channels * KERNEL_SIZE**2)
        self.contract = pointwise(hidden, channels)
        self.project = pointwise(channels, channels)
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, path_scale: Tensor | None, image_mean: Tensor | None = None) -> Tensor:
        """Apply the branch to x (b, h, w, c).

        path_scale (b,): DropPath's factor of each sample's gated path, None for 1.
        image_mean (b, c): mean of the whole image if x is a part of it, in eval mode.
        """
        statistics = self.norm(x) if image_mean is None else self.norm.in_eval_mode(image_mean)
        return kernels.gated_convolution(
            x,
            statistics,
            self.norm.weight,
            self.norm.bias,
            self.temperature,
            self.expand.weight,
            None if self.static else self.kernel_hidden.weight,
            self.kernels if self.static else self.kernel_out.weight,
            self.contract.weight,
            self.project.weight,
            path_scale,
        )


class ChannelMLP(nn.Module):
    """Two linear layers at each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = pointwise(channels, 2 * channels)
        self.contract = pointwise(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to x (b, h, w, c)."""
        return kernels.channel_mlp(x, self.expand.weight, self.contract.weight)


class Fusion(nn.Module):
    """Gates between the branches: `z_i + s_i * sigmoid(sum of T_ij z_j, j != i)`.

    T_ij is the identity if branches i and j are equally wide, which is the paper's form at ratios 1:1:1. Otherwise it
    is learned, initialised orthogonal and scaled to keep the variance of the gate's input. A single branch passes
    unchanged.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        gated = widths if len(widths) > 1 else []
        self.without_projections = len(widths) > 1 and len(set(widths)) == 1
        """Whether there are gates but no projections; the next linear layer is then fused into the same kernel."""
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in gated)
        self.projections = nn.ParameterDict()
        for i, to in enumerate(widths):
            for j, of in enumerate(widths):
                if to != of:
                    matrix = nn.init.orthogonal_(torch.empty(to, of), gain=math.sqrt(max(to / of, 1)))
                    self.projections[f"{i}_{j}"] = nn.Parameter(matrix)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """Gate the branches, one map (b, h, w, width) each."""
        if not self.scales:
            return branches
        return [
            x + self.scales[i] * torch.sigmoid(self._sum_of_others(i, branches))
            for i, x in enumerate(branches)
        ]

    def _sum_of_others(self, i: int, branches: list[Tensor]) -> Tensor:
        terms = [
            F.linear(x, self.projections[f"{i}_{j}"]) if f"{i}_{j}" in self.projections else x
            for j, x in enumerate(branches)
            if j != i
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class GlobalStatistics(NamedTuple):
    """All that a mixer takes from the whole image; the rest it reads within 7x7 pixels."""

    gram: Tensor | None
    """Result of `ChannelAttention.gram`, (b, 2a, 2a)."""
    image_mean: Tensor | None
    """Mean over the pixels of the convolution branch's input, (b, g)."""


class Mixer(nn.Module):
    """The paper's channel-wise functional decomposition. A branch of width zero does not exist."""

    attention: ChannelAttention | None
    convolution: GatedConvolution | None
    mlp: ChannelMLP | None

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        attention, convolution, mlp = config.widths(channels)
        self.widths = [width for width in (attention, convolution, mlp) if width]
        self.attention = ChannelAttention(attention, heads) if attention else None
        self.convolution = GatedConvolution(convolution, config) if convolution else None
        self.mlp = ChannelMLP(mlp) if mlp else None
        self.fusion = Fusion(self.widths) if config.fusion == "gated" else None
        self.project = pointwise(channels, channels)

    def forward(
        self,
        x: Tensor,
        path_scale: Tensor | None,
        statistics: GlobalStatistics | None = None,
        shortcut: Tensor | None = None,
    ) -> Tensor:
        """Mix x (b, h, w, c).

        path_scale (b,): DropPath's factors, or None. statistics: of the whole image if x is a part of it. shortcut: a
        map that is added to the result.
        """
        gram, image_mean = statistics or (None, None)
        parts = iter(torch.split(x, self.widths, dim=3))
        branches = []
        if self.attention is not None:
            branches.append(self.attention(next(parts), gram))
        if self.convolution is not None:
            branches.append(self.convolution(next(parts), path_scale, image_mean))
        fused = self.fusion is not None and self.fusion.without_projections
        mlp = None
        if self.mlp is not None and fused and not torch.is_grad_enabled():
            branches.append(next(parts))
            mlp = self.mlp.expand.weight, self.mlp.contract.weight  # one kernel instead of two
        elif self.mlp is not None:
            branches.append(self.mlp(next(parts)))
        if self.fusion is not None and fused:
            scales = list(self.fusion.scales)
            return kernels.fusion_linear(branches, scales, self.project.weight, shortcut, mlp)
        if self.fusion is not None:
            branches = self.fusion(branches)
        out: Tensor = self.project(torch.cat(branches, dim=3))
        return out if shortcut is None else add_in_place(out, shortcut)


class FeedForward(nn.Module):
    """The gated feed-forward network: expand, GELU, 3x3 convolution, gate, contract."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = pointwise(channels, 2 * hidden)
        self.depthwise = Depthwise(2 * hidden)
        self.contract = pointwise(hidden, channels)

    def forward(self, x: Tensor, norm: LayerNorm, shortcut: bool = False) -> Tensor:
        """Apply `norm` and the network to x (b, h, w, c), and add x if `shortcut`."""
        weights = self.expand.weight, self.depthwise.weight, self.contract.weight
        return kernels.feed_forward(x, norm.weight, norm.bias, *weights, shortcut)


class Block(nn.Module):
    """A mixer and a feed-forward network, each with a layer norm before it and a shortcut around it."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.mixer = Mixer(channels, heads, config)
        self.norm2 = LayerNorm(channels)
        self.ffn = FeedForward(channels, config.ffn_expansion)

    def forward(self, x: Tensor, path_scale: Tensor | None) -> Tensor:
        """Apply the block to x (b, h, w, c); path_scale (b,) or None."""
        x = self.mixer(self.norm1(x), path_scale, shortcut=x)
        out: Tensor = self.ffn(x, self.norm2, shortcut=True)
        return out
