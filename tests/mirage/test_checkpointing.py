from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig
from mirage.batchnorm import BatchNorm
from mirage.config import ActivationCheckpointing
from mirage.loss import LossWeights, restoration_loss

CONFIG = ModelConfig(dim=6, blocks=(1, 2, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), drop_path=0.4)


def trained(which: ActivationCheckpointing, config: ModelConfig = CONFIG) -> tuple[dict[str, Tensor], int]:
    """Return gradients and statistics after one pass, and the bytes kept for the backward pass."""
    torch.manual_seed(0)
    model = MIRAGE(config)
    model.checkpoint_activations(which)
    clean = torch.rand(3, 3, 32, 32)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = model(clean + 0.1 * torch.randn_like(clean), torch.arange(3))
    restoration_loss(output, clean, LossWeights()).total.backward()
    found = {f"grad.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer.{name}": b for name, b in model.named_buffers()}
    return found, sum(x.untyped_storage().nbytes() for address, x in kept.items() if address not in weights)


@pytest.mark.parametrize("which", ["full_resolution", "all"])
@pytest.mark.parametrize("kernels", ["dynamic", "static"])
def test_gradients_and_statistics_are_the_same_to_the_bit_in_less_memory(
    which: ActivationCheckpointing, kernels: str
) -> None:
    config = replace(CONFIG, kernels=kernels)
    plain, much = trained("none", config)
    again, less = trained(which, config)
    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []
    assert less < 0.6 * much


def test_statistics_updated_twice_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _ = trained("none")
    monkeypatch.setattr(
        BatchNorm, "updates_statistics", property(lambda _: True, lambda *_: None), raising=False
    )
    again, _ = trained("all")
    assert any(not torch.equal(plain[name], again[name]) for name in plain if "running" in name)


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of none, full_resolution, all"):
        MIRAGE(CONFIG).checkpoint_activations("some")  # type: ignore[arg-type]
