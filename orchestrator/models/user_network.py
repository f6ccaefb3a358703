"""A user-defined network with the interface of a MIRAGE, in training and for restoring.

A registered version carries this module too (see `registry.registration`), so it imports nothing above `errors`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mirage.inference import Mode, check_image, reflect_to_multiple
from mirage.tiles import forward_in_tiles

from ..errors import ModelError
from . import parameter_use
from .network_code import Call, NetworkCode

OVERLAP = 64
"""Pixels that the tiles of `model.tile` share, or half a tile if that is less."""


class UserOutput(NamedTuple):
    """The output of a user-defined network: that of a MIRAGE without embeddings, and its own loss terms."""

    image: Tensor
    """The restored images (b, 3, h, w), not clipped."""
    terms: dict[str, Tensor]
    """Loss terms by name: each a number, or one number for each image (b,)."""


def call_with_image(network: nn.Module, degraded: Tensor, labels: Tensor | None) -> object:
    """Call a network that takes images alone."""
    return network(degraded)


class UserModelAdapter(nn.Module):
    """A user-defined model with the interface of a MIRAGE; it has no embeddings.

    call: the job's `model.adapter`, or None. code: what builds `inner`, for weights files; None: they do not have it.
    """

    bounded_mode: Mode = "tiles"
    """Mode that restores large images in little memory."""

    def __init__(
        self,
        inner: nn.Module,
        stride: int,
        tile: int | None,
        call: Call | None = None,
        code: NetworkCode | None = None,
    ) -> None:
        super().__init__()
        self.inner = inner
        self.code = code
        self.stride = stride
        self.tile = tile
        self._call = call or call_with_image
        self.gradients: Literal["complete", "in order", "as they come"] = "complete"
        """What the engine needs: a gradient of each parameter, also in the same order on all workers, or neither."""
        self.unused: list[set[str]] | None = None
        """Where training forward passes append the names of the parameters that they do not use; None: nowhere."""

    def forward(
        self, degraded: Tensor, keys: Tensor | None = None, labels: Tensor | None = None
    ) -> UserOutput:
        """Restore a batch (b, 3, h, w) whose sides are multiples of the stride.

        keys are ignored. labels (b,) int64: index of each image's degradation in the job's mixture; None: unknown.
        """
        if not (self.training and torch.is_grad_enabled()):
            return self._output(self._call(self.inner, degraded, labels), degraded)
        parameters: dict[str, Tensor] = {n: p for n, p in self.inner.named_parameters() if p.requires_grad}
        if self.gradients == "in order":
            result, parameters = parameter_use.call_in_order(self._call, self.inner, degraded, labels)
        else:
            result = self._call(self.inner, degraded, labels)
        image, terms, *_ = output = self._output(result, degraded)
        if self.unused is not None:
            self.unused.append(parameter_use.unused((image, *terms.values()), parameters))
        if self.gradients == "complete":
            image = parameter_use.with_gradients(image, self.inner.parameters())
        return output._replace(image=image)

    def _output(self, result: object, degraded: Tensor) -> UserOutput:
        image, terms = outputs_of(result)
        if image.shape != degraded.shape:
            raise ModelError(
                f"the network returned images of shape {tuple(image.shape)} for {tuple(degraded.shape)}."
            )
        return UserOutput(image, terms)

    @property
    def module(self) -> nn.Module:
        """The module that computes."""
        return self

    @property
    def device(self) -> torch.device:
        """Device of the parameters; the CPU if there are none."""
        return next(self.parameters(), torch.empty(0)).device

    def restore(
        self,
        degraded: Tensor,
        mode: Mode = "auto",
        *,
        tile: int = 512,
        overlap: int = OVERLAP,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Restore one image (3, h, w) or a batch (b, 3, h, w) of any size, in eval mode; the result is in [0, 1].

        mode: `whole` runs the image at once, padded by reflection to multiples of the stride. `tiles` restores tiles
        of `tile` pixels a side as images of their own. `auto` uses tiles of `self.tile` for images that are larger in
        one side, `whole` for others. Raises ModelError for `strips`.
        """
        if mode == "strips":
            raise ModelError("mode strips: it cuts a MIRAGE, and this is another network. Use tiles.")
        check_image(degraded)
        if mode == "auto" and self.tile is not None and max(degraded.shape[-2:]) > self.tile:
            mode, tile, overlap = "tiles", self.tile, min(OVERLAP, self.tile // 2)
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode(), same_draws(self.device):
                batch = (degraded if degraded.dim() == 4 else degraded[None]).to(self.device)
                if mode == "tiles":
                    out = forward_in_tiles(self._whole, batch, tile, overlap, progress)
                else:
                    out = self._whole(batch)
                out = out.float().clamp(0, 1).view(degraded.shape).to(degraded.device)
        finally:
            self.train(was_training)
        return torch.empty_like(out).copy_(out)  # an ordinary tensor again

    def whole_bytes(self, batch: Tensor) -> int | None:
        """Return None: the memory of a batch is not known."""
        return None

    def _whole(self, batch: Tensor) -> Tensor:
        image = self(reflect_to_multiple(batch, self.stride)).image
        cropped: Tensor = image[..., : batch.shape[2], : batch.shape[3]]
        return cropped


@contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Have each block draw the same random numbers, and nothing outside it.

    Some networks draw when they restore too, such as MoCE-IR for its choice of experts: an image would be restored in
    another way each time.
    """
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def outputs_of(output: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the image and the loss terms of what a network, or its adapter, returned. Raises ModelError."""
    terms: object = {}
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        output, terms = output
    assert isinstance(terms, Mapping)
    for name, term in terms.items():
        if not (isinstance(name, str) and isinstance(term, Tensor) and term.ndim <= 1):
            raise ModelError(
                f"model.adapter returned {name!r}: a loss term is a tensor with one number, or with one for each image."
            )
    return image_of(output), dict(terms)


def image_of(output: object) -> Tensor:
    """Return the restored image from the output of a network: a tensor, the first of several, or `.image`."""
    image = getattr(output, "image", output)
    if isinstance(image, tuple | list) and image:
        image = image[0]
    if not isinstance(image, Tensor):
        raise ModelError(
            f"the network returned {type(output).__name__}: it must return a tensor or a tuple that begins with one."
        )
    return image
