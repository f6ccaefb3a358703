"""What is measured: how each network is built, called and trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage import MIRAGE, ModelConfig
from mirage.config import Recompute
from mirage.loss import LossWeights, fourier_distance, restoration_loss
from mirage.padding import padded
from orchestrator.bench import external_repos
from orchestrator.bench.errors import BenchError

REPOSITORIES = {
    "PromptIR": "va1shn9v/PromptIR",
    "MoCE-IR": "eduardzamfir/MoCE-IR",
    "AdaIR": "c-yn/AdaIR",
    "Restormer": "swz30/Restormer",
    "OneRestore": "gy65896/OneRestore",
}
RELEASE = "Amazingren/MIRAGE"


@dataclass(frozen=True)
class Subject:
    """A network and its way of being called."""

    name: str
    model: nn.Module
    restored: Callable[[Tensor], Tensor]
    """Inference."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Training loss of (degraded, clean)."""
    block: type[nn.Module] | None = None
    """What is compiled, block by block."""


def ours(size: str, recompute: Recompute = "none", align: int = 1) -> Subject:
    """This project's model, DropPath 0 as in all subjects, its hidden widths padded to multiples of `align`."""
    model = MIRAGE(replace(getattr(ModelConfig, size)(), drop_path=0.0))
    model.recompute(recompute)
    if align > 1:
        model = padded(model, align)
    return from_model(model, f"ours {size}")


def from_model(model: MIRAGE, name: str) -> Subject:
    """A model of ours as a subject, trained with our own loss."""
    from mirage.blocks import Block

    return Subject(
        name,
        model,
        lambda x: model(x).image,
        lambda x, clean: restoration_loss(model(x), clean, LossWeights()).total,
        Block,
    )


def release(path: Path, size: str) -> Subject:
    """The authors' own class, with the loss of their training script, stated here independently of ours."""
    module = external_repos.load(path, f"net.mirage_{size}", repository=RELEASE)
    model: nn.Module = module.MIRAGE()

    def loss(x: Tensor, clean: Tensor) -> Tensor:
        restored, contrast = model(x)
        found, wanted = (torch.view_as_real(torch.fft.rfft2(image.float())) for image in (restored, clean))
        total: Tensor = F.l1_loss(restored, clean) + 0.1 * F.l1_loss(found, wanted) + contrast
        return total

    return Subject(f"release {size}", model, lambda x: model(x)[0], loss, module.TransformerBlock)


def peer(argument: str) -> Subject:
    """A published model in its default configuration from `NAME=PATH`, trained with L1 and the Fourier term."""
    name, equals, path = argument.partition("=")
    if not equals or name not in REPOSITORIES:
        raise BenchError(f"--peer {argument}: NAME=PATH with NAME one of {', '.join(REPOSITORIES)}.")
    model = _BUILD[name](Path(path), REPOSITORIES[name])

    def loss(x: Tensor, clean: Tensor) -> Tensor:
        restored = model(x)
        return F.l1_loss(restored, clean) + 0.1 * fourier_distance(restored, clean)

    return Subject(name, model, lambda x: model(x), loss)


class _WithEmbedding(nn.Module):
    """OneRestore is told the degradation by an embedding of 324 numbers; any will do for a measurement."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x, x.new_ones(x.shape[0], 324))
        return out


_MOCE_IR = {
    **{"dim": 48, "num_blocks": [4, 6, 6, 8], "num_dec_blocks": [2, 4, 4], "heads": [1, 2, 4, 8]},
    **{"num_refinement_blocks": 4, "stage_depth": [1, 1, 1], "depth_type": "constant", "rank_type": "spread"},
}
"""What its options file sets for the larger published model."""

_BUILD: dict[str, Callable[[Path, str], Any]] = {
    "PromptIR": lambda path, of: external_repos.load(path, "net.model", repository=of).PromptIR(decoder=True),
    "AdaIR": lambda path, of: external_repos.load(path, "net.model", repository=of).AdaIR(decoder=True),
    "Restormer": lambda path, of: external_repos.load(
        path, "restormer_arch", "basicsr/models/archs", repository=of
    ).Restormer(),
    "MoCE-IR": lambda path, of: external_repos.load(path, "net.moce_ir", "src", repository=of).MoCEIR(
        **_MOCE_IR
    ),
    "OneRestore": lambda path, of: _WithEmbedding(
        external_repos.load(path, "model.OneRestore", repository=of).OneRestore()
    ),
}
