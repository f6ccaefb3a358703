"""Our model compared with the authors' release on a stored case, which `make_parity.py` writes."""

import runpy
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

HERE = Path(__file__).parent
PARITY = runpy.run_path(str(HERE / "make_parity.py"))


@pytest.fixture(scope="module")
def case() -> dict[str, Tensor]:
    return load_file(HERE / "parity.safetensors")


def compare(case: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, float]:
    ours = PARITY["our_results"](state, case["degraded"], case["clean"])
    return PARITY["differences"](ours, case)


def state_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("state."): x for name, x in case.items() if name.startswith("state.")}


def test_images_losses_gradients_and_statistics_are_the_releases(case: dict[str, Tensor]) -> None:
    found = compare(case, state_of(case))
    assert {name: value for name, value in found.items() if value > 1e-5} == {}


@pytest.mark.parametrize(
    "name",
    [
        "latent.0.attn.temperature",
        "encoder_level1.0.attn.gatedcnn.temperature",
        "encoder_level2.0.attn.gatedcnn.norm.bias",
        "decoder_level1.0.attn.alpha_gated",
        "refinement.0.norm2.body.weight",
    ],
)
def test_the_case_notices_one_number_that_is_off(case: dict[str, Tensor], name: str) -> None:
    state = state_of(case)
    state[name] = state[name] * 1.05
    found = compare(case, state)
    assert max(found["image, eval"], found["gradient, relative"]) > 1e-5
