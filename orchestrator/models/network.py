"""The network of a training job: a MIRAGE, or a class of anybody's that is called like one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import safetensors.torch
import torch
from torch import Tensor, nn

from mirage import MIRAGE, Output, restore
from mirage.restore import reflect_to_multiple
from mirage.tiles import forward_in_tiles
from mirage.weights import CONFIG_KEY, dumps, loads
from orchestrator.config.schema import Model
from orchestrator.errors import ModelError
from orchestrator.models import user_model

_TILE_OVERLAP = 64


class OwnNetwork(nn.Module):
    """A class of anybody's, called as a MIRAGE is; it has no embeddings."""

    def __init__(self, inner: nn.Module, stride: int, tile: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.stride = stride
        self.tile = tile

    def forward(self, degraded: Tensor, keys: Tensor | None = None) -> Output:
        """Restore a batch (b, 3, h, w) whose sides are multiples of the stride; `keys` are not used."""
        image = user_model.image_of(self.inner(degraded))
        if image.shape != degraded.shape:
            raise ModelError(f"the network made {tuple(image.shape)} of images {tuple(degraded.shape)}.")
        return Output(image, None, None)

    def restore(self, degraded: Tensor) -> Tensor:
        """Restore one image (3, h, w) of any size, clipped to [0, 1], in eval mode."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                batch = degraded[None]
                if self.tile is not None and max(batch.shape[2:]) > self.tile:
                    overlap = min(_TILE_OVERLAP, self.tile // 2)
                    out = forward_in_tiles(self._whole, batch, self.tile, overlap)
                else:
                    out = self._whole(batch)
                out = out[0].float().clamp(0, 1)
        finally:
            self.train(was_training)
        return torch.empty_like(out).copy_(out)

    def _whole(self, batch: Tensor) -> Tensor:
        image = self(reflect_to_multiple(batch, self.stride)).image
        cropped: Tensor = image[..., : batch.shape[2], : batch.shape[3]]
        return cropped


Network = MIRAGE | OwnNetwork


def make(model: Model) -> Network:
    """Return a new network as `model` describes it. Raises ModelError."""
    if model.class_ is None:
        return MIRAGE(model.build())
    inner = user_model.build(model.class_, model.path, model.arguments)
    return OwnNetwork(inner, model.stride, model.tile)


def restoring(network: Network) -> Callable[[Tensor], Tensor]:
    """Return the function that restores an image (3, h, w) of any size with `network`."""
    return partial(restore, network) if isinstance(network, MIRAGE) else network.restore


def dump(network: Network, facts: Mapping[str, str]) -> bytes:
    """Return the weights as a safetensors file with `facts` in its header; a class's carry its own names."""
    if isinstance(network, MIRAGE):
        return dumps(network, facts)
    tensors = {name: value.detach().cpu().clone() for name, value in network.inner.state_dict().items()}
    kind = type(network.inner)
    return safetensors.torch.save(tensors, {**facts, "class": f"{kind.__module__}:{kind.__qualname__}"})


def header(model: Model) -> dict[str, str]:
    """Return the header that makes a MIRAGE's state a weights file; none for another class."""
    return {} if model.class_ is not None else {CONFIG_KEY: json.dumps(model.build().to_dict())}


def read(model: Model, weights: bytes) -> Network:
    """Return the network of `model` with the weights that `dump` wrote, in eval mode."""
    if model.class_ is None:
        return loads(weights)
    network = make(model)
    assert isinstance(network, OwnNetwork), "a class was named"
    user_model.load_weights(network.inner, weights, "weights")
    return network.eval()
