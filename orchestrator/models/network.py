"""The network of a training job: a MIRAGE or a user-defined model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mirage import MIRAGE, Output, restore
from mirage.restore import reflect_to_multiple
from mirage.tiles import forward_in_tiles
from mirage.weights import CONFIG_KEY, dumps, loads, to_bytes
from orchestrator.config.schema import Model
from orchestrator.errors import ModelError
from orchestrator.models import user_model

_TILE_OVERLAP = 64


class UserModelAdapter(nn.Module):
    """A user-defined model with the interface of a MIRAGE; it has no embeddings."""

    def __init__(self, inner: nn.Module, stride: int, tile: int | None) -> None:
        super().__init__()
        self.inner = inner
        self.stride = stride
        self.tile = tile

    def forward(self, degraded: Tensor, keys: Tensor | None = None) -> Output:
        """Restore a batch (b, 3, h, w) whose sides are multiples of the stride; `keys` are ignored."""
        image = user_model.image_of(self.inner(degraded))
        if image.shape != degraded.shape:
            raise ModelError(
                f"the network returned images of shape {tuple(image.shape)} for {tuple(degraded.shape)}."
            )
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


Network = MIRAGE | UserModelAdapter


def make(model: Model) -> Network:
    """Return a new network for the section `model` of a job. Raises ModelError."""
    if model.class_ is None:
        return MIRAGE(model.build())
    inner = user_model.build(model.class_, model.path, model.arguments)
    return UserModelAdapter(inner, model.stride, model.tile)


def restore_function(network: Network) -> Callable[[Tensor], Tensor]:
    """Return a function that restores an image (3, h, w) of any size with `network`."""
    return partial(restore, network) if isinstance(network, MIRAGE) else network.restore


def dump(network: Network, metadata: Mapping[str, str]) -> bytes:
    """Return the weights as a safetensors file with `metadata` in its header."""
    if isinstance(network, MIRAGE):
        return dumps(network, metadata)
    tensors = {name: value.detach().cpu().clone() for name, value in network.inner.state_dict().items()}
    kind = type(network.inner)
    return to_bytes(tensors, {**metadata, "class": f"{kind.__module__}:{kind.__qualname__}"})


def header(model: Model) -> dict[str, str]:
    """Return the header entries that make a MIRAGE's state a weights file; none for a user-defined model."""
    return {} if model.class_ is not None else {CONFIG_KEY: json.dumps(model.build().to_dict())}


def source_digest(model: Model) -> str:
    """Return the digest of a user-defined model's source, "" for a MIRAGE. Raises ModelError."""
    return "" if model.class_ is None else user_model.source_digest(model.class_, model.path)


def read(model: Model, weights: bytes) -> Network:
    """Return the network of the section `model` with weights written by `dump`, in eval mode."""
    if model.class_ is None:
        return loads(weights)
    network = make(model)
    assert isinstance(network, UserModelAdapter)
    user_model.load_weights(network.inner, weights, "weights")
    return network.eval()
