"""Large images in bounded memory: the result for the whole image, computed in horizontal strips.

A block reads an image through convolutions (7x7 in the mixer, 3x3 in the feed-forward network) and through two averages
over all pixels (attention's Gram matrix, the filter generator's mean). Each block therefore passes over its map three
times: once to add up the averages, once for the mixer, once for the feed-forward network. The last two passes work in
place and keep a copy of the original rows that the next strip still reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mirage.blocks import Block, GlobalStatistics, Mixer
from mirage.model import MIRAGE

STRIP_BYTES = 48 * 2**20
"""Size of a strip's widest map, that of the feed-forward network; a few of them exist at a time."""

MIXER_HALO = 3
FEED_FORWARD_HALO = 1
CONV_HALO = 1

Progress = Callable[[int, int], None]
FeatureMap = tuple[Tensor, ...]
"""A map (b, h, w, c), its channels in one tensor or split over several."""


def forward_in_strips(
    model: MIRAGE, degraded: Tensor, strip_bytes: int = STRIP_BYTES, progress: Progress | None = None
) -> Tensor:
    """Return `model(degraded).image` of a model in eval mode, up to rounding.

    degraded (b, 3, h, w), h and w multiples of 8. Besides the strips it keeps at most 2 * dim channels at full
    resolution and as many at half. Call it without recording gradients.
    progress: called with (work done, total work) after each block.
    """
    if model.training or torch.is_grad_enabled():
        raise ValueError("strips work in eval mode and under torch.no_grad() or inference_mode() only.")
    batch, _, height, width = degraded.shape
    d = model.config.dim
    run = _StripRunner(model, strip_bytes, height * width, progress)

    def empty(stride: int, channels: int) -> Tensor:
        return degraded.new_empty(batch, height // stride, width // stride, channels)

    e1 = empty(1, d)
    run.apply_layer(model.patch_embed, (degraded.permute(0, 2, 3, 1),), e1, CONV_HALO)
    run.apply_stage("encoder1", (e1,))
    y2 = empty(2, 2 * d)
    run.apply_layer(model.down1, (e1,), y2, 2 * CONV_HALO)
    run.apply_stage("encoder2", (y2,))
    y3 = empty(4, 4 * d)
    run.apply_layer(model.down2, (y2,), y3, 2 * CONV_HALO)
    run.apply_stage("encoder3", (y3,))
    y4 = empty(8, 8 * d)
    run.apply_layer(model.down3, (y3,), y4, 2 * CONV_HALO)
    run.apply_stage("latent", (y4,))

    latent = empty(8, 4 * d)
    run.apply_layer(model.reduce_latent, (y4,), latent, 0)
    del y4
    _merge_skip(model.up3, model.reduce3, latent, y3, run.rows(y3))
    run.apply_stage("decoder3", (y3,))
    _merge_skip(model.up2, model.reduce2, y3, y2, run.rows(y2))
    del y3, latent
    run.apply_stage("decoder2", (y2,))
    # Decoder 1's map stays in two tensors: a concatenated one would need the memory twice.
    upsampled = empty(1, d)
    run.apply_layer(model.up1, (y2,), upsampled, CONV_HALO)
    del y2
    run.apply_stage("decoder1", (upsampled, e1))
    run.apply_stage("refinement", (upsampled, e1))
    image = torch.empty_like(degraded)
    run.apply_layer(model.output, (upsampled, e1), image.permute(0, 2, 3, 1), CONV_HALO)
    return image.add_(degraded)


class _StripRunner:
    """Runs the parts of one model on one image."""

    def __init__(self, model: MIRAGE, strip_bytes: int, pixels: int, progress: Progress | None) -> None:
        self.model = model
        self.strip_bytes = strip_bytes
        self.progress = progress
        self.done = 0
        self.work = {s.name: pixels // s.stride**2 * s.channels**2 for s in model.config.stages()}
        self.total = sum(s.blocks * self.work[s.name] for s in model.config.stages())

    def rows(self, *x: Tensor) -> int:
        """Return the rows per strip of a map: even, at least 2."""
        batch, _, width, _ = x[0].shape
        hidden = 2 * int(sum(part.shape[3] for part in x) * self.model.config.ffn_expansion)
        per_row = batch * width * hidden * x[0].element_size()
        return max(2, self.strip_bytes // per_row // 2 * 2)

    def apply_stage(self, name: str, x: FeatureMap) -> None:
        """Apply all blocks of a stage to x, in place."""
        for block in getattr(self.model, name):
            _apply_block(block, x, self.rows(*x))
            self.done += self.work[name]
            if self.progress is not None:
                self.progress(self.done, self.total)

    def apply_layer(
        self, layer: Callable[[Tensor], Tensor], source: FeatureMap, target: Tensor, halo: int
    ) -> None:
        """Write `layer(source)` into target; the layer may change the resolution."""
        height, target_height = source[0].shape[1], target.shape[1]
        # The strip has as many bytes as one of the finer map.
        rows = self.rows(*source) if height >= target_height else self.rows(target) * height // target_height
        for start, stop in _strips(height, max(2, rows // 2 * 2)):
            top = max(start - halo, 0)
            y = layer(_rows(source, top, stop + halo).contiguous())
            first, last, skip = (row * target_height // height for row in (start, stop, start - top))
            target[:, first:last] = y[:, skip : skip + last - first]


def _strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def _rows(x: FeatureMap, start: int, stop: int) -> Tensor:
    parts = [part[:, start:stop] for part in x]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)


def _apply_block(block: Block, x: FeatureMap, rows: int) -> None:
    statistics = _global_statistics(block, x, rows)
    _add_in_strips(lambda window: block.mixer(block.norm1(window), None, statistics), x, rows, MIXER_HALO)
    _add_in_strips(lambda window: block.ffn(window, block.norm2), x, rows, FEED_FORWARD_HALO)


def _global_statistics(block: Block, x: FeatureMap, rows: int) -> GlobalStatistics:
    """Compute what the mixer takes from the whole map, in float64: there are millions of pixels."""
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
            strip_gram = mixer.attention.gram(next(parts), inner).double()
            gram = strip_gram if gram is None else gram + strip_gram
        if mixer.convolution is not None:
            strip_total = next(parts)[:, inner].sum((1, 2), dtype=torch.float64)
            total = strip_total if total is None else total + strip_total
    return GlobalStatistics(
        None if gram is None else gram.to(torch.promote_types(x[0].dtype, torch.float32)),
        None if total is None else (total / (height * width)).to(x[0].dtype),
    )


def _add_in_strips(change: Callable[[Tensor], Tensor], x: FeatureMap, rows: int, halo: int) -> None:
    """Compute `x += change(x)` in place; a row of the change depends on `halo` rows above and below it."""
    above = _rows(x, 0, 0)
    for start, stop in _strips(x[0].shape[1], rows):
        window = torch.cat((above, _rows(x, start, stop + halo)), dim=1)
        first, last = above.shape[1], above.shape[1] + stop - start
        changes = torch.split(change(window)[:, first:last], [part.shape[3] for part in x], dim=3)
        for part, addition in zip(x, changes, strict=True):
            part[:, start:stop] += addition
        above = window[:, max(last - halo, 0) : last].clone()


def _merge_skip(
    up: Callable[[Tensor], Tensor], reduce: Callable[[Tensor], Tensor], below: Tensor, skip: Tensor, rows: int
) -> None:
    """Compute `skip = reduce(cat(up(below), skip))` in place, with `below` at half the resolution."""
    for start, stop in _strips(below.shape[1], max(1, rows // 2)):
        top = max(start - CONV_HALO, 0)
        upsampled = up(below[:, top : stop + CONV_HALO])[:, 2 * (start - top) : 2 * (stop - top)]
        part = skip[:, 2 * start : 2 * stop]
        part.copy_(reduce(torch.cat((upsampled, part), dim=3)))
