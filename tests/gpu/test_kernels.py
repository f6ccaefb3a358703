"""Each operator of the Triton backend on the GPU compared with the specification in float64."""

import sys
import unittest
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from kernel_cases import (
    TRITON,
    Function,
    check_triton_operator,
    find,
    inputs,
    largest_error,
    leaves,
    pairs,
    repeats,
    results,
)

from mirage.kernels import reference, triton

SIZES = [(1, 1, 1, 1), (2, 33, 48, 10), (1, 7, 129, 85), (3, 40, 31, 21), (1, 8, 8, 170)]
"""(b, h, w, c): one pixel, odd sides, channels of MIRAGE-S and of the gates, and more channels than two blocks."""

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
"""Relative to the largest number: rounding of sums, and of what passes from one kernel to the next."""


def compiled(function: Function) -> Function:
    """Return the operator inside a compiled function."""

    def run(*tensors: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        found: torch.Tensor | tuple[torch.Tensor, ...] = function(*tensors)
        return found

    return torch.compile(run, dynamic=False)


@unittest.skipUnless(torch.cuda.is_available(), "needs a CUDA GPU: torch sees none here")
class KernelsTest(unittest.TestCase):
    def test_values_and_gradients_are_those_of_the_specification(self) -> None:
        for name in TRITON:
            for dtype, bound in BOUNDS.items():
                for size in SIZES:
                    with self.subTest(operator=name, dtype=dtype, size=size):
                        error = max(largest_error(a, b) for a, b in pairs(triton, name, size, dtype, "cuda"))
                        self.assertLess(error, bound)

    def test_two_runs_give_the_same_bits(self) -> None:
        for name in TRITON:
            with self.subTest(operator=name):
                self.assertTrue(repeats(triton, name, (4, 128, 128, 24), "cuda"))

    def test_operators_obey_the_rules_of_torch_library(self) -> None:
        for name in (name for name in TRITON if " " not in name):
            with self.subTest(operator=name):
                check_triton_operator(name, "cuda")

    def test_offsets_beyond_two_to_the_31_are_reached(self) -> None:
        if torch.cuda.mem_get_info()[0] < 24 * 2**30:
            self.skipTest("needs 24 GiB of free GPU memory")
        x = torch.zeros(1, 33000, 33000, 2, device="cuda", dtype=torch.bfloat16)  # 2.2e9 numbers
        x[0, -3:] = 1
        filters = torch.randn(2, 3, 3, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            found, wanted = triton.depthwise(x, filters), reference.depthwise(x[:, -4:], filters)
        torch.testing.assert_close(found[:, -3:], wanted[:, -3:], rtol=0.02, atol=0.05)

    def test_a_compiled_operator_gives_the_same_numbers(self) -> None:
        for name in (name for name in TRITON if " " not in name):
            with self.subTest(operator=name):
                given = inputs(name, SIZES[1])
                plain = results(find(triton, name), leaves(given, device="cuda"))
                found = results(compiled(find(triton, name)), leaves(given, device="cuda"))
                for a, b in zip([*found[0], *found[1]], [*plain[0], *plain[1]], strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


if __name__ == "__main__":
    unittest.main()
