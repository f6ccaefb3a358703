"""The block of MIRAGE: three branches that mix a third of the channels each, and a gated feed-forward net.

Everything here takes and returns channels-last maps (b, h, w, c): layer norm and 1x1 convolutions then work
on contiguous rows, one row per pixel.  Paper: Sec. 4, Alg. 1.
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


def pointwise(inputs: int, outputs: int) -> nn.Linear:
    """A 1x1 convolution, which on channels-last maps is a matrix product."""
    return nn.Linear(inputs, outputs, bias=False)


def add(fresh: Tensor, other: Tensor) -> Tensor:
    """`fresh + other`, in place: the gradient of a sum needs neither. Under autocast the wider type wins."""
    return fresh.add_(other) if fresh.dtype == other.dtype else fresh + other


class Depthwise(nn.Module):
    """One learned 3x3 kernel per channel, zero padding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 3, 3))
        nn.init.uniform_(self.weight, -1 / 3, 1 / 3)  # torch's default for 9 inputs: 1 / sqrt(9)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c)."""
        return kernels.depthwise(x, self.weight)


class ChannelAttention(nn.Module):
    """Attention between channels: which channels vary together over the image decides how they are mixed."""

    other_head: Tensor

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = pointwise(channels, 3 * channels)
        self.qkv_depthwise = Depthwise(3 * channels)
        self.temperature = nn.Parameter(torch.ones(heads))
        head = torch.arange(channels) // (channels // heads)
        self.register_buffer("other_head", head[:, None] != head[None, :], persistent=False)

    def forward(self, x: Tensor, gram: Tensor | None = None) -> Tensor:
        """x (b, h, w, c); gram: `self.gram` of the whole image where x is a part of it."""
        matrix, taps = self.qkv.weight, self.qkv_depthwise.weight
        if gram is None:
            v, gram = kernels.attention_input(x, matrix, taps)
        else:
            values = 2 * x.shape[3]
            v = kernels.depthwise(F.linear(x, matrix[values:]), taps[values:])
        return torch.bmm(v.flatten(1, 2), self._mixing(gram).to(v.dtype).transpose(1, 2)).view(x.shape)

    def gram(self, x: Tensor, rows: slice) -> Tensor:
        """What attention needs to know of an image: inner products of q and k over some rows, (b, 2c, 2c).

        x (b, h, w, c) has the rows above and below as well, since the 3x3 convolution looks at them.
        """
        qk = 2 * x.shape[3]
        matrix, taps = self.qkv.weight[:qk], self.qkv_depthwise.weight[:qk]
        return kernels.gram(kernels.depthwise(F.linear(x, matrix), taps)[:, rows].flatten(1, 2))

    def _mixing(self, inner: Tensor) -> Tensor:
        """Inner products of q and k, (b, 2c, 2c) → how channels mix, (b, c, c), block diagonal by head.

        One Gram matrix holds q.k and, on its diagonal, the squared norms: no normalised q or k is written.
        """
        channels = inner.shape[1] // 2
        norms = inner.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()  # (b, 2c)
        cosines = inner[:, :channels, channels:] / (norms[:, :channels, None] * norms[:, None, channels:])

        temperature = self.temperature.repeat_interleave(channels // self.heads)  # (c,)
        logits = (cosines * temperature[:, None]).masked_fill(self.other_head, -torch.inf)
        return logits.softmax(dim=2)


class GatedConvolution(nn.Module):
    """A 7x7 depthwise convolution whose kernels are generated from the image, inside a gated unit.

    The batch norm, the gate's temperature and the expansion are one affine map. Averaging commutes with that
    map, so the generator needs the average of its input only: the kernels are known before anything expands.
    """

    def __init__(self, channels: int, config: ModelConfig) -> None:
        super().__init__()
        hidden = int(8 / 3 * channels)
        self.channels = channels
        self.hidden = hidden
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

    def forward(self, x: Tensor, keep: Tensor | None, image_mean: Tensor | None = None) -> Tensor:
        """x (b, h, w, c); keep (b,) scales each sample's gated path (DropPath), None keeps all.

        image_mean (b, c): mean of the whole image, in eval mode, where x is a part of it.
        """
        channels = self.channels
        scale, shift, image_mean = self.norm(x) if image_mean is None else self.norm.running(image_mean)
        cool = torch.cat((1 / self.temperature.expand(self.hidden), scale.new_ones(self.hidden)))
        unscaled = self.expand.weight * cool[:, None]
        weight, bias = unscaled * scale, unscaled @ shift
        if self.static:
            windows = self.kernels.expand(x.shape[0], -1, -1, -1)
        else:
            windows = self._kernels(F.linear(image_mean, weight[-channels:], bias[-channels:]))

        y = kernels.gated_unit(x, weight, bias, windows, self.contract.weight)
        if keep is not None:
            y = y * keep.to(y.dtype)[:, None, None, None]
        out: Tensor = self.project(add(y, x))
        return out

    def _kernels(self, pooled: Tensor) -> Tensor:
        """Pooled input (b, c) → one kernel per image and channel, (b, c, 7, 7)."""
        generated: Tensor = self.kernel_out(F.gelu(self.kernel_hidden(pooled)))
        return generated.view(-1, self.channels, KERNEL_SIZE, KERNEL_SIZE)


class ChannelMLP(nn.Module):
    """Two layers at each pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = pointwise(channels, 2 * channels)
        self.contract = pointwise(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x (b, h, w, c)."""
        return kernels.channel_mlp(x, self.expand.weight, self.contract.weight)


class Fusion(nn.Module):
    """Each branch is lifted by a gate that the others open: `z_i + s_i * sigmoid(sum of T_ij z_j, j != i)`.

    T_ij is the identity where branches i and j are equally wide, which is the paper's form at ratios 1:1:1.
    Elsewhere it is learned, at first orthogonal and scaled so that the variance of the gate's input is kept.
    A single branch passes unchanged.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        gated = widths if len(widths) > 1 else []
        self.plain = len(widths) > 1 and len(set(widths)) == 1
        """Whether there are gates and no projections: with the product that follows this is one kernel."""
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in gated)
        self.projections = nn.ParameterDict()
        for i, to in enumerate(widths):
            for j, of in enumerate(widths):
                if to != of:
                    matrix = nn.init.orthogonal_(torch.empty(to, of), gain=math.sqrt(max(to / of, 1)))
                    self.projections[f"{i}_{j}"] = nn.Parameter(matrix)

    def forward(self, branches: list[Tensor]) -> list[Tensor]:
        """One map (b, h, w, width) per branch, in and out."""
        if not self.scales:
            return branches
        return [x + self.scales[i] * torch.sigmoid(self._others(i, branches)) for i, x in enumerate(branches)]

    def _others(self, i: int, branches: list[Tensor]) -> Tensor:
        terms = [
            F.linear(x, self.projections[f"{i}_{j}"]) if f"{i}_{j}" in self.projections else x
            for j, x in enumerate(branches)
            if j != i
        ]
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]


class Whole(NamedTuple):
    """All that a mixer knows of an image as a whole; the rest it sees through windows of 7x7 pixels."""

    gram: Tensor | None
    """Of `ChannelAttention.gram`, (b, 2a, 2a)."""
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

    def forward(self, x: Tensor, keep: Tensor | None, whole: Whole | None = None) -> Tensor:
        """x (b, h, w, c); keep (b,) or None; whole: of the image that x is a part of, None if it is all of it."""
        gram, image_mean = whole or (None, None)
        parts = iter(torch.split(x, self.widths, dim=3))
        branches = []
        if self.attention is not None:
            branches.append(self.attention(next(parts), gram))
        if self.convolution is not None:
            branches.append(self.convolution(next(parts), keep, image_mean))
        if self.mlp is not None:
            branches.append(self.mlp(next(parts)))
        if self.fusion is not None and self.fusion.plain:
            return kernels.fused_product(branches, torch.cat(list(self.fusion.scales)), self.project.weight)
        if self.fusion is not None:
            branches = self.fusion(branches)
        out: Tensor = self.project(torch.cat(branches, dim=3))
        return out


class FeedForward(nn.Module):
    """Expand, look at the 3x3 neighbourhood, gate, contract. GELU acts before the convolution as well."""

    def __init__(self, channels: int, expansion: float) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.expand = pointwise(channels, 2 * hidden)
        self.depthwise = Depthwise(2 * hidden)
        self.contract = pointwise(hidden, channels)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """x (b, h, w, c), normed first."""
        return kernels.feed_forward(
            x, norm.weight, norm.bias, self.expand.weight, self.depthwise.weight, self.contract.weight
        )


class Block(nn.Module):
    """Mixer and feed-forward network, each behind a layer norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=kernels.NORM_EPS)
        self.mixer = Mixer(channels, heads, config)
        self.norm2 = nn.LayerNorm(channels, eps=kernels.NORM_EPS)
        self.ffn = FeedForward(channels, config.ffn_expansion)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x (b, h, w, c); keep (b,) or None."""
        x = add(self.mixer(self.norm1(x), keep), x)
        return add(self.ffn(x, self.norm2), x)
