"""The regions in C, where there is a compiler: as exact as PyTorch's own fp32."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mirage.kernels import reference
from mirage.kernels.cpu import fused, fused_c, layout, library

compiled = pytest.mark.skipif(library.library() is None, reason="needs a C compiler")

SIZES = [
    (2, 1, 1, 2),
    (1, 1, 5, 6),
    (2, 5, 7, 8),
    (1, 30, 4, 20),
    (3, 6, 19, 35),
    (1, 16, 16, 48),
    (2, 17, 131, 24),
]


def weight(*size: int) -> Tensor:
    return torch.randn(size) / size[-1] ** 0.5


def within(*size: int) -> Tensor:
    """A map that is a part of a wider one, as the mixer passes them."""
    *rest, channels = size
    return torch.randn(*rest, 3 * channels)[..., channels : 2 * channels]


def feed_forward(*size: int) -> list[Any]:
    c, n = size[3], 2 * size[3] - 1
    taps = torch.randn(2 * n, 3, 3) / 3
    return [torch.randn(size), 1 + weight(c), weight(c), weight(2 * n, c), taps, weight(c, n)]


def gated_unit(*size: int) -> list[Any]:
    c, n = size[3], size[3] * 8 // 3
    kernels = torch.randn(size[0], c, 7, 7) / 7
    return [within(*size), weight(2 * n, c), weight(2 * n), kernels, weight(c, n)]


def attention_input(*size: int) -> list[Any]:
    c = size[3]
    return [within(*size), weight(3 * c, c), torch.randn(3 * c, 3, 3) / 3]


def channel_mlp(*size: int) -> list[Any]:
    c = size[3]
    return [within(*size), weight(2 * c, c), weight(c, 2 * c)]


def fused_product(*size: int, count: int = 3) -> list[Any]:
    return [
        [torch.randn(size) for _ in range(count)],
        torch.randn(count),
        weight(size[3] + 3, count * size[3]),
    ]


ARGUMENTS: dict[str, Callable[..., list[Any]]] = {
    "feed_forward": feed_forward,
    "attention_input": attention_input,
    "gated_unit": gated_unit,
    "channel_mlp": channel_mlp,
    "fused_product": fused_product,
    "fused_product of two": lambda *size: fused_product(*size, count=2),
}


def flat(values: Any) -> list[Tensor]:
    nested = [flat(value) if isinstance(value, list | tuple) else [value] for value in values]
    return [tensor for group in nested for tensor in group]


def of(module: Any, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(module, name.split()[0])
    return found


def run(function: Callable[..., Any], inputs: list[Any], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and the gradients of all inputs, for a random gradient of each output."""

    def leaf(x: Any) -> Any:
        return [leaf(y) for y in x] if isinstance(x, list) else x.detach().to(dtype).requires_grad_()

    leaves = [leaf(x) for x in inputs]
    found = function(*leaves)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    generator = torch.Generator().manual_seed(1)
    above = [torch.randn(out.shape, generator=generator).to(dtype) for out in outputs]
    torch.autograd.backward(outputs, above)
    return [*(out.detach() for out in outputs), *(x.grad for x in flat(leaves))]


def error(found: Tensor, expected: Tensor) -> float:
    """Relative to the whole map, or to 1 where that is larger: in GELU's tail fp32 holds absolute digits only."""
    return float((found - expected).norm() / expected.norm().clamp_min(1))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@compiled
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_they_equal_float64_to_fp32_rounding(name: str, size: tuple[int, ...], count: int) -> None:
    torch.manual_seed(0)
    inputs = ARGUMENTS[name](*size)
    expected = run(of(reference, name), inputs, torch.float64)
    with threads(count):
        found = run(of(fused, name), inputs, torch.float32)
    for ours, exact in zip(found, expected, strict=True):
        assert ours.shape == exact.shape
        assert error(ours, exact) < 3e-6


@compiled
@pytest.mark.parametrize("name", ARGUMENTS)
def test_they_are_what_runs_and_the_same_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    really = library.call
    monkeypatch.setattr(
        library, "call", lambda which, *rest, **more: (ran.append(which), really(which, *rest, **more))
    )
    inputs = ARGUMENTS[name](2, 9, 20, 24)
    with threads(4):
        first, second = (run(of(fused, name), inputs, torch.float32) for _ in range(2))
    assert set(ran) == {name.split()[0], f"{name.split()[0]}_backward"}
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@compiled
@pytest.mark.parametrize("name", ["channel_mlp", "fused_product"])
@pytest.mark.parametrize(
    "odd", [torch.ones(16, 16, 1, 1).permute(0, 2, 3, 1), torch.ones(1, 1, 64, 16).transpose(1, 2)]
)
def test_a_map_of_one_column_may_have_any_stride_between_its_columns(name: str, odd: Tensor) -> None:
    odd.normal_()
    assert odd.is_contiguous()
    assert odd.stride(2) != odd.shape[3]
    inputs = ARGUMENTS[name](*odd.shape)
    inputs[0] = odd if name == "channel_mlp" else [odd, *inputs[0][1:]]
    with threads(2):
        found = of(fused, name)(*inputs)
    assert error(found, of(reference, name)(*inputs)) < 3e-6


@pytest.mark.parametrize("name", [name for name in ARGUMENTS if name != "gated_unit"])  # PyTorch refuses that
def test_no_images_give_none(name: str) -> None:
    inputs = ARGUMENTS[name](0, 4, 5, 6)
    found = of(fused, name)(*inputs)
    expected = of(reference, name)(*inputs)
    for ours, exact in zip(flat([found]), flat([expected]), strict=True):
        assert ours.shape == exact.shape


@compiled
@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_all_that_they_return_is_contiguous_as_torch_compile_was_told(name: str, channels: int) -> None:
    inputs = ARGUMENTS[name](2, 9, 20, channels)
    found = of(fused, name)(*inputs)
    outputs = [found] if isinstance(found, Tensor) else list(found)
    backward = of(fused, f"{name.split()[0]}_backward")
    gradients = flat(backward(*(torch.randn_like(out) for out in outputs), *inputs))
    assert all(x.is_contiguous() for x in (*outputs, *gradients))


@compiled
@pytest.mark.parametrize("value", [-torch.inf, -90.0, -20.0, -5.0, -1e-3, 0.0, 1e-30, 5.0, 90.0, torch.nan])
def test_gelu_is_torchs_everywhere(value: float) -> None:
    """The norm of two channels is -1 and 1; the one hidden value is `value` and its gate is 1."""
    x, one, zero = torch.tensor([[[[-1.0, 1.0]]]]), torch.ones(2), torch.zeros(2)
    expand, taps = torch.tensor([[0.0, 1.0], [0.0, value]]), torch.zeros(2, 3, 3)
    taps[:, 1, 1] = 1
    inputs = x, one, zero, expand, taps, torch.ones(2, 1)
    found, plain = fused_c.feed_forward(*inputs), reference.feed_forward(*inputs)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=3e-7, equal_nan=True)


@pytest.mark.parametrize("parts", [1, 2])
def test_planes_hold_all_channels_and_zeros(parts: int) -> None:
    matrix, whole = torch.randn(parts * 21, 5), layout.up(21)
    wide = layout.filled(matrix, parts)
    assert torch.equal(layout.unfilled(wide, 21, parts), matrix)
    assert wide.shape == (parts * whole, 5)
    assert wide.view(parts, whole, 5)[:, 21:].eq(0).all()
    assert torch.equal(layout.from_planes(layout.planes(wide.mT)), wide.mT)


def library_in(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a new process finds, with its cache in `folder`."""
    script = "from mirage.kernels.cpu import library; print(library.library() is not None)"
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
