"""A training step that is replayed from a CUDA graph equals the eager step to the bit."""

import tempfile
import unittest

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mirage import MIRAGE, ModelConfig
from mirage.collective import BatchShare
from mirage.cuda_graphs import CudaRecorder, side_stream
from mirage.loss import LossWeights, restoration_loss

CONFIG = ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 2, 2), drop_path=0.3)
WARM_UP = 11


class Trainer:
    """Model, optimiser and inputs of steps, which are eager or recorded after the warm-up."""

    def __init__(self, precision: torch.dtype | None, micro_batches: int, ddp: bool, recorded: bool) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.precision, self.micro_batches, self.recorded = precision, micro_batches, recorded
        self.model = MIRAGE(CONFIG).to(self.device)
        self.called: torch.nn.Module = self.model
        if ddp:
            with torch.cuda.stream(side_stream(self.device)):
                self.called = DistributedDataParallel(
                    self.model,
                    device_ids=[self.device.index],
                    broadcast_buffers=False,
                    gradient_as_bucket_view=True,
                )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True, capturable=True)
        for group in self.optimizer.param_groups:
            group["lr"] = torch.zeros((), device=self.device)
        shape = (micro_batches, 2, 3, 32, 32)
        self.degraded, self.clean = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.keys = torch.zeros(micro_batches, 2, dtype=torch.int64, device=self.device)

    def compute(self) -> Tensor:
        losses = []
        for i in range(self.micro_batches):
            kind = self.precision or torch.bfloat16
            with torch.autocast("cuda", dtype=kind, enabled=self.precision is not None):
                output = self.called(self.degraded[i], self.keys[i])
            loss = restoration_loss(output, self.clean[i], LossWeights(), BatchShare(0, 2)).total
            (loss / self.micro_batches).backward()
            losses.append(loss.detach())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return torch.stack([*losses, norm])

    def train(self, steps: int) -> list[Tensor]:
        recorder, recording = CudaRecorder(self.device), None
        generator = torch.Generator().manual_seed(1)
        found = []
        for step in range(steps):
            clean = torch.rand(self.clean.shape, generator=generator)
            self.clean.copy_(clean)
            self.degraded.copy_(clean + 0.1 * torch.randn(clean.shape, generator=generator))
            if step == steps - 2:
                self.degraded[0, 0, 0, 0, 0] = torch.inf  # skipped
            self.keys.copy_(10 * step + torch.arange(2).expand(self.micro_batches, 2))
            for group in self.optimizer.param_groups:
                group["lr"].fill_(1e-3 / (1 + step))
            if self.recorded and step >= WARM_UP:
                if recording is None:
                    if recorder.obstacle():
                        raise unittest.SkipTest("too little memory is free")
                    recording = recorder.record(self.compute)
                recording.replay()
                found.append(recording.result.clone())
            else:
                found.append(recorder.eagerly(self.compute))
        return found


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
class StepGraphsTest(unittest.TestCase):
    def check(self, precision: torch.dtype | None, micro_batches: int, ddp: bool) -> None:
        losses, weights = [], []
        for recorded in (False, True):
            trainer = Trainer(precision, micro_batches, ddp, recorded)
            losses.append(trainer.train(WARM_UP + 6))
            weights.append([tensor.clone() for tensor in trainer.model.state_dict().values()])
        for eager, replayed in zip(*losses, strict=True):
            self.assertTrue(torch.equal(eager.nan_to_num(7), replayed.nan_to_num(7)))
        self.assertTrue(all(torch.equal(a, b) for a, b in zip(*weights, strict=True)))

    def test_replayed_steps_equal_eager_ones(self) -> None:
        for precision in (None, torch.bfloat16):
            self.check(precision, 1, ddp=False)

    def test_replayed_steps_with_accumulation_equal_eager_ones(self) -> None:
        self.check(torch.bfloat16, 2, ddp=False)

    def test_replayed_steps_of_ddp_equal_eager_ones(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            dist.init_process_group("nccl", init_method=f"file://{folder}/meet", rank=0, world_size=1)
            try:
                self.check(None, 1, ddp=True)
            finally:
                dist.destroy_process_group()


if __name__ == "__main__":
    unittest.main()
