"""A model as a service uses it: its weights, its name in the registry, and its scores."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from mirage.weights import WeightsError, read_metadata
from orchestrator.errors import RegistryError
from orchestrator.models.network_file import loads
from orchestrator.registry import versions
from orchestrator.registry.resolve import ModelFile, find_model
from orchestrator.run_files import DEGRADATIONS
from orchestrator.serving.descriptions import degradation_title, model_description
from orchestrator.tracking.uri import resolve_tracking_uri

_INPUT_TAG = re.compile(r"metric\.test/(.+)/input_psnr")


@dataclass(frozen=True)
class DegradationPsnr:
    """Mean PSNR over the held-out photographs of one degradation [dB]."""

    degradation: str
    degraded: float
    restored: float

    @property
    def gain(self) -> float:
        """Improvement by the model [dB]; negative if it makes the photographs worse."""
        return self.restored - self.degraded


@dataclass(frozen=True)
class ServedModel:
    """A model with its weights, which are small enough (25 MB for T) to be passed as bytes."""

    name: str
    version: str
    """Number in the registry, or the first digits of the digest for a file."""
    digest: str
    """SHA-256 of the weights file."""
    weights: bytes = field(repr=False)
    """Safetensors, written by `models.network_file.dumps`. Whoever made this object has the consent to its code."""
    parameters: int
    recipe: str = ""
    protocol: str = ""
    scores: tuple[DegradationPsnr, ...] = ()
    """One per degradation; the last one is the average."""
    degradations: tuple[str, ...] = ()
    """What it was trained to remove; empty if that is not known."""
    class_: str = ""
    """package.module:Class of a user-defined network; empty for a MIRAGE."""
    code_digest: str = ""
    """SHA-256 of the code that the model brings; empty for a MIRAGE."""

    @property
    def label(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"

    def facts(self) -> dict[str, Any]:
        """Return what /model answers, ready for JSON."""
        return {
            "name": self.name,
            "version": self.version,
            "weights_sha256": self.digest,
            "parameters": self.parameters,
            "network": self.class_ or "MIRAGE",
            "code_sha256": self.code_digest or None,
            "recipe": self.recipe,
            "protocol": self.protocol,
            "degradations": list(self.degradations),
            "description": model_description(self.degradations),
            "titles": {
                name: degradation_title(name)
                for name in (*self.degradations, *(score.degradation for score in self.scores))
            },
            "figures": [
                {
                    "degradation": score.degradation,
                    "degraded_psnr": round(score.degraded, 2),
                    "restored_psnr": round(score.restored, 2),
                    "gain": round(score.gain, 2),
                }
                for score in self.scores
            ],
        }


def is_alias(model: str) -> bool:
    """Return whether `model` names an alias of the registry, which can move while a service runs."""
    return model.startswith("models:/") and "@" in model


def current_version(model: str, tracking_uri: str | None = None) -> str:
    """Return the version that an alias points to now. Raises RegistryError."""
    return str(versions.describe(model, resolve_tracking_uri(tracking_uri)).version)


def load_model(model: str, tracking_uri: str | None = None, trust_code: Collection[str] = ()) -> ServedModel:
    """Load the model that `model` names, by default from this project's registry. Raises RegistryError, ModelError.

    trust_code: digests of code that it may bring and run.
    """
    described = None
    exact = model
    if model.startswith("models:/"):
        described = versions.describe(model, resolve_tracking_uri(tracking_uri))
        exact = f"models:/{described.name}/{described.version}"  # the alias may move meanwhile
    named = find_model(exact, tracking_uri, trust_code)
    try:
        weights, code = named.weights(), named.code()
    except WeightsError as error:
        raise RegistryError(str(error)) from error
    tags: Mapping[str, str] = described.tags if described else {}
    scores = psnr_scores(tags)
    return ServedModel(
        name=described.name if described else named.path.name,
        version=str(described.version) if described else named.digest[:12],
        digest=named.digest,
        weights=weights,
        parameters=sum(p.numel() for p in loads(weights, trusted="all").module.parameters()),
        recipe=tags.get("recipe", ""),
        protocol=tags.get("protocol", ""),
        scores=scores,
        degradations=_trained_on(named)
        or tuple(score.degradation for score in scores if score.degradation != "average"),
        class_=code.class_ if code else "",
        code_digest=code.digest if code else "",
    )


def _trained_on(model: ModelFile) -> tuple[str, ...]:
    """Return the degradations that the header of a weights file names; none for a file of an earlier release."""
    try:
        header = read_metadata(model.data())
    except WeightsError:  # a checkpoint of the authors
        return ()
    return tuple(header.get(DEGRADATIONS, "").split())


def psnr_scores(tags: Mapping[str, str]) -> tuple[DegradationPsnr, ...]:
    """Return the scores in a registered version's tags, the average last."""
    found = []
    for tag, value in tags.items():
        match = _INPUT_TAG.fullmatch(tag)
        restored = tags.get(f"metric.test/{match.group(1)}/psnr") if match else None
        if match and restored is not None:
            found.append(DegradationPsnr(match.group(1), float(value), float(restored)))
    return tuple(sorted(found, key=lambda score: (score.degradation == "average", score.degradation)))
