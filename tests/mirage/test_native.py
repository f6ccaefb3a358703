"""The compiled middle of the feed-forward network, where there is a compiler: as exact as PyTorch's own fp32."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mirage.kernels import gated, native, reference

SIZES = [(2, 1, 1, 2), (1, 1, 5, 6), (2, 5, 7, 8), (1, 9, 4, 40), (2, 6, 5, 70), (1, 16, 16, 96)]

compiled = pytest.mark.skipif(native.library() is None, reason="needs a C compiler")


def maps(size: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    *rest, channels = size
    return 3 * torch.randn(size), torch.randn(*rest, channels // 2), torch.randn(channels, 3, 3)


def exact(hidden: Tensor, grad: Tensor, taps: Tensor) -> list[Tensor]:
    """Product, gradient of hidden, gradient of taps, in float64."""
    hidden, taps = hidden.double().requires_grad_(), taps.double().requires_grad_()
    product = reference.gated_depthwise(hidden, taps)
    product.backward(grad.double())
    assert hidden.grad is not None
    assert taps.grad is not None
    return [product.detach(), hidden.grad, taps.grad]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the whole map, or to 1 where that is larger: in GELU's tail fp32 holds absolute digits only."""
    return float((found - expected).norm() / expected.norm().clamp_min(1))


@compiled
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_it_equals_float64_to_fp32_rounding(size: tuple[int, ...], threads: int) -> None:
    hidden, grad, taps = maps(size)
    product, to_hidden, to_taps = exact(hidden, grad, taps)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = gated.forward_over(hidden.clone(), taps)
        again, grad_hidden, grad_taps = gated.backward_over(hidden.clone(), grad.clone(), taps)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, again)
    assert error(found, product) < 1e-6
    assert error(grad_hidden, to_hidden) < 3e-6
    assert error(grad_taps, to_taps) < 1e-6


@compiled
@pytest.mark.parametrize("value", [-torch.inf, -90.0, -20.0, -5.0, -1e-3, 0.0, 1e-30, 5.0, 90.0, torch.nan])
def test_gelu_is_torchs_everywhere(value: float) -> None:
    hidden, taps = torch.full((1, 1, 1, 4), value), torch.zeros(4, 3, 3)
    hidden[..., :2] = 1.0
    taps[:, 1, 1] = 1
    plain = reference.gated_depthwise(hidden, taps)
    torch.testing.assert_close(gated.forward_over(hidden, taps), plain, rtol=1e-6, atol=3e-7, equal_nan=True)


def test_the_plain_form_is_the_same_function() -> None:
    hidden, grad, taps = (x.double() for x in maps((2, 5, 7, 8)))
    found = [
        gated.forward_over(hidden.clone(), taps),
        *gated.backward_over(hidden.clone(), grad.clone(), taps),
    ]
    product, to_hidden, to_taps = exact(hidden, grad, taps)
    for ours, expected in zip(found, (product, product, to_hidden, to_taps), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def library_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a new process finds, with its cache in `folder`."""
    script = "from mirage.kernels import native; print(native.library() is not None)"
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "XDG_CACHE_HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def test_without_a_compiler_or_when_told_so_it_does_not_exist(tmp_path: Path) -> None:
    hidden = library_in(tmp_path, PATH=str(tmp_path), CC="cc")
    assert (hidden.stdout, hidden.stderr) == ("False\n", "")
    off = library_in(tmp_path, MIRAGE_NATIVE="0")
    assert (off.stdout, off.stderr) == ("False\n", "")
    assert list(tmp_path.iterdir()) == []


@compiled
def test_a_compiler_that_fails_is_named_once_and_leaves_nothing(tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    failing.chmod(0o755)
    done = library_in(tmp_path / "cache", CC=str(failing))
    assert done.stdout == "False\n"
    assert done.stderr.count("no such processor") == 1
    assert list((tmp_path / "cache" / "mirage").iterdir()) == []
