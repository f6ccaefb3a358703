"""The Triton backend as operators with gradients, opaque to torch.compile. Triton is imported when the first one runs.

Each operator is a whole branch of a block. What its gradient needs beside the inputs is returned as further outputs, on
which nobody else depends. None uses atomic additions: equal inputs give equal bits, with or without
`torch.use_deterministic_algorithms`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mirage.kernels.custom_op import save_inputs


@torch.library.custom_op("mirage::triton_depthwise", mutates_args=())
def depthwise(x: Tensor, filters: Tensor) -> Tensor:
    """Convolve x (b, h, w, c) with filters (c, k, k) or (b, c, k, k) → (b, h, w, c)."""
    from mirage.kernels.triton import convolution

    return convolution.convolve(x, convolution.prepared(filters, x.dtype))


@torch.library.custom_op("mirage::triton_depthwise_backward", mutates_args=())
def depthwise_backward(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x and filters."""
    from mirage.kernels.triton import convolution

    reversed_filters = convolution.prepared(filters, x.dtype)
    return (
        convolution.convolve(grad, reversed_filters, reverse=True),
        convolution.filter_gradient(grad, x, filters),
    )


@torch.library.custom_op("mirage::triton_gram", mutates_args=())
def gram(x: Tensor) -> Tensor:
    """Return inner products of channels, x (b, n, c) → (b, c, c) in fp32."""
    from mirage.kernels.triton import reductions

    return reductions.gram(x)


@torch.library.custom_op("mirage::triton_gram_backward", mutates_args=())
def gram_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with respect to x."""
    from mirage.kernels.triton import reductions

    return reductions.gram_gradient((grad + grad.mT).float().contiguous(), x)


@torch.library.custom_op("mirage::triton_layer_norm", mutates_args=())
def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """Normalise the channels of x (b, h, w, c); scale and shift (c,)."""
    from mirage.kernels.triton import norm_linear

    return norm_linear.layer_norm(x, scale, shift, eps)


@torch.library.custom_op("mirage::triton_layer_norm_backward", mutates_args=())
def layer_norm_backward(
    grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients with respect to x, and scale and shift (2, c)."""
    from mirage.kernels.triton import norm_linear

    found = norm_linear.norm_gradient(grad[None], x, scale, shift, eps)
    return found[0], found[1]


@torch.library.custom_op("mirage::triton_attention", mutates_args=())
def attention(
    x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply channel attention to x (b, h, w, c); matrix (3a, c), filters (3a, 3, 3), temperature (heads,).

    keep: what the gradient needs; otherwise the further outputs are empty.
    """
    from mirage.kernels.triton import attention_branch as kernels

    return kernels.attention(x, matrix, filters, temperature, keep)  # type: ignore[return-value]


@torch.library.custom_op("mirage::triton_attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    from mirage.kernels.triton import attention_branch as kernels

    return kernels.attention_gradient(grad, x, matrix, filters, temperature, *kept)


@torch.library.custom_op("mirage::triton_batch_sums", mutates_args=())
def batch_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return each image's mean, and the pixels, sums and sums of squares of the batch; x (b, h, w, c)."""
    from mirage.kernels.triton import reductions

    return reductions.batch_sums(x)


@torch.library.custom_op("mirage::triton_batch_sums_backward", mutates_args=())
def batch_sums_backward(grad_mean: Tensor, grad_sums: Tensor, x: Tensor) -> Tensor:
    """Return the gradient with respect to x."""
    from mirage.kernels.triton import reductions

    return reductions.batch_sums_gradient(grad_mean, grad_sums, x)


@torch.library.custom_op(
    "mirage::triton_update_running", mutates_args=("running_mean", "running_var", "tracked")
)
def update_running(
    sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor, momentum: float
) -> None:
    """Move the running statistics towards those of a batch."""
    from mirage.kernels.triton import reductions

    reductions.update_running(sums, running_mean, running_var, tracked, momentum)


@torch.library.custom_op("mirage::triton_gated_convolution", mutates_args=())
def gated_convolution(
    x: Tensor,
    image_mean: Tensor,
    sums: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
    contract: Tensor,
    project: Tensor,
    path_scale: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Apply the gated convolution to x (b, h, w, c); see `reference.gated_convolution`. keep: for a gradient."""
    from mirage.kernels.triton import convolution_branch as kernels

    given = (x, image_mean, sums, running_mean, running_var, gain, offset, temperature, expand, generator)
    out, kept = kernels.gated_convolution(
        kernels.Inputs(*given, filters, contract, project, path_scale), keep
    )
    return out, *kept


@torch.library.custom_op("mirage::triton_gated_convolution_backward", mutates_args=())
def gated_convolution_backward(
    grad: Tensor,
    x: Tensor,
    image_mean: Tensor,
    sums: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    gain: Tensor,
    offset: Tensor,
    temperature: Tensor,
    expand: Tensor,
    generator: Tensor | None,
    filters: Tensor,
    contract: Tensor,
    project: Tensor,
    path_scale: Tensor | None,
    kept: list[Tensor],
) -> list[Tensor]:
    """Return the gradients in the order of `_gated_gradients`."""
    from mirage.kernels.triton import convolution_branch as kernels

    given = (x, image_mean, sums, running_mean, running_var, gain, offset, temperature, expand, generator)
    inputs = kernels.Inputs(*given, filters, contract, project, path_scale)
    found = kernels.gated_convolution_gradient(grad, inputs, kernels.Kept(*kept))
    return [found[name] for name in _gated_gradients(sums, generator)]


def _gated_gradients(sums: Tensor | None, generator: Tensor | None) -> list[str]:
    """Return the names of the inputs that have a gradient."""
    names = ["x", "image_mean", "gain", "offset", "temperature", "expand", "filters", "contract", "project"]
    return names + ["sums"] * (sums is not None) + ["generator"] * (generator is not None)


_GATED_INPUTS = (
    *("x", "image_mean", "sums", "running_mean", "running_var", "gain", "offset", "temperature", "expand"),
    *("generator", "filters", "contract", "project", "path_scale"),
)


@torch.library.custom_op("mirage::triton_channel_mlp", mutates_args=())
def channel_mlp(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    """Apply two linear layers with a GELU between them to x (b, h, w, c)."""
    from mirage.kernels.triton import pointwise

    return pointwise.channel_mlp(x, expand, contract)


@torch.library.custom_op("mirage::triton_channel_mlp_backward", mutates_args=())
def channel_mlp_backward(
    grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients with respect to all inputs."""
    from mirage.kernels.triton import pointwise

    return pointwise.channel_mlp_gradient(grad, x, expand, contract)


@torch.library.custom_op("mirage::triton_fusion_linear", mutates_args=())
def fusion_linear(
    branches: list[Tensor], scales: list[Tensor], weight: Tensor, shortcut: Tensor | None
) -> Tensor:
    """Gate the branches (b, h, w, c) by each other, project them and add the shortcut."""
    from mirage.kernels.triton import pointwise

    return pointwise.fusion_linear(branches, scales, weight, shortcut)


@torch.library.custom_op("mirage::triton_mlp_fusion_linear", mutates_args=())
def mlp_fusion_linear(
    branches: list[Tensor],
    scales: list[Tensor],
    expand: Tensor,
    contract: Tensor,
    weight: Tensor,
    shortcut: Tensor | None,
) -> Tensor:
    """Apply `channel_mlp` to the last of three branches, then `fusion_linear`; without a gradient."""
    from mirage.kernels.triton import pointwise

    return pointwise.fusion_linear(branches, scales, weight, shortcut, (expand, contract))


@torch.library.custom_op("mirage::triton_fusion_linear_backward", mutates_args=())
def fusion_linear_backward(
    grad: Tensor, branches: list[Tensor], scales: list[Tensor], weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients with respect to the branches, scales (branches,) and weight."""
    from mirage.kernels.triton import pointwise

    return pointwise.fusion_linear_gradient(grad.contiguous(), branches, scales, weight)


@torch.library.custom_op("mirage::triton_feed_forward", mutates_args=())
def feed_forward(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor, shortcut: bool
) -> tuple[Tensor, Tensor]:
    """Apply layer norm and the feed-forward network to x (b, h, w, c), and add x if `shortcut`."""
    from mirage.kernels.triton import feed_forward_branch as kernels

    return kernels.feed_forward(x, scale, shift, expand, filters, contract, shortcut)


@torch.library.custom_op("mirage::triton_feed_forward_backward", mutates_args=())
def feed_forward_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    low_filters: Tensor,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients with respect to x, scale and shift (2, c), expand, filters and contract."""
    from mirage.kernels.triton import feed_forward_branch as kernels

    inputs = x, scale, shift, expand, filters, contract
    return kernels.feed_forward_gradient(grad.contiguous(), *inputs, low_filters, shortcut)


# Shapes without data


@depthwise.register_fake
def _(x: Tensor, filters: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), filters.new_empty(filters.shape)


@gram.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[2], x.shape[2]), dtype=torch.float32)


@gram_backward.register_fake
def _(grad: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@layer_norm.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@layer_norm_backward.register_fake
def _(grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), scale.new_empty(2, scale.shape[0])


@attention.register_fake
def _(x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor, keep: bool) -> tuple[Tensor, ...]:
    a, batch = matrix.shape[0] // 3, x.shape[0]
    out, convolved = (x.new_empty(*x.shape[:3], n) for n in (a, 3 * a))
    if not keep:
        return out, x.new_empty(0), _fp32(x, 0), _fp32(x, 0), x.new_empty(0), x.new_empty(0)
    algebra = _fp32(x, batch, a, a), _fp32(x, batch, 2 * a), x.new_empty(batch, a, a)
    return out, convolved, *algebra, _prepared(x, filters)


@attention_backward.register_fake
def _(
    grad: Tensor, x: Tensor, matrix: Tensor, filters: Tensor, temperature: Tensor, kept: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), *_like(matrix, filters, temperature)  # type: ignore[return-value]


@batch_sums.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _fp32(x, x.shape[0], x.shape[3]), x.new_empty(1 + 2 * x.shape[3], dtype=torch.float64)


@batch_sums_backward.register_fake
def _(grad_mean: Tensor, grad_sums: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@update_running.register_fake
def _(sums: Tensor, running_mean: Tensor, running_var: Tensor, tracked: Tensor, momentum: float) -> None:
    return None


@gated_convolution.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    given = dict(zip((*_GATED_INPUTS[1:], "keep"), rest, strict=True))
    expand, generator, filters, project = (
        given[name] for name in ("expand", "generator", "filters", "project")
    )
    (batch, height, width, channels), half = x.shape, expand.shape[0] // 2
    if generator is None:
        size, wide = filters.shape[-1], filters.shape[0]
    else:
        size, wide = round((filters.shape[0] // channels) ** 0.5), channels
    out = x.new_empty(batch, height, width, project.shape[0])
    if not given["keep"]:
        return (
            out,
            *(x.new_empty(0) for _ in range(2)),
            *(_fp32(x, 0) for _ in range(3)),
            *(x.new_empty(0) for _ in range(3)),
        )
    return (
        out,
        x.new_empty(2 * half, channels),
        x.new_empty(batch, size, size, wide),
        *(_fp32(x, batch, channels) for _ in range(3)),
        *(x.new_empty(batch, height, width, n) for n in (2 * half, half, channels)),
    )


@gated_convolution_backward.register_fake
def _(grad: Tensor, *rest: Any) -> list[Tensor]:
    given = dict(zip(_GATED_INPUTS, rest, strict=False))
    names = _gated_gradients(given["sums"], given["generator"])
    return list(_like(*(given[name] for name in names)))


@channel_mlp.register_fake
def _(x: Tensor, expand: Tensor, contract: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:3], contract.shape[0])


@channel_mlp_backward.register_fake
def _(grad: Tensor, x: Tensor, expand: Tensor, contract: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _like(x, expand, contract)  # type: ignore[return-value]


@fusion_linear.register_fake
def _(branches: list[Tensor], scales: list[Tensor], weight: Tensor, shortcut: Tensor | None) -> Tensor:
    return branches[0].new_empty(*branches[0].shape[:3], weight.shape[0])


@mlp_fusion_linear.register_fake
def _(
    branches: list[Tensor],
    scales: list[Tensor],
    expand: Tensor,
    contract: Tensor,
    weight: Tensor,
    shortcut: Tensor | None,
) -> Tensor:
    return branches[0].new_empty(*branches[0].shape[:3], weight.shape[0])


@fusion_linear_backward.register_fake
def _(
    grad: Tensor, branches: list[Tensor], scales: list[Tensor], weight: Tensor
) -> tuple[list[Tensor], Tensor, Tensor]:
    return list(_like(*branches)), scales[0].new_empty(len(scales)), weight.new_empty(weight.shape)


@feed_forward.register_fake
def _(
    x: Tensor, scale: Tensor, shift: Tensor, expand: Tensor, filters: Tensor, contract: Tensor, shortcut: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _prepared(x, filters)


@feed_forward_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    expand: Tensor,
    filters: Tensor,
    contract: Tensor,
    low_filters: Tensor,
    shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, expand, filters, contract = _like(x, expand, filters, contract)
    return x, scale.new_empty(2, scale.shape[0]), expand, filters, contract


def _prepared(x: Tensor, filters: Tensor) -> Tensor:
    return x.new_empty(*filters.shape[1:], filters.shape[0])


def _fp32(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _like(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in tensors)


# Gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the inputs that are tensors, and all outputs but the first."""
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zeros for outputs that nobody depends on
    ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)), *output[1:])


def _save_layer_norm(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _layer_norm_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grad_x, affine = layer_norm_backward(grad, *ctx.saved_tensors, ctx.eps)
    return grad_x, affine[0], affine[1], None


def _attention_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    inputs, kept = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
    return *attention_backward(grad, *inputs, list(kept)), None


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    ctx.present = [x is not None for x in inputs[:-1]]


def _gated_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved = iter(ctx.saved_tensors)
    given = dict(zip(_GATED_INPUTS, (next(saved) if there else None for there in ctx.present), strict=True))
    gradients = gated_convolution_backward(grad, *given.values(), list(saved))
    found = dict(zip(_gated_gradients(given["sums"], given["generator"]), gradients, strict=True))
    return *(found.get(name) for name in _GATED_INPUTS), None


def _save_fusion(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    branches, scales, weight, shortcut = inputs
    ctx.shortcut = shortcut is not None
    ctx.save_for_backward(weight, *scales, *branches)


def _fusion_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight, *rest = ctx.saved_tensors
    scales, branches = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    of_branches, of_scales, of_weight = fusion_linear_backward(grad, branches, scales, weight)
    return of_branches, list(of_scales.split(1)), of_weight, grad if ctx.shortcut else None


def _save_feed_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    ctx.shortcut = inputs[6]


def _feed_forward_gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grad_x, affine, *rest = feed_forward_backward(grad, *ctx.saved_tensors, ctx.shortcut)
    return grad_x, affine[0], affine[1], *rest, None


depthwise.register_autograd(
    lambda ctx, grad: depthwise_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
gram.register_autograd(lambda ctx, grad: gram_backward(grad, *ctx.saved_tensors), setup_context=save_inputs)
layer_norm.register_autograd(_layer_norm_gradient, setup_context=_save_layer_norm)
attention.register_autograd(_attention_gradient, setup_context=_save)
batch_sums.register_autograd(
    lambda ctx, grad_mean, grad_sums: batch_sums_backward(grad_mean, grad_sums, *ctx.saved_tensors),
    setup_context=save_inputs,
)
gated_convolution.register_autograd(_gated_gradient, setup_context=_save_gated)
channel_mlp.register_autograd(
    lambda ctx, grad: channel_mlp_backward(grad, *ctx.saved_tensors), setup_context=save_inputs
)
fusion_linear.register_autograd(_fusion_gradient, setup_context=_save_fusion)
feed_forward.register_autograd(_feed_forward_gradient, setup_context=_save_feed_forward)
