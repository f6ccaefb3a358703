"""`torch.compile` on fake CUDA tensors without a GPU: inductor plans its kernels, nothing is generated or launched.

Dynamo, AOTAutograd, inductor's passes, lowering and scheduler run as for a GPU; the device's properties that they ask
for are those of an H200. Each kernel of the schedule then counts as one launch with the bytes that inductor's own model
gives it. What the schedule calls (our operators, matrix products, convolutions) counts by `kernel_count`.
"""

# mypy: disable-error-code="no-untyped-call, attr-defined, arg-type"

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import fx, nn
from torch._dynamo.device_interface import CudaInterface
from torch._dynamo.utils import detect_fake_mode
from torch._inductor import compile_fx, ir, scheduler
from torch._inductor.debug import DebugContext
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch.utils._python_dispatch import _disable_current_modes as disable_current_modes

from mirage.blocks import Block
from mirage.compile import compile_each
from orchestrator.bench.kernel_count import Counter

H200 = SimpleNamespace(
    name="NVIDIA H200",
    major=9,
    minor=0,
    multi_processor_count=132,
    regs_per_multiprocessor=65_536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    total_memory=141 * 10**9,
    shared_memory_per_block_optin=232_448,
    L2_cache_size=50 * 2**20,
)


def compile_blocks(model: nn.Module, block: type[nn.Module] = Block) -> None:
    """Compile every module of type `block` at its first call, as `mirage.compile` does on a GPU."""
    compile_each(model, block, partial(compile_fx.compile_fx, inner_compile=_plan))


class _Lowering(GraphLowering):
    """A lowering that remembers which nodes of the graph call a library or an operator."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls: set[str] = set()

    def run_node(self, n: fx.Node) -> object:
        """Lower a node."""
        before = len(self.operations)
        result = super().run_node(n)
        if any(isinstance(made, ir.ExternKernel) for made in self.operations[before:]):
            self.calls.add(n.name)
        return result


@dataclass(frozen=True)
class _Program:
    """Runs a graph on fake tensors; counts what it calls, and beside that the kernels of its schedule."""

    graph: fx.GraphModule
    calls: set[str]
    kernels: list[tuple[str, int]]

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph."""
        counter = Counter.current()
        if counter is None:
            return self.graph(*inputs)
        for name, size in self.kernels:
            counter.planned(f"inductor.{name}", size)
        # A new one for each run: what an interpreter still holds, autograd would copy.
        return _Counted(self.graph, self.calls, counter).run(*inputs)


class _Counted(fx.Interpreter):
    """Runs a graph; what a kernel of the schedule computes is not counted."""

    def __init__(self, graph: fx.GraphModule, calls: set[str], counter: Counter) -> None:
        super().__init__(graph)
        self._calls = calls
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        """Run a node."""
        with nullcontext() if n.name in self._calls else self._counter.paused():
            return super().run_node(n)


def _plan(graph: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> _Program:
    """Schedule a graph as inductor does, and return what runs it."""
    # The steps are those of torch._inductor.compile_fx before it generates code.
    with (
        disable_current_modes(),
        torch.no_grad(),
        _an_h200(),
        V.set_fake_mode(detect_fake_mode(inputs)),
        DebugContext(),
    ):
        view_to_reshape(graph)
        compile_fx.fake_tensor_prop(graph, inputs)
        compile_fx.record_original_output_strides(graph)
        compile_fx._recursive_post_grad_passes(graph, is_inference=options.get("is_inference", False))
        lowering = _Lowering(
            graph,
            example_inputs=inputs,
            is_inference=options.get("is_inference", False),
            is_backward=options.get("is_backward", False),
        )
        with V.set_graph_handler(lowering):
            lowering.run(*inputs)
            lowering._update_scheduler()
            kernels = [
                ("reduction" if node.is_reduction() else "pointwise", node.get_read_write_buffers_sizes())
                for node in lowering.scheduler.nodes
                if not (node.is_extern() or isinstance(node, scheduler.NopKernelSchedulerNode))
                and node.is_gpu()
            ]
    return _Program(graph, lowering.calls, kernels)


@contextmanager
def _an_h200() -> Iterator[None]:
    """Let inductor find an H200 and a Triton that works on it."""
    with (
        mock.patch.object(CudaInterface, "get_device_properties", return_value=H200),
        mock.patch.object(CudaInterface, "get_compute_capability", return_value=10 * H200.major + H200.minor),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=H200),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(H200.major, H200.minor)),
        mock.patch.object(scheduler, "has_triton", return_value=True),
    ):
        yield
