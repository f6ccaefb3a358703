"""The gated convolution in Triton: the whole branch, forward and backward.

The batch norm, the gate's temperature and the filter generator work on channels, not on pixels. One kernel folds them
into the expansion, one generates the filters, and one returns the gradients of all that was folded.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from mirage.kernels.maps import with_pixel_stride
from mirage.kernels.reference import BATCH_NORM_EPS
from mirage.kernels.triton.convolution import convolve, filter_gradient, prepared
from mirage.kernels.triton.gated import run_values
from mirage.kernels.triton.matrices import matrix_precision, weight_gradient
from mirage.kernels.triton.pointwise import linear_gradient
from mirage.kernels.triton.tiling import gelu, gelu_derivative

IMAGES = 16
"""Images whose filters one program generates."""
MAX_CHANNELS = 64
"""Most channels whose square matrices one program holds. PyTorch's products generate the filters of more."""


class Inputs(NamedTuple):
    """What the branch takes, in the order of `kernels.gated_convolution`."""

    x: Tensor
    image_mean: Tensor
    sums: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    gain: Tensor
    offset: Tensor
    temperature: Tensor
    expand: Tensor
    generator: Tensor | None
    filters: Tensor
    contract: Tensor
    project: Tensor
    path_scale: Tensor | None


class Kept(NamedTuple):
    """What the gradient needs besides the inputs; empty if there will be none."""

    weight: Tensor
    """(2n, c), the expansion with everything folded into it."""
    filters: Tensor
    """(b, k, k, c)"""
    pooled: Tensor
    """(b, c), the average of what is convolved."""
    generated: Tensor
    """(b, c), the generator's hidden values before their GELU."""
    active: Tensor
    """(b, c), after it."""
    hidden: Tensor
    """(b, h, w, 2n), the expanded map."""
    gated: Tensor
    """(b, h, w, n)"""
    contracted: Tensor
    """(b, h, w, c), the input of the last layer."""


def gated_convolution(i: Inputs, keep: bool = True) -> tuple[Tensor, Kept]:
    """Apply the branch; see `reference.gated_convolution`. keep: return what the gradient needs."""
    batch, height, width, channels = i.x.shape
    if not keep and i.sums is None and (i.generator is None or channels <= MAX_CHANNELS):
        # One launch less: the kernels apply the norm and the temperature to what they read.
        weight = i.x.new_empty(0)
        filters, pooled, generated, active = _filters(i, None)
        hidden = _expanded(i)
    else:
        weight, bias = _folded(i)
        filters, pooled, generated, active = _filters(i, (weight, bias))
        hidden = torch.addmm(bias, i.x.flatten(0, 2), weight.mT).view(batch, height, width, -1)
    half = i.expand.shape[0] // 2
    gated = i.x.new_empty(batch, height, width, half)
    run_values(hidden, filters, gated, gated, i.path_scale)

    x, stride = with_pixel_stride(i.x)
    pixels = batch * height * width
    contracted = i.x.new_empty(batch, height, width, channels)
    out = i.x.new_empty(batch, height, width, i.project.shape[0])
    across = max(triton.next_power_of_2(channels), 16)
    tall = 64 if across <= 64 else 32
    with torch.cuda.device_of(x):
        _contract_project[(triton.cdiv(pixels, tall),)](
            gated,
            x,
            i.contract,
            i.project,
            contracted,
            out,
            pixels,
            channels,
            half,
            i.project.shape[0],
            stride,
            PRECISION=matrix_precision(),
            ROWS=tall,
            ACROSS=across,
            STEP=32,
            num_warps=4 if across <= 64 else 8,
        )
    kept = Kept(weight, filters, pooled, generated, active, hidden, gated, contracted)
    return out, kept if keep else Kept(*(x.new_empty(0) for x in kept))


def gated_convolution_gradient(grad: Tensor, i: Inputs, kept: Kept) -> dict[str, Tensor]:
    """Return the gradients by the names of the inputs."""
    batch, height, width, _ = i.x.shape
    wide = kept.filters.shape[3]
    grad = grad.contiguous()
    # The gradient of x through the shortcut around the gated unit; more is added below.
    grad_x, grad_project, _ = linear_gradient(grad, kept.contracted, i.project)
    found = {"project": grad_project.to(i.project.dtype)}
    found["contract"] = weight_gradient(grad_x.flatten(0, 2), kept.gated.flatten(0, 2), i.contract.dtype)

    grad_hidden = torch.empty_like(kept.hidden)
    convolved = kept.hidden.new_empty(batch, height, width, wide)
    run_values(kept.hidden, kept.filters, grad_hidden, convolved, i.path_scale, grad_x, i.contract)
    convolve(convolved, kept.filters, reverse=True, out=grad_hidden[..., -wide:])
    rest = kept.hidden[..., -wide:]
    found["x"], grad_weight, grad_bias = linear_gradient(grad_hidden, i.x, kept.weight, grad_x, bias=True)

    if i.generator is None:
        found["filters"] = filter_gradient(convolved, rest, i.filters)
        found["image_mean"] = torch.zeros_like(i.image_mean)
        grad_pooled = kept.pooled
    else:
        every = filter_gradient(convolved, rest, kept.filters.movedim(-1, -3), torch.float32).flatten(1)
        found["filters"] = (every.mT @ kept.active).to(i.filters.dtype)
        grad_pooled = torch.empty_like(kept.pooled)
        found |= _generator_gradients(every @ i.filters.float(), i, kept, grad_pooled)
    found |= _fold_gradients(i, grad_weight, grad_bias, grad_pooled)
    return found


def _folded(i: Inputs) -> tuple[Tensor, Tensor]:
    rows, channels = i.expand.shape
    weight, bias = i.x.new_empty(rows, channels), i.x.new_empty(rows)
    block = 16
    with torch.cuda.device_of(i.x):
        _fold[(triton.cdiv(rows, block),)](
            i.running_mean if i.sums is None else i.sums,
            i.running_var,
            i.gain,
            i.offset,
            i.temperature,
            i.expand,
            weight,
            bias,
            rows,
            channels,
            BATCH_NORM_EPS,
            BATCH=i.sums is not None,
            ROWS=block,
            ACROSS=triton.next_power_of_2(channels),
        )
    return weight, bias


def _expanded(i: Inputs) -> Tensor:
    """Return the expanded map (b, h, w, 2n) in eval mode, from weights with nothing folded into them."""
    x, stride = with_pixel_stride(i.x)
    pixels, channels, outputs = x.shape[:3].numel(), x.shape[3], i.expand.shape[0]
    hidden = x.new_empty(*x.shape[:3], outputs)
    block = min(max(triton.next_power_of_2(outputs), 16), 64)
    with torch.cuda.device_of(x):
        _expand[(triton.cdiv(pixels, 64), triton.cdiv(outputs, block))](
            x,
            i.running_mean,
            i.running_var,
            i.gain,
            i.offset,
            i.temperature,
            i.expand,
            hidden,
            pixels,
            channels,
            outputs,
            stride,
            BATCH_NORM_EPS,
            PRECISION=matrix_precision(),
            ROWS=64,
            STEP=32,
            OUTPUTS=block,
        )
    return hidden


def _filters(i: Inputs, folded: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the filters of each image (b, k, k, c), and three maps of the generator (b, c).

    folded: the weight and bias of the expansion with everything folded into them; in eval mode the kernel needs none.
    """
    batch, channels = i.image_mean.shape
    pooled, generated, active = (
        i.image_mean.new_empty(batch, channels, dtype=torch.float32) for _ in range(3)
    )
    if i.generator is None:
        one = prepared(i.filters, i.x.dtype)
        return one.expand(batch, *one.shape).contiguous(), pooled, generated, active
    taps = i.filters.shape[0] // channels
    size = round(taps**0.5)
    if channels > MAX_CHANNELS:
        assert folded is not None
        weight, bias = folded
        pooled = torch.addmm(bias[-channels:].float(), i.image_mean.float(), weight[-channels:].float().mT)
        generated = pooled @ i.generator.float().mT
        active = nn.functional.gelu(generated)
        every = (active @ i.filters.float().mT).view(batch, channels, size, size).movedim(1, -1)
        return every.to(i.x.dtype).contiguous(), pooled, generated, active
    filters = i.x.new_empty(batch, size, size, channels)
    across, block = max(triton.next_power_of_2(channels), 16), 64
    with torch.cuda.device_of(i.x):
        _generate[(triton.cdiv(batch, IMAGES), triton.cdiv(taps * channels, block))](
            i.image_mean,
            *(folded or (i.expand, i.offset)),
            i.running_mean,
            i.running_var,
            i.gain,
            i.generator,
            i.filters,
            pooled,
            generated,
            active,
            filters,
            batch,
            channels,
            i.expand.shape[0] - channels,
            taps,
            BATCH_NORM_EPS,
            FOLDED=folded is not None,
            PRECISION=matrix_precision(),
            IMAGES=IMAGES,
            ACROSS=across,
            OUTPUTS=block,
        )
    return filters, pooled, generated, active


def _generator_gradients(grad: Tensor, i: Inputs, kept: Kept, grad_pooled: Tensor) -> dict[str, Tensor]:
    """Return gradients for that of the generator's active values (b, c); write that of its input to grad_pooled."""
    assert i.generator is not None
    batch, channels = grad.shape
    if channels > MAX_CHANNELS:
        grad = torch.ops.aten.gelu_backward(grad, kept.generated)
        torch.mm(grad, i.generator.float(), out=grad_pooled)
        of_mean = grad_pooled @ kept.weight[-channels:].float()
        of_generator = grad.mT @ kept.pooled
        return {"generator": of_generator.to(i.generator.dtype), "image_mean": of_mean.to(i.image_mean.dtype)}
    generator, image_mean = torch.empty_like(i.generator), torch.empty_like(i.image_mean)
    across = max(triton.next_power_of_2(channels), 16)
    with torch.cuda.device_of(grad):
        _generator_gradient[(1,)](
            grad,
            kept.generated,
            kept.pooled,
            i.generator,
            kept.weight,
            generator,
            grad_pooled,
            image_mean,
            batch,
            channels,
            kept.weight.shape[0] - channels,
            PRECISION=matrix_precision(),
            IMAGES=IMAGES,
            ACROSS=across,
        )
    return {"generator": generator, "image_mean": image_mean}


def _fold_gradients(
    i: Inputs, grad_weight: Tensor, grad_bias: Tensor, grad_pooled: Tensor
) -> dict[str, Tensor]:
    """Return the gradients of what was folded into the expansion, for those of its weight, bias and pooled input."""
    rows, channels = i.expand.shape
    sums = i.running_mean if i.sums is None else i.sums
    found = {name: torch.empty_like(getattr(i, name)) for name in ("expand", "gain", "offset", "temperature")}
    if i.sums is not None:
        found["sums"] = torch.empty_like(sums)
    across = triton.next_power_of_2(channels)
    with torch.cuda.device_of(i.x):
        _fold_gradient[(1,)](
            grad_weight,
            grad_bias,
            grad_pooled,
            i.image_mean,
            sums,
            i.running_var,
            i.gain,
            i.offset,
            i.temperature,
            i.expand,
            found["expand"],
            found["gain"],
            found["offset"],
            found.get("sums", sums),
            found["temperature"],
            rows,
            channels,
            grad_pooled.shape[0] if i.generator is not None else 0,
            BATCH_NORM_EPS,
            BATCH=i.sums is not None,
            ROWS=max(2048 // across, 2),
            ACROSS=across,
        )
    return found


@triton.jit
def _affine(sums, running_var, gain, offset, column, present, channels, eps, BATCH: tl.constexpr):
    """Return mean, 1 / deviation and the affine form of the batch norm for some channels."""
    if BATCH:
        count = tl.load(sums).to(tl.float64)
        wide_mean = tl.load(sums + 1 + column, mask=present, other=0.0).to(tl.float64) / count
        square = tl.load(sums + 1 + channels + column, mask=present, other=1.0).to(tl.float64) / count
        var = (square - wide_mean * wide_mean).to(tl.float32)
        mean = wide_mean.to(tl.float32)
    else:
        mean = tl.load(sums + column, mask=present, other=0.0).to(tl.float32)
        var = tl.load(running_var + column, mask=present, other=1.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(var + eps)
    scale = tl.load(gain + column, mask=present, other=0.0).to(tl.float32) * inverse
    shift = tl.load(offset + column, mask=present, other=0.0).to(tl.float32) - mean * scale
    return mean, inverse, scale, shift


@triton.jit
def _fold(
    sums,
    running_var,
    gain,
    offset,
    temperature,
    expand,
    weight,
    bias,
    rows,
    channels,
    eps,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    column = tl.arange(0, ACROSS)
    present = column < channels
    _, _, scale, shift = _affine(sums, running_var, gain, offset, column, present, channels, eps, BATCH)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mask = (row < rows)[:, None] & present[None, :]
    here = row[:, None] * channels + column[None, :]
    gate = 1.0 / tl.load(temperature).to(tl.float32)
    value = tl.load(expand + here, mask=mask, other=0.0).to(tl.float32)
    value = value * tl.where(row < rows // 2, gate, 1.0)[:, None]
    tl.store(weight + here, value * scale[None, :], mask=mask)
    tl.store(bias + row, tl.sum(value * shift[None, :], axis=1), mask=row < rows)


@triton.jit
def _expand(
    x,
    running_mean,
    running_var,
    gain,
    offset,
    temperature,
    expand,
    out,
    pixels,
    channels,
    outputs,
    stride,
    eps,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    STEP: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    gate = tl.where(output < outputs // 2, 1.0 / tl.load(temperature).to(tl.float32), 1.0)
    total = tl.zeros([ROWS, OUTPUTS], dtype=tl.float32)
    for start in range(0, channels, STEP):
        channel = start + tl.arange(0, STEP)
        present = channel < channels
        _, _, scale, shift = _affine(
            running_mean, running_var, gain, offset, channel, present, channels, eps, BATCH=False
        )
        value = tl.load(
            x + pixel[:, None] * stride + channel[None, :], mask=valid[:, None] & present[None, :], other=0.0
        )
        normed = (value.to(tl.float32) * scale[None, :] + shift[None, :]).to(value.dtype)
        matrix = tl.load(
            expand + output[None, :] * channels + channel[:, None],
            mask=present[:, None] & (output < outputs)[None, :],
            other=0.0,
        )
        total += tl.dot(normed, matrix.to(value.dtype), input_precision=PRECISION)
    tl.store(
        out + pixel[:, None] * outputs + output[None, :],
        total * gate[None, :],
        mask=valid[:, None] & (output < outputs)[None, :],
    )


@triton.jit
def _generate(
    image_mean,
    weight,
    bias,
    running_mean,
    running_var,
    gain,
    inner,
    outer,
    pooled_out,
    generated_out,
    active_out,
    filters,
    batch,
    channels,
    first,
    taps,
    eps,
    FOLDED: tl.constexpr,
    PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    ACROSS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    image = tl.program_id(0) * IMAGES + tl.arange(0, IMAGES)
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = (image < batch)[:, None] & present[None, :]
    here = image[:, None] * channels + channel[None, :]
    square = present[:, None] & present[None, :]
    transposed = channel[None, :] * channels + channel[:, None]

    mean = tl.load(image_mean + here, mask=mask, other=0.0).to(tl.float32)
    if not FOLDED:  # then bias is the offset of the norm
        _, _, scale, shift = _affine(
            running_mean, running_var, gain, bias, channel, present, channels, eps, BATCH=False
        )
        mean = mean * scale[None, :] + shift[None, :]
    last = tl.load(weight + first * channels + transposed, mask=square, other=0.0).to(tl.float32)
    pooled = tl.dot(mean, last, input_precision=PRECISION)
    if FOLDED:
        pooled += tl.load(bias + first + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    matrix = tl.load(inner + transposed, mask=square, other=0.0).to(tl.float32)
    generated = tl.dot(pooled, matrix, input_precision=PRECISION)
    active = gelu(generated)
    if tl.program_id(1) == 0:
        tl.store(pooled_out + here, pooled, mask=mask)
        tl.store(generated_out + here, generated, mask=mask)
        tl.store(active_out + here, active, mask=mask)

    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)  # tap * channels + channel
    row = (output % channels) * taps + output // channels
    matrix = tl.load(
        outer + row[None, :] * channels + channel[:, None],
        mask=(output < taps * channels)[None, :] & present[:, None],
        other=0.0,
    ).to(tl.float32)
    found = tl.dot(active, matrix, input_precision=PRECISION)
    tl.store(
        filters + image[:, None] * taps * channels + output[None, :],
        found,
        mask=(image < batch)[:, None] & (output < taps * channels)[None, :],
    )


@triton.jit
def _generator_gradient(
    grad,
    generated,
    pooled,
    generator,
    weight,
    grad_generator,
    grad_pooled,
    grad_mean,
    batch,
    channels,
    first,
    PRECISION: tl.constexpr,
    IMAGES: tl.constexpr,
    ACROSS: tl.constexpr,
):
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    square = present[:, None] & present[None, :]
    whole = channel[:, None] * channels + channel[None, :]
    matrix = tl.load(generator + whole, mask=square, other=0.0).to(tl.float32)
    last = tl.load(weight + first * channels + whole, mask=square, other=0.0).to(tl.float32)
    total = tl.zeros([ACROSS, ACROSS], dtype=tl.float32)
    for start in range(0, batch, IMAGES):
        image = start + tl.arange(0, IMAGES)
        mask = (image < batch)[:, None] & present[None, :]
        here = image[:, None] * channels + channel[None, :]
        before = tl.load(generated + here, mask=mask, other=0.0)
        g = tl.load(grad + here, mask=mask, other=0.0) * gelu_derivative(before)
        total += tl.dot(tl.trans(g), tl.load(pooled + here, mask=mask, other=0.0), input_precision=PRECISION)
        g = tl.dot(g, matrix, input_precision=PRECISION)
        tl.store(grad_pooled + here, g, mask=mask)
        tl.store(grad_mean + here, tl.dot(g, last, input_precision=PRECISION), mask=mask)
    tl.store(grad_generator + whole, total, mask=square)


@triton.jit
def _fold_gradient(
    grad_weight,
    grad_bias,
    grad_pooled,
    image_mean,
    sums,
    running_var,
    gain,
    offset,
    temperature,
    expand,
    grad_expand,
    grad_gain,
    grad_offset,
    grad_sums,
    grad_temperature,
    rows,
    channels,
    batch,
    eps,
    BATCH: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
):
    column = tl.arange(0, ACROSS)
    present = column < channels
    mean, inverse, scale, shift = _affine(
        sums, running_var, gain, offset, column, present, channels, eps, BATCH
    )
    gate = 1.0 / tl.load(temperature).to(tl.float32)
    grad_scale = tl.zeros([ACROSS], dtype=tl.float32)
    grad_shift = tl.zeros([ACROSS], dtype=tl.float32)
    gate_total = tl.zeros([ROWS], dtype=tl.float32)
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & present[None, :]
        here = row[:, None] * channels + column[None, :]
        g = tl.load(grad_weight + here, mask=mask, other=0.0)
        b = tl.load(grad_bias + row, mask=row < rows, other=0.0)
        of_image = row - (rows - channels)  # the generator's input is made by the last rows
        for image in range(tl.where(start + ROWS > rows - channels, batch, 0)):
            pooled = tl.load(
                grad_pooled + image * channels + of_image, mask=(of_image >= 0) & (row < rows), other=0.0
            ).to(tl.float32)
            mean_here = tl.load(image_mean + image * channels + column, mask=present, other=0.0).to(
                tl.float32
            )
            g += pooled[:, None] * mean_here[None, :]
            b += pooled
        value = tl.load(expand + here, mask=mask, other=0.0).to(tl.float32)
        factor = tl.where(row < rows // 2, gate, 1.0)[:, None]
        upstream = g * scale[None, :] + b[:, None] * shift[None, :]
        tl.store(grad_expand + here, upstream * factor, mask=mask)
        gate_total += tl.where(row < rows // 2, tl.sum(upstream * value, axis=1), 0.0)
        grad_scale += tl.sum(g * value * factor, axis=0)
        grad_shift += tl.sum(b[:, None] * value * factor, axis=0)
    tl.store(grad_temperature, -gate * gate * tl.sum(gate_total, axis=0))

    grad_scale -= grad_shift * mean
    tl.store(grad_gain + column, grad_scale * inverse, mask=present)
    tl.store(grad_offset + column, grad_shift, mask=present)
    if BATCH:
        weight = tl.load(gain + column, mask=present, other=0.0).to(tl.float32)
        grad_var = -0.5 * grad_scale * weight * inverse * inverse * inverse
        grad_mean = -grad_shift * scale - 2.0 * grad_var * mean
        count = tl.load(sums).to(tl.float64)
        tl.store(grad_sums, 0.0)  # the number of pixels is a constant
        tl.store(grad_sums + 1 + column, grad_mean.to(tl.float64) / count, mask=present)
        tl.store(grad_sums + 1 + channels + column, grad_var.to(tl.float64) / count, mask=present)


@triton.jit
def _contract_project(
    gated,
    x,
    contract,
    project,
    contracted,
    out,
    pixels,
    channels,
    hidden,
    outputs,
    stride,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    STEP: tl.constexpr,
):
    pixel = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = pixel < pixels
    channel = tl.arange(0, ACROSS)
    present = channel < channels
    mask = valid[:, None] & present[None, :]
    total = tl.load(x + pixel[:, None] * stride + channel[None, :], mask=mask, other=0.0).to(tl.float32)
    for start in range(0, hidden, STEP):
        inner = start + tl.arange(0, STEP)
        within = inner < hidden
        value = tl.load(
            gated + pixel[:, None] * hidden + inner[None, :], mask=valid[:, None] & within[None, :], other=0.0
        )
        matrix = tl.load(
            contract + channel[None, :] * hidden + inner[:, None],
            mask=within[:, None] & present[None, :],
            other=0.0,
        )
        total += tl.dot(value, matrix.to(value.dtype), input_precision=PRECISION)
    total = total.to(contracted.dtype.element_ty)
    tl.store(contracted + pixel[:, None] * channels + channel[None, :], total, mask=mask)
    for start in range(0, outputs, STEP):
        output = start + tl.arange(0, STEP)
        matrix = tl.load(
            project + output[None, :] * channels + channel[:, None],
            mask=(output < outputs)[None, :] & present[:, None],
            other=0.0,
        )
        product = tl.dot(total, matrix.to(total.dtype), input_precision=PRECISION)
        tl.store(
            out + pixel[:, None] * outputs + output[None, :],
            product,
            mask=valid[:, None] & (output < outputs)[None, :],
        )
