"""The networks that are compared: how each one is built, called and trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mirage import MIRAGE, ModelConfig
from mirage.config import ActivationCheckpointing
from mirage.loss import LossWeights, fourier_distance, restoration_loss
from mirage.padding import padded
from orchestrator.bench import external_repos
from orchestrator.bench.errors import BenchError

CLASS_PATTERN = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"

REPOSITORIES = {
    "PromptIR": "va1shn9v/PromptIR",
    "MoCE-IR": "eduardzamfir/MoCE-IR",
    "AdaIR": "c-yn/AdaIR",
    "Restormer": "swz30/Restormer",
    "NAFNet": "megvii-research/NAFNet",
    "BioIR": "c-yn/BioIR",
    "OneRestore": "gy65896/OneRestore",
}
RELEASE = "Amazingren/MIRAGE"


@dataclass(frozen=True)
class BenchNetwork:
    """A network and the functions that run it."""

    name: str
    model: nn.Module
    infer: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    """Training loss of (degraded, clean)."""
    block: type[nn.Module] | None = None
    """Class of the blocks that are compiled one by one."""


def ours(
    size: str, activation_checkpointing: ActivationCheckpointing = "none", align: int = 1
) -> BenchNetwork:
    """Return this project's model with DropPath 0, its hidden widths padded to multiples of `align`."""
    model = MIRAGE(replace(getattr(ModelConfig, size)(), drop_path=0.0))
    model.checkpoint_activations(activation_checkpointing)
    if align > 1:
        model = padded(model, align)
    return from_model(model, f"ours {size}")


def from_model(model: MIRAGE, name: str) -> BenchNetwork:
    """Return a MIRAGE with this project's loss."""
    from mirage.blocks import Block

    return BenchNetwork(
        name,
        model,
        lambda x: model(x).image,
        lambda x, clean: restoration_loss(model(x), clean, LossWeights()).total,
        Block,
    )


def release(path: Path, size: str) -> BenchNetwork:
    """Return the authors' class with the loss of their training script, written here independently of ours."""
    module = external_repos.load(path, f"net.mirage_{size}", repository=RELEASE)
    model: nn.Module = module.MIRAGE()

    def loss(x: Tensor, clean: Tensor) -> Tensor:
        restored, contrast = model(x)
        found, wanted = (torch.view_as_real(torch.fft.rfft2(image.float())) for image in (restored, clean))
        total: Tensor = F.l1_loss(restored, clean) + 0.1 * F.l1_loss(found, wanted) + contrast
        return total

    return BenchNetwork(f"release {size}", model, lambda x: model(x)[0], loss, module.TransformerBlock)


def peer(argument: str) -> BenchNetwork:
    """Return a network from `NAME=PATH` with its default arguments, and an L1 and a Fourier loss.

    NAME is a published model or package.module:Class, PATH the checkout or the folder to import the class from.
    """
    name, equals, path = argument.partition("=")
    if not equals or not (name in REPOSITORIES or re.fullmatch(CLASS_PATTERN, name)):
        raise BenchError(
            f"--peer {argument}: NAME=PATH with NAME one of {', '.join(REPOSITORIES)}, or package.module:Class."
        )
    model = _build(name, Path(path)) if name in REPOSITORIES else _instance(name, Path(path))

    def infer(x: Tensor) -> Tensor:
        output = model(x)
        image: Tensor = output[0] if isinstance(output, tuple | list) else output
        return image

    def loss(x: Tensor, clean: Tensor) -> Tensor:
        restored = infer(x)
        return F.l1_loss(restored, clean) + 0.1 * fourier_distance(restored, clean)

    return BenchNetwork(name, model, infer, loss)


def _instance(name: str, path: Path) -> nn.Module:
    module, _, kind = name.partition(":")
    try:
        made = getattr(external_repos.load(path, module), kind)()
    except (AttributeError, TypeError) as error:
        raise BenchError(f"--peer {name}: cannot be made without arguments: {error}.") from error
    if not isinstance(made, nn.Module):
        raise BenchError(f"--peer {name}: is not a torch.nn.Module.")
    return made


class _WithEmbedding(nn.Module):
    """OneRestore with a constant embedding of the degradation; its values do not matter for a measurement."""

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
"""Options of the larger published model."""


_NAFNET = {"width": 32, "middle_blk_num": 1, "enc_blk_nums": [1, 1, 1, 28], "dec_blk_nums": [1, 1, 1, 1]}
"""Options of the published model of 17 M parameters, those of jobs/peers/nafnet.yaml."""


def _build(name: str, path: Path) -> Any:
    def load(module: str, folder: str = "") -> Any:
        return external_repos.load(path, module, folder, REPOSITORIES[name])

    match name:
        case "PromptIR":
            return load("net.model").PromptIR(decoder=True)
        case "AdaIR":
            return load("net.model").AdaIR(decoder=True)
        case "Restormer":
            return load("restormer_arch", "basicsr/models/archs").Restormer()
        case "NAFNet":
            return load("basicsr.models.archs.NAFNet_arch").NAFNet(**_NAFNET)
        case "BioIR":
            return load("net.model", "All_in_One").BioIR()
        case "MoCE-IR":
            return load("net.moce_ir", "src").MoCEIR(**_MOCE_IR)
        case _:
            return _WithEmbedding(load("model.OneRestore").OneRestore())
