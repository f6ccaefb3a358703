import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.compile import compile_blocks, force_eager
from mirage.config import Stage
from mirage.model import BlockStack

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), drop_path=0.4)


def stepped(compiled: bool, recompute: bool = False) -> dict[str, Tensor]:
    """Return output, gradients and statistics of a second training step of one stage with two blocks."""
    torch.manual_seed(0)
    stack = BlockStack(Stage("stage", channels=6, blocks=2, heads=2, stride=1), CONFIG)
    stack.checkpointed = recompute
    names = list(stack.state_dict())
    if compiled:
        assert compile_blocks(stack)
    path_scales = torch.tensor([[0.0, 1.0, 1.7], [1.7, 0.0, 1.0]])
    for _ in range(2):
        stack.zero_grad(set_to_none=True)
        x = torch.randn(3, 32, 32, 6, requires_grad=True)
        output = stack(x, path_scales)
        output.square().mean().backward()
    assert list(stack.state_dict()) == names
    assert x.grad is not None
    gradients = {name: p.grad for name, p in stack.named_parameters() if p.grad is not None}
    return {**gradients, **dict(stack.named_buffers()), "input": x.grad, "output": output.detach()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # raised inside the compiler
def test_compiled_and_recomputed_blocks_give_the_same_step_to_rounding_in_whole_programs() -> None:
    torch._dynamo.utils.counters.clear()
    plain, found = stepped(False), stepped(True, recompute=True)
    assert plain.keys() == found.keys()
    a, b = (torch.cat([x[name].double().flatten() for name in plain]) for x in (found, plain))
    assert float((a - b).norm() / b.norm()) < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # raised inside the compiler
def test_force_eager_compiles_nothing() -> None:
    model = MIRAGE(CONFIG).eval()
    degraded = torch.rand(1, 3, 16, 24)
    plain = model(degraded).image
    assert compile_blocks(model)
    torch._dynamo.utils.counters.clear()
    with force_eager():
        assert torch.equal(model(degraded).image, plain)
    assert not torch._dynamo.utils.counters["stats"]


WITHOUT = """
import os, sys, warnings, torch
from torch._inductor import cpp_builder
from mirage import MIRAGE, ModelConfig, compile

def images():
    models = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for compiled in (False, True, True):
            torch.manual_seed(0)
            config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1))
            models.append(MIRAGE(config))
            assert not (compiled and compile.compile_blocks(models[-1]))
        found = [model.eval()(torch.ones(1, 3, 16, 16)).image for model in models]
    assert all(torch.equal(image, found[0]) for image in found)
    (ours,) = [str(w.message) for w in seen if "torch.jit" not in str(w.message)]
    print(ours.splitlines()[0])

for folder in sys.argv[1:]:
    os.environ["PATH"] = folder
    for cache in (compile.compiler_error, compile._warn, cpp_builder.cpp_compiler_search):
        cache.cache_clear()
    images()
"""


def test_without_a_working_compiler_the_model_is_eager_after_one_warning(tmp_path: Path) -> None:
    absent, broken = tmp_path / "absent", tmp_path / "broken"
    absent.mkdir()
    broken.mkdir()
    # Like a machine without Python's headers
    (broken / "g++").write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\nexit 1\n')
    (broken / "g++").chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(absent), str(broken)],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    for line in done.stdout.splitlines():
        assert line.startswith("torch.compile does not work here; the blocks run eagerly: ")
