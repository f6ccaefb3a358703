"""The candidate: any model as one thing that restores whole photographs, with what a table must say of it."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mirage import MIRAGE
from mirage.cost import macs
from mirage.weights import WeightsError, dumps, load_release, loads, read_metadata
from orchestrator.config.job_schemas import EvaluatedModel
from orchestrator.errors import ModelError
from orchestrator.models import user_model
from orchestrator.models.network import Network, OwnNetwork, restoring
from orchestrator.paths import absolute_uri
from orchestrator.registry.resolve import find_model

NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelIdentity:
    """What every number must say of the model it is of."""

    name: str
    recipe: str
    weights: str
    """`raw`, `EMA`, or that nobody said."""
    digest: str
    """Sha256 of the weights file; "" for a class judged as it is made."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A network that restores whole photographs."""

    network: Network
    precision: Literal["fp32", "bf16"] = "fp32"

    def __call__(self, degraded: Tensor) -> Tensor:
        """Restore float RGB (3, h, w) in [0, 1]; the result is clipped to it.

        A MIRAGE takes any size in bounded memory. Another network takes images continued by reflection to multiples
        of its stride, or tiles where it has them.
        """
        device = degraded.device.type
        autocast = torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with autocast:
            return restoring(self.network)(degraded).float()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one 3 x 224 x 224 image as papers count them; None where they cannot be counted."""
        return macs(self.network.config, 224, 224) if isinstance(self.network, MIRAGE) else None


def fetch_weights(model: EvaluatedModel, tracking_uri: str | None = None) -> bytes:
    """Return the bytes of the weights that `model` names, b"" when it names none. Raises RegistryError, ModelError.

    One of the authors' checkpoints becomes safetensors. A relative file stands below the project; registered models
    and runs are those of `tracking_uri`, a job's `track.uri`.
    """
    if model.weights is None:
        return b""
    is_file = ":/" not in model.weights and ("/" in model.weights or bool(Path(model.weights).suffix))
    found = find_model(absolute_uri(model.weights) if is_file else model.weights, tracking_uri)
    if model.class_ is None and found.path.suffix in (".ckpt", ".pth", ".pt"):
        try:
            return dumps(load_release(found.path), {"recipe": "the authors' checkpoint", "weights": "raw"})
        except WeightsError as error:
            raise ModelError(f"{error} For another network, name its model.class.") from error
    return found.path.read_bytes()


def identify(model: EvaluatedModel, weights: bytes) -> ModelIdentity:
    """Return what tables say of the model: what the job says, else what the weights say of themselves."""
    header: dict[str, str] = {}
    with suppress(WeightsError):  # a checkpoint of torch, or no weights: it says nothing
        header = read_metadata(weights)
    own = model.class_.partition(":")[2] if model.class_ else None
    return ModelIdentity(
        name=model.name or own or _short(model.weights or ""),
        recipe=model.recipe or header.get("recipe", NOT_STATED),
        weights=header.get("weights", NOT_STATED),
        digest=hashlib.sha256(weights).hexdigest() if weights else "",
    )


def build_model(
    model: EvaluatedModel, weights: bytes, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32"
) -> ModelUnderTest:
    """Return the candidate that `model` with these weights is. Raises ModelError."""
    where = model.weights or "model"
    if model.class_ is None:
        return ModelUnderTest(_mirage(weights, where, device), precision=precision)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # what is judged as it is made is made alike by every worker
        inner = user_model.build(model.class_, model.path, model.arguments)
    if weights:
        user_model.load_weights(inner, weights, where)
    return ModelUnderTest(OwnNetwork(inner, model.stride, model.tile).to(device).eval(), precision)


def _mirage(weights: bytes, where: str, device: torch.device) -> MIRAGE:
    try:
        return loads(weights, device)
    except WeightsError as error:
        raise ModelError(
            f"model.weights {where}: {error} For another network, name its model.class."
        ) from error


def _short(weights: str) -> str:
    return weights.removeprefix("models:/") if weights.startswith("models:/") else Path(weights).stem
