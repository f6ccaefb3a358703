"""Training works with little more than torch, NumPy and safetensors installed."""

import subprocess
import sys
import unittest
from pathlib import Path

import numpy as np
import torch

from mirage import MIRAGE, ModelConfig
from mirage.loss import LossWeights, restoration_loss
from shards.mixture import Mixture, MixtureEntry
from shards.order import SampleOrder

ABSENT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in %r:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
"""
"""Code that blocks the import of packages that a GPU machine may lack."""

LACKING = {
    *(
        "ray",
        "pydantic",
        "mlflow",
        "boto3",
        "webdataset",
        "imagecodecs",
        "deepspeed",
        "typer",
        "rich",
        "yaml",
    ),
    *("optuna", "torchvision", "timm", "lightning"),
}

NEEDED = (
    *(
        "mirage",
        "mirage.loss",
        "mirage.cuda_graphs",
        "shards.order",
        "shards.augment",
        "shards.noise",
        "shards.photographs",
    ),
    *("orchestrator.bench.__main__", "orchestrator.bench.model", "orchestrator.bench.parity"),
)


class TrainingTest(unittest.TestCase):
    def test_training_and_benchmarks_import_without_optional_packages(self) -> None:
        code = (ABSENT % LACKING) + "".join(f"import {name}\n" for name in NEEDED)
        root = Path(__file__).parents[2]
        run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr)

    @unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
    def test_steps_in_the_order_of_a_run_lower_the_loss(self) -> None:
        torch.manual_seed(0)
        photographs = torch.rand(8, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3)
        order = SampleOrder(Mixture((MixtureEntry("noise", 8, 4),)), seed=0, global_batch_size=4)
        model = MIRAGE(ModelConfig.tiny()).cuda()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True)
        losses = []
        for start in range(0, 160, 4):
            positions = np.arange(start, start + 4)
            clean = photographs[order.draw(positions).sample].cuda()
            degraded = clean + 0.1 * torch.randn_like(clean)
            with torch.autocast("cuda", torch.bfloat16):
                output = model(degraded, torch.from_numpy(positions).cuda())
                loss = restoration_loss(output, clean, LossWeights())
            loss.total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(float(loss.total))
        self.assertLess(sum(losses[-5:]), 0.8 * sum(losses[:5]))


if __name__ == "__main__":
    unittest.main()
