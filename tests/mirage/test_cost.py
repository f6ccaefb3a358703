import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import mirage
from mirage import MIRAGE, ModelConfig
from mirage.cost import activation_bytes, macs, parameters

BASE = ModelConfig(dim=12, blocks=(1, 2, 1, 2), refinement_blocks=1, heads=(1, 1, 2, 2))


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig.tiny(),
        ModelConfig.small(),
        BASE,
        *(
            replace(BASE, branch_ratios=ratios)
            for ratios in [(2, 1, 1), (3, 2, 1), (0, 1, 1), (1, 0, 1), (1, 0, 0)]
        ),
        replace(BASE, ffn_expansion=1.7, spd_channels=(5, 7), spd_embed_dim=9),
    ],
)
def test_parameters_are_those_of_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = MIRAGE(config)
    count = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for head in (model.spd_shallow, model.spd_latent) for p in head.parameters())
    assert parameters(config) == count
    assert parameters(config, spd_head=False) == count - heads


@pytest.mark.parametrize(
    ("config", "height", "width", "expected"),
    [
        # torch.utils.flop_counter.FlopCounterMode / 2 on the release's classes, torch 2.13, meta device.
        (ModelConfig.tiny(), 224, 224, 16_249_734_080),
        (ModelConfig.small(), 224, 224, 26_676_192_472),
        (ModelConfig.tiny(), 128, 128, 5_307_512_768),
        (ModelConfig.small(), 64, 96, 3_269_474_776),
    ],
)
def test_macs_are_those_counted_on_the_release(
    config: ModelConfig, height: int, width: int, expected: int
) -> None:
    assert macs(config, height, width) == expected


def test_the_heads_cost_nothing_at_inference() -> None:
    assert macs(ModelConfig.tiny(), 224, 224, spd_head=False) == 16_225_753_984


@pytest.mark.parametrize("config", [BASE, replace(BASE, branch_ratios=(2, 1, 1)), ModelConfig.tiny()])
def test_the_memory_model_is_within_a_tenth_of_what_autograd_keeps(config: ModelConfig) -> None:
    model, images = MIRAGE(config), torch.rand(2, 3, 64, 64)
    addresses = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(images)
    maps = sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in addresses)
    assert output.image.requires_grad
    assert activation_bytes(config, 64, 64) == pytest.approx(maps / 2, rel=0.1)


@pytest.mark.parametrize("module", ["config", "cost"])
def test_configurations_and_costs_need_no_torch(module: str) -> None:
    tree = ast.parse(Path(mirage.__file__).with_name(f"{module}.py").read_text())
    sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    sources |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {source for source in sources if source.split(".")[0] not in sys.stdlib_module_names}
    assert ours <= {"mirage.config"}
