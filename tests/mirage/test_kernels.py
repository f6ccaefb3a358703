"""Every operator of every backend compared with the specification: values, gradients, bits, memory, layout.

The Triton kernels run through Triton's interpreter, or on the GPU where there is one; tests/gpu has larger sizes.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils._pytree import tree_structure, tree_unflatten

import mirage
from mirage import ModelConfig, kernels
from mirage.blocks import Block
from mirage.kernels import cpu, reference, triton
from mirage.kernels.backend import select, use_backend
from mirage.kernels.cpu import fused_c, layout, library
from tests.gpu.kernel_cases import (
    OPERATORS,
    TRITON,
    check_operator,
    check_triton_operator,
    find,
    flat,
    in_pairs,
    inputs,
    largest_error,
    leaves,
    pairs,
    relative_error,
    repeats,
    results,
)
from tests.mirage.interpreter import HAS_TRITON

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# A skip for either reason fails CI, since tests/conftest.py does not list it: CI has Triton and a compiler.
needs_triton = pytest.mark.skipif(  # fails CI, since conftest.py does not list the reason
    not HAS_TRITON, reason="Triton is not installed: it exists for Linux only"
)
needs_c = pytest.mark.skipif(library.library() is None, reason="needs a C compiler")  # fails CI too

FUSED = [name for name in OPERATORS if hasattr(fused_c, name.split()[0]) and "with" not in name]
CONVOLUTIONS = ["depthwise", "dynamic_depthwise", "moments"]

C_SIZES = [
    *((2, 1, 1, 2), (1, 1, 5, 6), (2, 5, 7, 8), (1, 30, 4, 20)),
    *((3, 6, 19, 35), (1, 16, 16, 48), (1, 17, 131, 24)),
]
"""(b, h, w, c): single pixels and columns, channels below, at and above whole vectors, rows for several threads."""

TRITON_SIZES = [(1, 1, 1, 1), (2, 2, 2, 10), (1, 5, 1, 21), (1, 1, 5, 85)]
"""(b, h, w, c): one pixel, two images, more rows than a strip, more than one block of channels."""

FEWER_SIZES = {
    **dict.fromkeys(["dynamic_depthwise"], TRITON_SIZES[:2]),
    **{name: TRITON_SIZES[1:2] for name in TRITON if name.startswith(("feed", "gated", "channel", "fusion"))},
}
"""Fewer sizes for operators that take the same paths at the other sizes: the interpreter is slow."""

USES_DOT = ("gram", "attention", "feed_forward", "gated_convolution", "channel_mlp", "fusion_linear")
"""Operators with a matrix product of Triton, whose interpreter treats bf16 as integers there."""

BRANCHES = ("layer_norm", "attention", "gated_convolution", "channel_mlp", "fusion_linear", "feed_forward")
"""Operators that cast their weights to the dtype of the maps."""


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink the part of a map that one interpreted program processes, so that small maps take several programs."""
    if HAS_TRITON and DEVICE == "cpu":
        from mirage.kernels.triton import convolution, matrices, norm_linear, reductions

        monkeypatch.setattr(convolution, "STRIP", 4)
        monkeypatch.setattr(matrices, "TILES", 1)
        monkeypatch.setattr(norm_linear, "CHUNK", 4)
        monkeypatch.setattr(reductions, "CHUNK", 32)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Values and gradients


@needs_c
@pytest.mark.parametrize("size", C_SIZES)
@pytest.mark.parametrize("name", FUSED)
def test_c_equals_the_specification_to_fp32_rounding(name: str, size: tuple[int, int, int, int]) -> None:
    exact = flat(results(find(reference, name), leaves(inputs(name, size), torch.float64)))
    for count in (1, 2, 5):
        with threads(count):
            found = flat(results(find(cpu, name), leaves(inputs(name, size))))
        for ours, expected in zip(found, exact, strict=True):
            assert ours.shape == expected.shape
            assert relative_error(ours, expected) < 3e-6


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 4, 3), (3, 9, 8, 2)])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_cpu_backend_equals_the_specification_in_float64(
    name: str, size: tuple[int, int, int, int]
) -> None:
    for found, exact in pairs(cpu, name, size, torch.float64):
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10)


@needs_triton
@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name in TRITON for size in FEWER_SIZES.get(name, TRITON_SIZES)]
)
def test_triton_equals_the_specification_in_fp32(name: str, size: tuple[int, int, int, int]) -> None:
    for found, exact in pairs(triton, name, size, torch.float32, DEVICE):
        assert largest_error(found, exact) < 1e-5


@needs_triton
@pytest.mark.parametrize("size", [*TRITON_SIZES[:3], (2, 3, 17, 21)])
@pytest.mark.parametrize("name", ["attention", "gated_convolution in eval mode", "fusion_linear with mlp"])
def test_the_kernels_that_keep_nothing_for_a_gradient_equal_the_specification(
    name: str, size: tuple[int, int, int, int]
) -> None:
    given = inputs(name, size)
    with torch.no_grad():
        exact = find(reference, name)(*leaves(given, torch.float64, DEVICE))
        found = find(triton, name)(*leaves(given, device=DEVICE))
    assert largest_error(found, exact) < 1e-5


@needs_triton
@pytest.mark.parametrize("name", ["gated_convolution", "gated_convolution in eval mode"])
def test_filters_of_many_channels_come_from_products_of_pytorch(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirage.kernels.triton import convolution_branch

    monkeypatch.setattr(convolution_branch, "MAX_CHANNELS", 2)
    for found, exact in pairs(triton, name, (2, 3, 4, 5), torch.float32, DEVICE):
        assert largest_error(found, exact) < 1e-5


@needs_triton
@pytest.mark.parametrize(
    "name", ["attention", "channel_mlp", "feed_forward with shortcut", "fusion_linear", "gated_convolution"]
)
def test_matrices_that_do_not_fit_into_a_program_take_other_kernels(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirage.kernels.triton import attention_branch, feed_forward_branch, pointwise

    for module in (attention_branch, feed_forward_branch, pointwise):
        monkeypatch.setattr(module, "fits", lambda _: False)
    for found, exact in pairs(triton, name, (2, 2, 2, 10), torch.float32, DEVICE):
        assert largest_error(found, exact) < 1e-5


@needs_triton
@pytest.mark.parametrize("name", ["attention", "feed_forward with shortcut"])
def test_parts_of_a_gradient_from_more_than_64_hidden_channels_are_added(name: str) -> None:
    for found, exact in pairs(triton, name, (1, 2, 2, 23), torch.float32, DEVICE):
        assert largest_error(found, exact) < 1e-5


@needs_triton
@pytest.mark.parametrize("name", TRITON)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
def test_triton_adds_up_half_precision_in_fp32(name: str, dtype: torch.dtype, bound: float) -> None:
    # Two units in the last place: maps between kernels are rounded too, and the interpreter may truncate where a GPU
    # rounds.
    if dtype == torch.bfloat16 and name.split()[0] in USES_DOT and DEVICE == "cpu":
        return
    for found, exact in pairs(triton, name, (1, 1, 2, 10), dtype, DEVICE):
        assert largest_error(found, exact) < bound


@needs_triton
@pytest.mark.parametrize("name", [name for name in TRITON if name.split()[0] in BRANCHES])
def test_triton_takes_maps_in_half_precision_and_weights_in_fp32(name: str) -> None:
    given = leaves(inputs(name, (2, 1, 3, 10)))
    maps = [x for x in flat(given) if x.dim() == 4 and x.shape[:3] == (2, 1, 3)]
    low = {id(x): leaves(x, torch.float16) for x in maps}

    def lowered(values: Any) -> Any:
        return [lowered(x) for x in values] if isinstance(values, list) else low.get(id(values), values)

    for found, exact in in_pairs(find(triton, name), find(reference, name), lowered(given)):
        assert largest_error(found, exact) < 2**-8
        assert found.dtype == (torch.float16 if found.shape[:3] == (2, 1, 3) else torch.float32)


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_are_those_of_finite_differences(backend: Any, name: str) -> None:
    given = leaves(inputs(name, (2, 3, 4, 2)), torch.float64)
    function, structure = find(backend, name), tree_structure(given)
    assert gradcheck(lambda *x: function(*tree_unflatten(x, structure)), flat(given), fast_mode=True)


@needs_triton
def test_a_whole_block_in_training_is_the_same_on_triton() -> None:
    found = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        block = Block(12, 2, ModelConfig(dim=12)).to(DEVICE)
        x = torch.randn(2, 2, 3, 12).to(DEVICE).requires_grad_()
        with use_backend(backend):  # type: ignore[arg-type]
            out = block(x, torch.tensor([1.0, 0.5], device=DEVICE))
            out.square().sum().backward()
        gradients = [p.grad for p in block.parameters() if p.grad is not None]
        found.append([out.detach(), *block.buffers(), x.grad, *gradients])
    assert len(found[0]) > 20
    for ours, plain in zip(*found, strict=True):
        assert largest_error(ours.float(), plain.float()) < 1e-5


@needs_triton
@pytest.mark.parametrize("ratios", [(1, 1, 1), (1, 2, 1), (1, 1, 0)])
@torch.no_grad()
def test_a_whole_block_in_inference_is_the_same_on_triton(ratios: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    block = Block(12, 1, ModelConfig(dim=12, branch_ratios=ratios)).to(DEVICE).eval()
    for parameter in block.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    block.mixer.convolution.norm.running_mean.normal_()  # type: ignore[union-attr]
    x = torch.randn(2, 5, 3, 12).to(DEVICE)
    found = []
    for backend in ("triton", "reference"):
        with use_backend(backend):  # type: ignore[arg-type]
            found.append(block(x, None))
    assert largest_error(*found) < 1e-5


# Reproducibility and the rules of torch


@needs_c
@pytest.mark.parametrize("name", FUSED)
def test_c_is_what_runs_in_fp32_and_gives_the_same_bits_twice(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    really = library.call
    monkeypatch.setattr(
        library, "call", lambda which, *rest, **more: (called.append(which), really(which, *rest, **more))
    )
    with threads(4):
        assert repeats(cpu, name, (2, 9, 20, 24))
    assert set(called) == {name.split()[0], f"{name.split()[0]}_backward"}


@needs_triton  # tests/gpu checks that two runs give the same bits: the interpreter runs programs one by one
def test_no_triton_kernel_adds_atomically() -> None:
    sources = sorted(Path(mirage.__file__).with_name("kernels").glob("triton/*.py"))
    assert len(sources) >= 4
    for source in sources:
        assert "tl.atomic" not in source.read_text(), source.name


@pytest.mark.parametrize("name", [*CONVOLUTIONS, *FUSED])
def test_cpu_operators_obey_the_rules_of_torch_library(name: str) -> None:
    operator = getattr(torch.ops.mirage, name.split()[0]).default
    check_operator(operator, leaves(inputs(name, (2, 3, 4, 2))))


@needs_triton
@pytest.mark.parametrize("name", [name for name in TRITON if " " not in name and name != "dynamic_depthwise"])
def test_triton_operators_obey_the_rules_of_torch_library(name: str) -> None:
    check_triton_operator(name, DEVICE)


@needs_c
@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize("name", FUSED)
def test_c_returns_contiguous_tensors_as_the_fake_implementations_declare(name: str, channels: int) -> None:
    given = inputs(name, (2, 9, 20, channels))
    outputs = flat([find(cpu, name)(*given)])
    backward = getattr(fused_c, f"{name.split()[0]}_backward")
    gradients = flat(backward(*(torch.randn_like(out) for out in outputs), *given))
    assert all(x.is_contiguous() for x in (*outputs, *gradients))


@pytest.mark.parametrize("name", ["depthwise", "dynamic_depthwise"])
def test_cpu_convolutions_stay_channels_last(name: str) -> None:
    assert find(cpu, name)(*inputs(name, (2, 5, 4, 3))).is_contiguous()


# Memory, autocast, special values


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", FUSED)
def test_the_cpu_backend_keeps_nothing_but_the_inputs(name: str, dtype: torch.dtype) -> None:
    given = leaves(inputs(name, (2, 3, 4, 6)), dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        find(cpu, name)(*given)
    assert kept
    addresses = {tensor.untyped_storage().data_ptr() for tensor in flat(given)}
    assert {x.untyped_storage().data_ptr() for x in kept if x.numel() > 3} <= addresses  # but three scales


@pytest.mark.parametrize("name", FUSED)
def test_under_autocast_they_work_in_bf16_and_are_near_fp32(name: str) -> None:
    function = find(cpu, name)
    exact = flat(results(function, leaves(inputs(name, (2, 3, 4, 8)))))
    with torch.autocast("cpu", torch.bfloat16):
        outputs, gradients = results(function, leaves(inputs(name, (2, 3, 4, 8))))
    gram = [False, True] if name == "attention_input" else [False]
    assert [out.dtype == torch.float32 for out in outputs] == gram
    for found, expected in zip([*outputs, *gradients], exact, strict=True):
        assert (found.float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("backend", [reference, cpu], ids=["reference", "cpu"])
def test_the_gram_matrix_is_fp32_under_autocast(backend: Any) -> None:
    x = torch.randn(2, 4096, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backend.gram(x).dtype == torch.float32
        assert backend.gram(x.bfloat16()).dtype == torch.float32


@needs_c
@pytest.mark.parametrize("name", ["channel_mlp", "fusion_linear"])
@pytest.mark.parametrize(
    "odd", [torch.ones(16, 16, 1, 1).permute(0, 2, 3, 1), torch.ones(1, 1, 64, 16).transpose(1, 2)]
)
def test_a_map_of_one_column_may_have_any_stride_between_its_columns(name: str, odd: Tensor) -> None:
    odd.normal_()
    assert odd.is_contiguous()
    assert odd.stride(2) != odd.shape[3]
    given = inputs(name, odd.shape)  # type: ignore[arg-type]
    given[0] = odd if name == "channel_mlp" else [odd, *given[0][1:]]
    with threads(2):
        found = find(cpu, name)(*given)
    assert relative_error(found, find(reference, name)(*given)) < 3e-6


@pytest.mark.parametrize("name", [name for name in FUSED if name != "gated_unit"])  # PyTorch refuses that
def test_an_empty_batch_gives_empty_results_of_the_right_shape(name: str) -> None:
    given = inputs(name, (0, 4, 5, 6))
    found, expected = (flat([find(backend, name)(*given)]) for backend in (cpu, reference))
    assert [x.shape for x in found] == [x.shape for x in expected]


@needs_c
@pytest.mark.parametrize("value", [-torch.inf, -90.0, -20.0, -5.0, -1e-3, 0.0, 1e-30, 5.0, 90.0, torch.nan])
def test_gelu_in_c_is_torchs_everywhere(value: float) -> None:
    """The norm of two channels is -1 and 1; the one hidden value is `value` and its gate is 1."""
    x, one, zero = torch.tensor([[[[-1.0, 1.0]]]]), torch.ones(2), torch.zeros(2)
    expand, filters = torch.tensor([[0.0, 1.0], [0.0, value]]), torch.zeros(2, 3, 3)
    filters[:, 1, 1] = 1
    given = x, one, zero, expand, filters, torch.ones(2, 1)
    found, plain = fused_c.feed_forward(*given), reference.feed_forward(*given)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=3e-7, equal_nan=True)


def test_depthwise_is_a_correlation_with_zero_padding() -> None:
    x = torch.zeros(1, 3, 3, 1)
    x[0, 1, 1] = 1
    filters = torch.arange(9.0).view(1, 3, 3)
    assert torch.equal(kernels.depthwise(x, filters)[0, ..., 0], filters[0].flip(0, 1))


def test_each_image_gets_its_own_filters() -> None:
    x, filters = inputs("dynamic_depthwise", (3, 6, 5, 4))
    alone = [kernels.depthwise(x[i : i + 1], filters[i]) for i in range(3)]
    torch.testing.assert_close(kernels.dynamic_depthwise(x, filters), torch.cat(alone))


def test_moments_do_not_cancel_far_from_zero() -> None:
    x = 1000 + torch.randn(2, 32, 32, 4, dtype=torch.float64)
    _, exact = reference.moments(x)
    _, found = cpu.moments(x.float())
    assert ((found - exact) / exact).abs().max() < 1e-4


# The choice of a backend, and building the library


def test_the_backend_follows_device_dtype_and_choice() -> None:
    x = torch.zeros(1)
    assert select(x) is cpu
    assert select(torch.empty(1, device="meta")) is reference
    with use_backend("reference"):
        assert select(x) is reference
    with use_backend("triton"):
        assert select(x) is triton
        assert select(x.double()) is reference
    assert select(x) is cpu


@pytest.mark.parametrize("parts", [1, 2])
def test_blocks_hold_all_channels_and_zeros(parts: int) -> None:
    matrix, whole = torch.randn(parts * 21, 5), layout.round_up(21)
    padded = layout.pad_parts(matrix, parts)
    assert torch.equal(layout.unpad_parts(padded, 21, parts), matrix)
    assert padded.shape == (parts * whole, 5)
    assert padded.view(parts, whole, 5)[:, 21:].eq(0).all()
    assert torch.equal(layout.from_blocks(layout.to_blocks(padded.mT)), padded.mT)


@pytest.fixture
def unbuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder without a library, before the first search for one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(library, "_searched", False)
    monkeypatch.setattr(library, "_loaded", None)
    return tmp_path


def test_without_a_compiler_there_is_no_library(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(unbuilt))
    monkeypatch.setenv("CC", "cc")
    assert library.library() is None
    assert list(unbuilt.iterdir()) == []


def test_the_environment_can_refuse_the_library(unbuilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRAGE_NATIVE", "0")
    assert library.library() is None
    assert list(unbuilt.iterdir()) == []


@needs_c
def test_a_compiler_that_fails_is_named_once_and_leaves_nothing(
    unbuilt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = unbuilt / "failing"
    failing.write_text("#!/bin/sh\necho no such processor >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CC", str(failing))
    with pytest.warns(UserWarning, match="no such processor") as seen:
        assert (library.library(), library.library()) == (None, None)
    assert len(seen) == 1
    assert list((unbuilt / "mirage").iterdir()) == []


def test_restoring_imports_neither_the_compiler_nor_triton() -> None:
    code = """
import sys, torch
from mirage import MIRAGE, ModelConfig, restore
restore(MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1))), torch.rand(3, 16, 16))
assert "torch._dynamo" not in sys.modules
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(mirage.__file__).parents[1])
