"""The network of a training job: a MIRAGE or a user-defined model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mirage import MIRAGE, restore
from mirage.inference import reflect_to_multiple
from mirage.tiles import forward_in_tiles
from mirage.weights import CONFIG_KEY, dumps, loads, to_bytes
from orchestrator.config.schema import Model, UserModel
from orchestrator.errors import ModelError
from orchestrator.models import parameter_use, user_model

_TILE_OVERLAP = 64


class UserOutput(NamedTuple):
    """The output of a user-defined network: that of a MIRAGE without embeddings, and its own loss terms."""

    image: Tensor
    """The restored images (b, 3, h, w), not clipped."""
    terms: dict[str, Tensor]
    """Loss terms by name: each a number, or one number for each image (b,)."""


class UserModelAdapter(nn.Module):
    """A user-defined model with the interface of a MIRAGE; it has no embeddings.

    call: the job's `model.adapter`, or None.
    """

    def __init__(
        self, inner: nn.Module, stride: int, tile: int | None, call: user_model.Call | None = None
    ) -> None:
        super().__init__()
        self.inner = inner
        self.stride = stride
        self.tile = tile
        self._call = call or user_model.call_with_image
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
        image, terms = user_model.outputs_of(result)
        if image.shape != degraded.shape:
            raise ModelError(
                f"the network returned images of shape {tuple(image.shape)} for {tuple(degraded.shape)}."
            )
        return UserOutput(image, terms)

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
    return adapted(model, user_model.build(model.class_, model.path, model.arguments))


def adapted(model: UserModel, inner: nn.Module) -> UserModelAdapter:
    """Return a user-defined network as the section `model` calls it. Raises ModelError."""
    call = None if model.adapter is None else user_model.import_call(model.adapter, model.path)
    return UserModelAdapter(inner, model.stride, model.tile, call)


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
    """Return the digest of the source of a user-defined model and its adapter, "" for a MIRAGE. Raises ModelError."""
    if model.class_ is None:
        return ""
    names = [model.class_, *([model.adapter] if model.adapter else [])]
    digests = [user_model.source_digest(name, model.path) for name in names]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read(model: Model, weights: bytes) -> Network:
    """Return the network of the section `model` with weights written by `dump`, in eval mode."""
    if model.class_ is None:
        return loads(weights)
    network = make(model)
    assert isinstance(network, UserModelAdapter)
    user_model.load_weights(network.inner, weights, "weights")
    return network.eval()
