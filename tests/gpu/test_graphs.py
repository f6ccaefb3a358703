"""CUDA graphs replay what the model computes."""

import unittest

import torch

from mirage import MIRAGE, ModelConfig, restore
from mirage.cuda_graphs import GraphedModel


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
class GraphsTest(unittest.TestCase):
    def setUp(self) -> None:
        torch.manual_seed(0)
        self.model = MIRAGE(ModelConfig.tiny()).cuda().eval()
        self.graphed = GraphedModel(self.model, shapes=2)

    def expected(self, x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            image: torch.Tensor = self.model(x).image
            return image

    def test_outputs_equal_the_model_for_each_shape_and_for_new_images(self) -> None:
        for size in ((1, 3, 64, 64), (2, 3, 48, 64), (1, 3, 64, 64), (1, 3, 32, 40)):
            for _ in range(2):
                x = torch.rand(size, device="cuda")
                torch.testing.assert_close(self.graphed(x), self.expected(x), rtol=1e-6, atol=1e-6)
        self.assertEqual(len(self.graphed.recorded), 2)

    def test_the_next_call_does_not_overwrite_a_result(self) -> None:
        x, y = (torch.rand(1, 3, 64, 64, device="cuda") for _ in range(2))
        first = self.graphed(x)
        kept = first.clone()
        self.graphed(y)
        self.assertTrue(torch.equal(first, kept))

    def test_autocast_gets_a_graph_of_its_own(self) -> None:
        x = torch.rand(1, 3, 64, 64, device="cuda")
        full = self.graphed(x)
        with torch.autocast("cuda", torch.bfloat16):
            half, expected = self.graphed(x), self.expected(x)
        torch.testing.assert_close(half, expected, rtol=1e-3, atol=1e-3)
        self.assertFalse(torch.equal(full, half))
        self.assertEqual(len(self.graphed.recorded), 2)

    def test_weights_that_change_in_place_are_seen(self) -> None:
        x = torch.rand(1, 3, 64, 64, device="cuda")
        before = self.graphed(x)
        with torch.no_grad():
            for p in self.model.parameters():
                p.mul_(1.01)
        after = self.graphed(x)
        self.assertFalse(torch.equal(before, after))
        torch.testing.assert_close(after, self.expected(x), rtol=1e-6, atol=1e-6)

    def test_restore_through_graphs_is_restore(self) -> None:
        x = torch.rand(3, 61, 83)
        torch.testing.assert_close(
            restore(self.model, x, graphs=self.graphed), restore(self.model, x), rtol=1e-6, atol=1e-6
        )


if __name__ == "__main__":
    unittest.main()
