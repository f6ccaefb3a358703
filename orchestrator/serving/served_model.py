"""The model that a service answers with: its weights, its name in the registry, and its figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mirage.weights import WeightsError, dumps
from orchestrator.errors import RegistryError
from orchestrator.registry import versions
from orchestrator.registry.resolve import find_model
from orchestrator.tracking.uri import resolve_tracking_uri

_INPUT = re.compile(r"metric\.test/(.+)/input_psnr")


@dataclass(frozen=True)
class Figure:
    """PSNR [dB] over the held-out photographs of one degradation, before and after."""

    degradation: str
    degraded: float
    restored: float

    @property
    def gain(self) -> float:
        """Of restoring [dB]; negative where the model makes it worse."""
        return self.restored - self.degraded


@dataclass(frozen=True)
class Served:
    """A model, whole: small enough (25 MB for T) to be handed around as bytes."""

    name: str
    version: str
    """Number in the registry, or the first digits of the digest for a file."""
    digest: str
    """SHA-256 of the weights file."""
    weights: bytes = field(repr=False)
    """As `mirage.weights.dumps` writes them."""
    parameters: int
    recipe: str = ""
    protocol: str = ""
    figures: tuple[Figure, ...] = ()
    """The last one is the average."""

    @property
    def label(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"

    def facts(self) -> dict[str, Any]:
        """Return what the page and a client may know, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": self.digest,
            "parameters": self.parameters,
            "recipe": self.recipe,
            "protocol": self.protocol,
            "figures": [
                {
                    "degradation": figure.degradation,
                    "degraded_psnr": round(figure.degraded, 2),
                    "restored_psnr": round(figure.restored, 2),
                    "gain": round(figure.gain, 2),
                }
                for figure in self.figures
            ],
        }


def follows(model: str) -> bool:
    """Whether what `model` names can change while a service runs: an alias in the registry does."""
    return model.startswith("models:/") and "@" in model


def version_now(model: str) -> str:
    """Return which version the registry means by `model` now. Raises RegistryError."""
    return str(versions.describe(model, resolve_tracking_uri()).version)


def fetch(model: str) -> Served:
    """Return the model that `model` names, its weights read and complete. Raises RegistryError."""
    described = None
    exact = model
    if model.startswith("models:/"):
        described = versions.describe(model, resolve_tracking_uri())
        exact = f"models:/{described.name}/{described.version}"  # the alias may move meanwhile
    named = find_model(exact)
    try:
        network = named.load(torch.device("cpu"))
    except WeightsError as error:
        raise RegistryError(str(error)) from error
    tags: Mapping[str, str] = described.tags if described else {}
    return Served(
        name=described.name if described else named.path.name,
        version=str(described.version) if described else named.digest[:12],
        digest=named.digest,
        weights=dumps(network),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        recipe=tags.get("recipe", ""),
        protocol=tags.get("protocol", ""),
        figures=figures(tags),
    )


def figures(tags: Mapping[str, str]) -> tuple[Figure, ...]:
    """Return what a registered version's tags say of its quality, the average last."""
    found = []
    for tag, value in tags.items():
        match = _INPUT.fullmatch(tag)
        restored = tags.get(f"metric.test/{match.group(1)}/psnr") if match else None
        if match and restored is not None:
            found.append(Figure(match.group(1), float(value), float(restored)))
    return tuple(sorted(found, key=lambda figure: (figure.degradation == "average", figure.degradation)))
