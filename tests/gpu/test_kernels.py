"""Each Triton kernel on the GPU beside its plain form in float64."""

import sys
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import FORMS, Form, error, leaves, obeys, repeats, results

SIZES = [(1, 1, 1, 1), (2, 33, 48, 10), (1, 7, 129, 85), (3, 40, 31, 21), (1, 8, 8, 170)]
"""(b, h, w, c): one pixel, odd sides, channels of MIRAGE-S, of the gates, and of more than two blocks."""

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Relative to the largest number: rounding of sums, and of what passes from one kernel to the next."""


def compiled(kernel: Form) -> Form:
    """The kernel inside a compiled function."""

    def run(*inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        return kernel(*inputs)

    return torch.compile(run, dynamic=False)


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
class KernelsTest(unittest.TestCase):
    def test_values_and_gradients_are_those_of_the_plain_form(self) -> None:
        for name in FORMS:
            for dtype, bound in BOUNDS.items():
                for size in SIZES:
                    with self.subTest(kernel=name, dtype=dtype, size=size):
                        self.assertLess(error(name, size, dtype, "cuda"), bound)

    def test_two_runs_give_the_same_bits(self) -> None:
        for name in FORMS:
            with self.subTest(kernel=name):
                self.assertTrue(repeats(name, (4, 128, 128, 24), "cuda"))

    def test_operators_obey_the_rules_of_torch_library(self) -> None:
        for name in FORMS:
            with self.subTest(kernel=name):
                self.assertTrue(obeys(name, "cuda"))

    def test_offsets_beyond_two_to_the_31_are_reached(self) -> None:
        if torch.cuda.mem_get_info()[0] < 24 * 2**30:
            self.skipTest("needs 24 GiB of free GPU memory")
        kernel, plain = FORMS["depthwise"]
        x = torch.zeros(1, 33000, 33000, 2, device="cuda", dtype=torch.bfloat16)  # 2.2e9 numbers
        x[0, -3:] = 1
        taps = torch.randn(2, 3, 3, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            found, wanted = kernel(x, taps), plain(x[:, -4:], taps)
        assert isinstance(found, torch.Tensor)
        assert isinstance(wanted, torch.Tensor)
        torch.testing.assert_close(found[:, -3:], wanted[:, -3:], rtol=0.02, atol=0.05)

    def test_a_compiled_operator_gives_the_same_numbers(self) -> None:
        for name, (kernel, _) in FORMS.items():
            with self.subTest(kernel=name):
                plain = results(kernel, leaves(name, SIZES[1], torch.float32, "cuda"))
                found = results(compiled(kernel), leaves(name, SIZES[1], torch.float32, "cuda"))
                for a, b in zip(found, plain, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    unittest.main()
