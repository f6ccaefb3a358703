"""The model on the GPU: compared with the CPU, run twice, compiled, in bf16, with activation checkpointing."""

import os
import unittest
from dataclasses import replace

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # makes cuBLAS deterministic

import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig, restore
from mirage.config import ActivationCheckpointing
from mirage.kernels.backend import use_backend
from mirage.loss import LossWeights, restoration_loss

SIZES = {"tiny": ModelConfig.tiny(), "small": ModelConfig.small()}


def step(
    model: MIRAGE, device: str, *, bf16: bool = False, recompute: ActivationCheckpointing = "none"
) -> dict[str, Tensor]:
    """Return image, loss and gradients of one training step on fixed images, moved to the CPU."""
    torch.manual_seed(1)
    clean = torch.rand(2, 3, 64, 48)
    degraded = (clean + 0.1 * torch.randn_like(clean)).to(device)
    model.to(device).train()
    model.zero_grad(set_to_none=True)
    model.checkpoint_activations(recompute)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        output = model(degraded, torch.arange(2, device=device))
        loss = restoration_loss(output, clean.to(device), LossWeights())
    loss.total.backward()
    gradients = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    statistics = {name: b.cpu().clone() for name, b in model.named_buffers() if "running" in name}
    return {
        "image": output.image.detach().cpu(),
        "loss": loss.total.detach().cpu(),
        **gradients,
        **statistics,
    }


def made(config: ModelConfig, drop_path: float = 0.1) -> MIRAGE:
    torch.manual_seed(0)
    return MIRAGE(replace(config, drop_path=drop_path))


def whole_gradient(found: dict[str, Tensor]) -> Tensor:
    """Return all gradients but those of the biases before the covariances, which are zero up to rounding."""
    left_out = ("image", "loss", "spd_shallow.reduce.bias", "spd_latent.reduce.bias")
    names = [name for name in sorted(found) if name not in left_out and "running" not in name]
    return torch.cat([found[name].flatten().double() for name in names])


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
class ModelTest(unittest.TestCase):
    def setUp(self) -> None:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False

    def assert_repeats(self, first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
        self.assertEqual([name for name in first if not torch.equal(first[name], second[name])], [])

    def test_a_training_step_in_fp32_is_that_of_the_cpu(self) -> None:
        for name, config in SIZES.items():
            with self.subTest(size=name):
                here, there = step(made(config), "cpu"), step(made(config), "cuda")
                torch.testing.assert_close(there["image"], here["image"], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(there["loss"], here["loss"], rtol=1e-5, atol=1e-6)
                a, b = whole_gradient(there), whole_gradient(here)
                self.assertLess(float((a - b).norm() / b.norm()), 1e-4)

    def test_inference_in_fp32_is_that_of_the_cpu(self) -> None:
        for name, config in SIZES.items():
            with self.subTest(size=name):
                model, degraded = made(config), torch.rand(3, 61, 83)
                here = restore(model, degraded)
                there = restore(model.cuda(), degraded)
                torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)

    def test_the_kernels_give_what_the_reference_gives(self) -> None:
        found = step(made(SIZES["tiny"]), "cuda")
        with use_backend("reference"):
            plain = step(made(SIZES["tiny"]), "cuda")
        a, b = whole_gradient(found), whole_gradient(plain)
        self.assertLess(float((a - b).norm() / b.norm()), 1e-4)

    def test_a_step_repeats_to_the_bit_under_deterministic_algorithms(self) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            for bf16 in (False, True):
                with self.subTest(bf16=bf16):
                    runs = [step(made(SIZES["tiny"]), "cuda", bf16=bf16) for _ in range(2)]
                    self.assert_repeats(*runs)
        finally:
            torch.use_deterministic_algorithms(False)

    def test_a_bf16_step_is_close_to_fp32_and_finite(self) -> None:
        exact, half = step(made(SIZES["tiny"]), "cuda"), step(made(SIZES["tiny"]), "cuda", bf16=True)
        self.assertEqual(half["loss"].dtype, torch.float32)
        torch.testing.assert_close(half["loss"], exact["loss"], rtol=0.05, atol=1e-3)
        a, b = whole_gradient(half), whole_gradient(exact)
        self.assertTrue(bool(torch.isfinite(a).all()))
        self.assertGreater(float(torch.nn.functional.cosine_similarity(a, b, dim=0)), 0.99)

    def test_recomputed_blocks_give_the_same_bits(self) -> None:
        torch.use_deterministic_algorithms(True)
        try:
            plain = step(made(SIZES["tiny"]), "cuda")
            for which in ("full_resolution", "all"):
                with self.subTest(recompute=which):
                    self.assert_repeats(plain, step(made(SIZES["tiny"]), "cuda", recompute=which))
        finally:
            torch.use_deterministic_algorithms(False)

    def test_compiled_blocks_give_the_same_step(self) -> None:
        from mirage.blocks import Block

        torch._dynamo.config.recompile_limit = 64
        plain = step(made(SIZES["tiny"], drop_path=0.0), "cuda")
        model = made(SIZES["tiny"], drop_path=0.0)
        for module in model.modules():
            if isinstance(module, Block):
                module.compile(dynamic=False)
        found = step(model, "cuda")
        torch.testing.assert_close(found["image"], plain["image"], rtol=1e-5, atol=1e-5)
        a, b = whole_gradient(found), whole_gradient(plain)
        self.assertLess(float((a - b).norm() / b.norm()), 1e-4)

    def test_strips_give_the_whole_image(self) -> None:
        model, degraded = made(SIZES["tiny"]).cuda(), torch.rand(3, 200, 120)
        whole, strips = restore(model, degraded, "whole"), restore(model, degraded, "strips")
        torch.testing.assert_close(strips, whole, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
