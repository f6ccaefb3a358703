import torch

from mirage import MIRAGE, ModelConfig
from mirage.loss import LossTerms, LossWeights, restoration_loss

CONFIG = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2))


def step(bf16: bool) -> tuple[LossTerms, torch.Tensor]:
    torch.manual_seed(0)
    model = MIRAGE(CONFIG)
    clean = torch.rand(4, 3, 48, 48)
    degraded = clean + 0.1 * torch.randn_like(clean)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = model(degraded, torch.arange(4))
        assert output.shallow is not None
        assert output.shallow.dtype == torch.float32
        loss = restoration_loss(output, clean, LossWeights())
    loss.total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss, gradient


def test_a_bf16_step_is_close_to_fp32_and_its_loss_is_fp32() -> None:
    exact, gradient = step(bf16=False)
    half, rough = step(bf16=True)
    for name, term in half.terms().items():
        assert term.dtype == torch.float32, name
        torch.testing.assert_close(term, exact.terms()[name], rtol=0.05, atol=1e-3)
    assert torch.isfinite(rough).all()
    assert torch.nn.functional.cosine_similarity(gradient, rough, dim=0) > 0.99
