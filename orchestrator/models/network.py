"""The network of a training job: a MIRAGE or a user-defined model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from mirage import MIRAGE, restore
from mirage.weights import CONFIG_KEY
from mirage.weights import loads as mirage_loads
from orchestrator.config.schema import Model, UserModel
from orchestrator.errors import ModelError
from orchestrator.models import network_file, user_model
from orchestrator.models.network_code import NetworkCode
from orchestrator.models.user_network import UserModelAdapter, UserOutput

__all__ = [
    "Network",
    "UserModelAdapter",
    "UserOutput",
    "adapted",
    "code",
    "dump",
    "header",
    "make",
    "read",
    "require_registrable",
    "restore_function",
    "source_digest",
]

Network = MIRAGE | UserModelAdapter


def make(model: Model) -> Network:
    """Return a new network for the section `model` of a job. Raises ModelError."""
    if model.class_ is None:
        return MIRAGE(model.build())
    network = adapted(model, user_model.build(model.class_, model.path, model.arguments))
    try:
        network.code = user_model.code(model)  # now: its files may change before weights are written
    except ModelError:  # a job that registers its model found out when it began
        network.code = None
    return network


def adapted(model: UserModel, inner: nn.Module) -> UserModelAdapter:
    """Return a user-defined network as the section `model` calls it. Raises ModelError."""
    call = None if model.adapter is None else user_model.import_call(model.adapter, model.path)
    return UserModelAdapter(inner, model.stride, model.tile, call)


def restore_function(network: Network) -> Callable[[Tensor], Tensor]:
    """Return a function that restores an image (3, h, w) of any size with `network`, whose weights may change later."""
    if isinstance(network, MIRAGE):  # without CUDA graphs, which would hold memory that training needs
        return partial(restore, network)
    return network.restore


def code(model: Model) -> NetworkCode | None:
    """Return the code of a user-defined model, None for a MIRAGE. Raises ModelError."""
    return None if model.class_ is None else user_model.code(model)


def require_registrable(model: Model) -> None:
    """Raise ModelError if a version could not build the network from the source that it would carry."""
    if (carried := code(model)) is None:
        return
    try:
        with torch.random.fork_rng(devices=()), user_model.hidden(model.path):
            carried.build()
    except ModelError as error:
        raise ModelError(
            f"track.register_as: a version is built from the source that it carries, and that fails: {error} "
            "Import the modules of the network by `import` statements, and put what it reads from other files into "
            "model.arguments; or remove track.register_as."
        ) from error


def dump(network: Network, metadata: Mapping[str, str]) -> bytes:
    """Return the weights as a safetensors file with `metadata` in its header, with the code of a user-defined model."""
    return network_file.dumps(network, metadata)


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
        return mirage_loads(weights)
    network = make(model)
    assert isinstance(network, UserModelAdapter)
    user_model.load_weights(network.inner, weights, "weights")
    return network.eval()
