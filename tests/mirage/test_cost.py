import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mirage
from mirage import MIRAGE, ModelConfig
from mirage.config import Alignment
from mirage.cost import fast_macs, macs, parameters, recomputed_macs
from mirage.kernels.backend import use_backend

BASE = ModelConfig(dim=12, blocks=(1, 2, 1, 2), refinement_blocks=1, heads=(1, 1, 2, 2))
ABLATIONS = (
    replace(BASE, kernels="static"),
    replace(BASE, kernels="static", branch_ratios=(2, 1, 1)),
    replace(BASE, fusion="concatenation"),
    replace(BASE, fusion="concatenation", branch_ratios=(2, 1, 1)),
    *(replace(BASE, alignment=a) for a in ("euclidean", "log_euclidean", "geodesic", "none")),
)


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
        *ABLATIONS,
        ModelConfig.base(),
    ],
)
def test_parameters_are_those_of_the_module(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = MIRAGE(config)
    count = sum(p.numel() for p in model.parameters())
    heads = sum(p.numel() for name, p in model.named_parameters() if name.startswith("spd_"))
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


@pytest.mark.parametrize(
    "config", [BASE, *ABLATIONS, replace(BASE, branch_ratios=(1, 0, 0)), ModelConfig.tiny()]
)
def test_the_fast_form_is_counted_as_it_runs(config: ModelConfig) -> None:
    # The counter cannot look inside our custom operators.
    with use_backend("reference"), FlopCounterMode(display=False) as counter, torch.no_grad():
        MIRAGE(config).eval()(torch.rand(1, 3, 48, 64))
    assert fast_macs(config, 48, 64) == counter.get_total_flops() / 2


@pytest.mark.parametrize("alignment", ["spd", "euclidean", "log_euclidean", "none"])
def test_heads_are_counted_as_they_run(alignment: Alignment) -> None:
    config = replace(BASE, alignment=alignment)
    counted = []
    for training in (True, False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            output = MIRAGE(config).train(training)(torch.rand(1, 3, 32, 32))
            if output.shallow is not None:
                assert output.latent is not None
                output.shallow @ output.latent.mT
        counted.append(counter.get_total_flops() / 2)
    decompositions = sum(2 * r**3 for r in config.spd_channels) if alignment == "log_euclidean" else 0
    heads = macs(config, 32, 32) - macs(config, 32, 32, spd_head=False)
    assert counted[0] - counted[1] - decompositions / 2 == heads


def test_checkpointing_all_blocks_repeats_nearly_the_whole_forward_pass() -> None:
    config = ModelConfig.tiny()
    whole, again = fast_macs(config, 128, 128), recomputed_macs(config, 128, 128, "all")
    assert 0.85 * whole < again < whole
    assert recomputed_macs(config, 128, 128, "none") == 0
    assert 0.4 * again < recomputed_macs(config, 128, 128, "full_resolution") < 0.5 * again


def test_the_heads_cost_nothing_at_inference() -> None:
    assert macs(ModelConfig.tiny(), 224, 224, spd_head=False) == 16_225_753_984


@pytest.mark.parametrize("module", ["config", "cost", "memory"])
def test_configurations_and_costs_need_no_torch(module: str) -> None:
    tree = ast.parse(Path(mirage.__file__).with_name(f"{module}.py").read_text())
    sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    sources |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {source for source in sources if source.split(".")[0] not in sys.stdlib_module_names}
    assert ours <= {"mirage.config", "mirage.cost"}
