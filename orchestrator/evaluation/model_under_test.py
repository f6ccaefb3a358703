"""Load any model for evaluation, with what tables must state about it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mirage import MIRAGE
from mirage.cost import macs
from mirage.weights import WeightsError, dumps, load_release, read_metadata
from orchestrator.config.job_schemas import EvaluatedModel
from orchestrator.errors import ModelError
from orchestrator.models import user_model
from orchestrator.models.network import adapted
from orchestrator.models.network_file import RestoringNetwork, loads
from orchestrator.paths import absolute_if_file
from orchestrator.registry.resolve import find_model

NOT_STATED = "not stated"


@dataclass(frozen=True)
class ModelIdentity:
    """What every score must state about its model."""

    name: str
    recipe: str
    weights: str
    """`raw`, `EMA` or `not stated`."""
    digest: str
    """SHA-256 of the weights file; "" for a class with its initial weights."""


@dataclass(frozen=True)
class ModelUnderTest:
    """A network that restores whole photographs."""

    network: RestoringNetwork
    precision: Literal["fp32", "bf16"] = "fp32"

    def __call__(self, degraded: Tensor) -> Tensor:
        """Restore float RGB (3, h, w) in [0, 1]; the result is clipped to that range.

        A MIRAGE takes any size in bounded memory. Other networks get images padded by reflection to multiples of their
        stride, or cut into tiles if the job says so.
        """
        with torch.autocast(degraded.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.network.restore(degraded).float()

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.network.module.parameters())

    @property
    def macs(self) -> int | None:
        """Multiply-adds of one 3 x 224 x 224 image as papers count them; None for other networks."""
        module = self.network.module
        return macs(module.config, 224, 224) if isinstance(module, MIRAGE) else None


def fetch_weights(model: EvaluatedModel, tracking_uri: str | None = None) -> bytes:
    """Return the weights that `model` names, b"" if it names none. Raises RegistryError, ModelError.

    A checkpoint of the authors is converted to safetensors. Relative files are relative to the project; registered
    models and runs are searched at `tracking_uri`.
    """
    if model.weights is None:
        return b""
    found = find_model(absolute_if_file(model.weights), tracking_uri, model.trust)
    if model.class_ is None and found.path.suffix in (".ckpt", ".pth", ".pt"):
        try:
            return dumps(load_release(found.path), {"recipe": "the authors' checkpoint", "weights": "raw"})
        except WeightsError as error:
            raise ModelError(f"{error} For another network, name its model.class.") from error
    if model.class_ is None:
        with suppress(WeightsError):  # `build_model` says what is wrong
            found.require_consent()
    return found.data()


def identify(model: EvaluatedModel, weights: bytes) -> ModelIdentity:
    """Return what tables state about the model: from the job, else from the header of the weights."""
    header: dict[str, str] = {}
    with suppress(WeightsError):  # a checkpoint of torch, or no weights
        header = read_metadata(weights)
    class_name = model.class_.partition(":")[2] if model.class_ else None
    return ModelIdentity(
        name=model.name or class_name or _short(model.weights or ""),
        recipe=model.recipe or header.get("recipe", NOT_STATED),
        weights=header.get("weights", NOT_STATED),
        digest=hashlib.sha256(weights).hexdigest() if weights else "",
    )


def build_model(
    model: EvaluatedModel, weights: bytes, device: torch.device, precision: Literal["fp32", "bf16"] = "fp32"
) -> ModelUnderTest:
    """Return the model with these weights, in eval mode. Raises ModelError.

    Code in the weights runs: `fetch_weights`, in the driver, has asked for the consent.
    """
    where = model.weights or "model"
    if model.class_ is None:
        return ModelUnderTest(_complete(weights, where, device), precision)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # every worker has the same initial weights
        inner = user_model.build(model.class_, model.path, model.arguments)
    if weights:
        user_model.load_weights(inner, weights, where)
    return ModelUnderTest(adapted(model, inner).to(device).eval(), precision)


def _complete(weights: bytes, where: str, device: torch.device) -> RestoringNetwork:
    try:
        return loads(weights, device, trusted="all")
    except WeightsError as error:
        raise ModelError(
            f"model.weights {where}: {error} For another network, name its model.class."
        ) from error


def _short(weights: str) -> str:
    return weights.removeprefix("models:/") if weights.startswith("models:/") else Path(weights).stem
