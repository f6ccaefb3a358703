"""The specification: every operator in plain PyTorch. All backends are tested against it.

Channel counts that an operator takes as numbers are `int(...)`: a tracer would treat them as free sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-5
"""Epsilon of layer norm, added to a pixel's variance."""

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1


class NormStatistics(NamedTuple):
    """What batch norm and the filter generator know of their input."""

    image_mean: Tensor
    """(b, c), the mean over the pixels of each image."""
    sums: Tensor | None
    """`batch_sums` over all processes in training; None in eval mode, which takes the running statistics."""
    running_mean: Tensor
    running_var: Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """Cast half precision to fp32; return fp32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k)."""
    channels, size, _ = filters.shape
    y = F.conv2d(x.permute(0, 3, 1, 2), filters[:, None], padding=size // 2, groups=channels)
    return y.permute(0, 2, 3, 1)


def dynamic_depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (b, c, k, k): the images become groups of one image."""
    batch, height, width, channels = x.shape
    folded = x.permute(1, 2, 0, 3).reshape(height, width, batch * channels)[None]
    y = depthwise(folded, filters.flatten(0, 1))
    return y.reshape(height, width, batch, channels).permute(2, 0, 1, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean and sum of squared deviations, (b, h, w, c) → (b, c) each, in fp32 or better."""
    x = at_least_fp32(x)
    mean = x.mean((1, 2))
    return mean, (x - mean[:, None, None]).square().sum((1, 2))


def batch_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean (b, c), and the pixels, sums and sums of squares of the batch (1 + 2c,)."""
    return pool_moments(*moments(x), pixels=x.shape[1] * x.shape[2])


def pool_moments(image_mean: Tensor, squares: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return `batch_sums` for the moments of each image.

    In float64, because the variance of the means is a difference of large sums.
    """
    mean, squares = image_mean.double(), squares.double()
    count = mean.new_full((1,), mean.shape[0] * pixels)
    sums = torch.cat((count, pixels * mean.sum(0), squares.sum(0) + pixels * mean.square().sum(0)))
    return image_mean, sums


def _mean_and_var(sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean and variance (c,), and the pixels (1,), of `batch_sums`; the last is a constant."""
    channels = sums.shape[0] // 2
    count, total, squares = torch.split(sums, [1, channels, channels])
    count = count.detach()
    mean = total / count
    return mean, squares / count - mean.square(), count


@torch.no_grad()
def update_running(sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor) -> None:
    """Move the running statistics (c,) towards those of a batch, and count the batch."""
    mean, var, count = _mean_and_var(sums)
    tracked += 1
    unbiased = var * count / (count - 1)
    # A batch that is not finite must not enter the averages: the training step will be skipped.
    finite = torch.isfinite(mean) & torch.isfinite(unbiased)
    for running, batch in ((running_mean, mean), (running_var, unbiased)):
        moved = running.lerp(batch.to(running.dtype), BATCH_NORM_MOMENTUM)
        running.copy_(torch.where(finite, moved, running))


def gram(x: Tensor) -> Tensor:
    """Return inner products of channels over pixels, (b, n, c) → (b, c, c), in fp32 or better.

    Half precision would round sums over thousands of pixels, and the norms are read from this diagonal.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = at_least_fp32(x)
        return torch.bmm(x.transpose(1, 2), x)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalise the channels of x (b, h, w, c), then multiply by scale (c,) and add shift (c,)."""
    return F.layer_norm(x, (int(x.shape[3]),), scale, shift, NORM_EPS)


def norm_linear(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor) -> Tensor:
    """Apply layer norm over the channels of x (b, h, w, c), then weight (n, c) → (b, h, w, n)."""
    return F.linear(layer_norm(x, scale, shift), weight)


def gated_depthwise(hidden: Tensor, filters: Tensor) -> Tensor:
    """Apply GELU and filters (2n, 3, 3), then gate half of the channels by the other: (b, h, w, 2n) → (b, h, w, n)."""
    gate, values = depthwise(F.gelu(hidden), filters).chunk(2, dim=3)
    return F.gelu(gate) * values


def depthwise_gram(qkv: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve qkv (b, h, w, 3a) with filters (3a, k, k) → v (b, h, w, a), Gram matrix of q and k (b, 2a, 2a)."""
    width = int(qkv.shape[3]) // 3
    qk, v = torch.split(depthwise(qkv, filters), [2 * width, width], dim=3)
    return v, gram(qk.flatten(1, 2))


def gated_values(hidden: Tensor, filters: Tensor) -> Tensor:
    """Gate values by the GELU of gates: hidden (b, h, w, 2n), filters (b, m, k, k) → (b, h, w, n).

    The first n channels are the gates. The last m are convolved first, with filters for each image.
    """
    half, convolved = int(hidden.shape[3]) // 2, int(filters.shape[1])
    gate, identity, rest = torch.split(hidden, [half, half - convolved, convolved], dim=3)
    return F.gelu(gate) * torch.cat((identity, dynamic_depthwise(rest, filters)), dim=3)


def feed_forward(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    shortcut: bool = False,
) -> Tensor:
    """Apply `norm_linear`, `gated_depthwise` and a linear layer, and add x (b, h, w, c) if `shortcut`."""
    out = F.linear(gated_depthwise(norm_linear(x, scale, shift, expand), filters), contract)
    return add_in_place(out, x) if shortcut else out


def attention(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor) -> Tensor:
    """Apply channel attention to x (b, h, w, c); matrix (3a, c), filters (3a, 3, 3), temperature (heads,)."""
    return mix_channels(*attention_input(x, matrix, filters), temperature)


def mix_channels(v: Tensor, gram: Tensor, temperature: Tensor) -> Tensor:
    """Replace the channels of v (b, h, w, a) by averages over their head, weighted by the softmax of cosines.

    The Gram matrix of q and k (b, 2a, 2a) holds q·k and, on its diagonal, the squared norms: no normalised q or k is
    written.
    """
    channels, heads = int(v.shape[3]), int(temperature.shape[0])
    norms = gram.diagonal(dim1=1, dim2=2).clamp_min(1e-24).sqrt()  # (b, 2a)
    cosines = gram[:, :channels, channels:] / (norms[:, :channels, None] * norms[:, None, channels:])

    head = torch.arange(channels, device=v.device) // (channels // heads)
    logits = cosines * temperature.repeat_interleave(channels // heads)[:, None]
    weights = logits.masked_fill(head[:, None] != head, -torch.inf).softmax(dim=2).to(v.dtype)
    return torch.bmm(v.flatten(1, 2), weights.transpose(1, 2)).view(v.shape)


def attention_input(x: Tensor, matrix: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the linear layer `matrix` (3a, c) to x (b, h, w, c), then `depthwise_gram`."""
    return depthwise_gram(F.linear(x, matrix), filters)


def gated_unit(x: Tensor, weight: Tensor, bias: Tensor, filters: Tensor, contract: Tensor) -> Tensor:
    """Apply a linear layer (2n, c), `gated_values` and a linear layer (c, n): (b, h, w, c) → (b, h, w, c)."""
    return F.linear(gated_values(F.linear(x, weight, bias), filters), contract)


def gated_convolution(
    x: Tensor,
    statistics: NormStatistics,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
    contract: Tensor,
    project: Tensor,
    path_scale: Tensor | None,
) -> Tensor:
    """Apply batch norm and the gated convolution to x (b, h, w, c), add x, and apply a last linear layer (o, c).

    gain, offset (c,) of the norm; temperature (1,) divides the gates; expand (2n, c); contract (c, n); path_scale (b,):
    DropPath's factor of each image, None for 1. generator (c, c) and filters (c * k * k, c) are two linear layers that
    make the filters of an image from its mean; without a generator the filters are (c, k, k), for all images.
    """
    weight, bias, made = generated(x, statistics, gain, offset, temperature, expand, generator, filters)
    return end_of_path(gated_unit(x, weight, bias, made, contract), x, project, path_scale)


def generated(
    x: Tensor,
    statistics: NormStatistics,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight (2n, c) and bias (2n,) with norm and temperature folded into them, and filters (b, c, k, k).

    Averaging commutes with an affine map: the generator needs only the average of the input.
    """
    if statistics.sums is None:
        mean, var = statistics.running_mean, statistics.running_var
    else:
        mean, var = (part.to(gain.dtype) for part in _mean_and_var(statistics.sums)[:2])
    scale = gain * torch.rsqrt(var + BATCH_NORM_EPS)
    shift = offset - mean * scale
    hidden = expand.shape[0] // 2
    gate_scale = torch.cat((1 / temperature.expand(hidden), scale.new_ones(hidden)))
    unscaled = expand * gate_scale[:, None]
    weight, bias = unscaled * scale, unscaled @ shift
    if generator is None:
        return weight, bias, filters.expand(x.shape[0], -1, -1, -1)
    channels = int(generator.shape[0])
    pooled = F.linear(statistics.image_mean, weight[-channels:], bias[-channels:])
    size = round((int(filters.shape[0]) // channels) ** 0.5)
    made = F.linear(F.gelu(F.linear(pooled, generator)), filters)
    return weight, bias, made.view(-1, channels, size, size)


def end_of_path(y: Tensor, x: Tensor, project: Tensor, path_scale: Tensor | None) -> Tensor:
    """Return `project (path_scale y + x)`; y may be overwritten."""
    if path_scale is not None:
        y = y * path_scale.to(y.dtype)[:, None, None, None]
    return F.linear(add_in_place(y, x), project)


def add_in_place(x: Tensor, other: Tensor) -> Tensor:
    """Return `x + other`, written into x: the gradient needs neither. Under autocast the wider dtype wins."""
    return x.add_(other) if x.dtype == other.dtype else x + other


def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them at each pixel: (b, h, w, c) → (b, h, w, c)."""
    return F.linear(F.gelu(F.linear(x, expand)), contract)


def fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    weight: Tensor,
    shortcut: Tensor | None = None,
    mlp: Sequence[Tensor] | None = None,
) -> Tensor:
    """Add to each branch the scaled sigmoid of the sum of the others, concatenate, project and add the shortcut.

    mlp: weights of a `channel_mlp`, which is first applied to the last branch.
    """
    if mlp is not None:
        branches = [*branches[:-1], channel_mlp(branches[-1], *mlp)]
    gated = []
    for i, x in enumerate(branches):
        others = [y for j, y in enumerate(branches) if j != i]
        gated.append(x + scales[i] * torch.sigmoid(others[0] if len(others) == 1 else others[0] + others[1]))
    out = F.linear(torch.cat(gated, dim=3), weight)
    return out if shortcut is None else add_in_place(out, shortcut)
