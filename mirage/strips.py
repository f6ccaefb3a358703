"""Large images with bounded memory: the whole image's result, computed in horizontal strips.

A block looks at an image in two ways: through windows (7x7 pixels in the mixer, 3x3 in the feed-forward network) and
through two averages over all pixels (attention's Gram matrix, the kernel generator's mean). So each block makes
three sweeps over its map: one adds up the averages, one applies the mixer, one the feed-forward network. The last two
work in place; the original rows that the next strip still has to see are kept aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mirage.blocks import Block, Mixer, Whole
from mirage.model import MIRAGE

STRIP_BYTES = 48 * 2**20
"""Size of a strip's widest map, that of the feed-forward network; a few of them are alive at a time."""

MIXER_HALO = 3
FEED_FORWARD_HALO = 1
CONV_HALO = 1

Progress = Callable[[int, int], None]
Map = tuple[Tensor, ...]
"""A map (b, h, w, c) whose channels lie side by side in one tensor or more."""


def forward_in_strips(
    model: MIRAGE, degraded: Tensor, strip_bytes: int = STRIP_BYTES, progress: Progress | None = None
) -> Tensor:
    """`model(degraded).image` of a model in eval mode, equal to rounding.

    degraded (b, 3, h, w), h and w multiples of 8. Besides the strips it keeps at most 2 * dim channels at full
    resolution and as many at half. Call it without recording gradients.
    progress: called with (work done, all work) after each block.
    """
    if model.training or torch.is_grad_enabled():
        raise ValueError("strips work in eval mode and under torch.no_grad() or inference_mode() only.")
    batch, _, height, width = degraded.shape
    d = model.config.dim
    run = _Stages(model, strip_bytes, height * width, progress)

    def empty(stride: int, channels: int) -> Tensor:
        return degraded.new_empty(batch, height // stride, width // stride, channels)

    e1 = empty(1, d)
    run.move(model.patch_embed, (degraded.permute(0, 2, 3, 1),), e1, CONV_HALO)
    run.stage("encoder1", (e1,))
    y2 = empty(2, 2 * d)
    run.move(model.down1, (e1,), y2, 2 * CONV_HALO)
    run.stage("encoder2", (y2,))
    y3 = empty(4, 4 * d)
    run.move(model.down2, (y2,), y3, 2 * CONV_HALO)
    run.stage("encoder3", (y3,))
    y4 = empty(8, 8 * d)
    run.move(model.down3, (y3,), y4, 2 * CONV_HALO)
    run.stage("latent", (y4,))

    latent = empty(8, 4 * d)
    run.move(model.reduce_latent, (y4,), latent, 0)
    del y4
    _join(model.up3, model.reduce3, latent, y3, run.rows(y3))
    run.stage("decoder3", (y3,))
    _join(model.up2, model.reduce2, y3, y2, run.rows(y2))
    del y3, latent
    run.stage("decoder2", (y2,))
    # Decoder 1's map stays in two parts: joined, it would be there twice, or half empty all along.
    lifted = empty(1, d)
    run.move(model.up1, (y2,), lifted, CONV_HALO)
    del y2
    run.stage("decoder1", (lifted, e1))
    run.stage("refinement", (lifted, e1))
    image = torch.empty_like(degraded)
    run.move(model.output, (lifted, e1), image.permute(0, 2, 3, 1), CONV_HALO)
    return image.add_(degraded)


class _Stages:
    """Runs the parts of one model on one image."""

    def __init__(self, model: MIRAGE, strip_bytes: int, pixels: int, progress: Progress | None) -> None:
        self.model = model
        self.strip_bytes = strip_bytes
        self.progress = progress
        self.done = 0
        self.work = {s.name: pixels // s.stride**2 * s.channels**2 for s in model.config.stages()}
        self.total = sum(s.blocks * self.work[s.name] for s in model.config.stages())

    def rows(self, *x: Tensor) -> int:
        """Rows per strip of a map: even, at least 2."""
        batch, _, width, _ = x[0].shape
        hidden = 2 * int(sum(part.shape[3] for part in x) * self.model.config.ffn_expansion)
        per_row = batch * width * hidden * x[0].element_size()
        return max(2, self.strip_bytes // per_row // 2 * 2)

    def stage(self, name: str, x: Map) -> None:
        """Apply all blocks of a stage to x, in place."""
        for block in getattr(self.model, name):
            _apply(block, x, self.rows(*x))
            self.done += self.work[name]
            if self.progress is not None:
                self.progress(self.done, self.total)

    def move(self, layer: Callable[[Tensor], Tensor], source: Map, target: Tensor, halo: int) -> None:
        """Write `layer(source)` into target; both are maps, of which the layer may change the resolution."""
        height, onto = source[0].shape[1], target.shape[1]
        # As many bytes as a strip of the finer map has, and the same pixels of the other.
        rows = self.rows(*source) if height >= onto else self.rows(target) * height // onto
        for start, stop in _strips(height, max(2, rows // 2 * 2)):
            top = max(start - halo, 0)
            y = layer(_rows(source, top, stop + halo).contiguous())
            first, last, skip = (row * onto // height for row in (start, stop, start - top))
            target[:, first:last] = y[:, skip : skip + last - first]


def _strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def _rows(x: Map, start: int, stop: int) -> Tensor:
    parts = [part[:, start:stop] for part in x]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _apply(block: Block, x: Map, rows: int) -> None:
    whole = _statistics(block, x, rows)
    _sweep(lambda window: block.mixer(block.norm1(window), None, whole), x, rows, MIXER_HALO)
    _sweep(lambda window: block.ffn(window, block.norm2), x, rows, FEED_FORWARD_HALO)


def _statistics(block: Block, x: Map, rows: int) -> Whole:
    """Add up what the mixer must know of the whole map, in float64: there are millions of pixels."""
    mixer: Mixer = block.mixer
    gram: Tensor | None = None
    total: Tensor | None = None
    _, height, width, _ = x[0].shape
    for start, stop in _strips(height, rows):
        top = max(start - 1, 0)
        normed = block.norm1(_rows(x, top, stop + 1))
        inner = slice(start - top, stop - top)
        parts = iter(torch.split(normed, mixer.widths, dim=3))
        if mixer.attention is not None:
            found = mixer.attention.gram(next(parts), inner).double()
            gram = found if gram is None else gram + found
        if mixer.convolution is not None:
            found = next(parts)[:, inner].sum((1, 2), dtype=torch.float64)
            total = found if total is None else total + found
    return Whole(
        None if gram is None else gram.to(torch.promote_types(x[0].dtype, torch.float32)),
        None if total is None else (total / (height * width)).to(x[0].dtype),
    )


def _sweep(change: Callable[[Tensor], Tensor], x: Map, rows: int, halo: int) -> None:
    """`x += change(x)` in place, where a row of the change depends on `halo` rows above and below it."""
    above = _rows(x, 0, 0)
    for start, stop in _strips(x[0].shape[1], rows):
        window = torch.cat((above, _rows(x, start, stop + halo)), dim=1)
        first, last = above.shape[1], above.shape[1] + stop - start
        changes = torch.split(change(window)[:, first:last], [part.shape[3] for part in x], dim=3)
        for part, addition in zip(x, changes, strict=True):
            part[:, start:stop] += addition
        above = window[:, max(last - halo, 0) : last].clone()


def _join(
    up: Callable[[Tensor], Tensor], reduce: Callable[[Tensor], Tensor], below: Tensor, skip: Tensor, rows: int
) -> None:
    """`skip = reduce(cat(up(below), skip))` in place, with `below` at half the resolution."""
    for start, stop in _strips(below.shape[1], max(1, rows // 2)):
        top = max(start - CONV_HALO, 0)
        lifted = up(below[:, top : stop + CONV_HALO])[:, 2 * (start - top) : 2 * (stop - top)]
        part = skip[:, 2 * start : 2 * stop]
        part.copy_(reduce(torch.cat((lifted, part), dim=3)))
