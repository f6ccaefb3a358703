"""Count the kernels of operators on fake CUDA tensors: launches, memory traffic, arithmetic and host synchronisations.

The rules, on which every number rests:

- An operator that is neither a view nor an allocation launches one kernel, which reads each input once and writes each
  output once. What an expanded tensor repeats is read once. `LAUNCHES` lists operators of PyTorch that launch more.
- A convolution's gradient launches one kernel per gradient that is asked for, each of which reads its inputs again.
- A `_foreach_` or fused optimiser operator launches as PyTorch's multi_tensor_apply does: a launch holds at most
  `TENSORS` tensors and `BLOCKS` chunks of `CHUNK` numbers.
- Our own operators are opened: their Python code runs, each Triton launch counts as one kernel, and the PyTorch
  operators between them count by the rules above.
- In compiled code each kernel of inductor's schedule counts as one launch with the bytes of inductor's own model, and
  what the schedule calls counts by the rules above (`fake_inductor`). The host's own work in a call is not seen.
- A read of a device tensor by the host is a synchronisation; counting continues with the value 1.

Caches, layout changes inside cuDNN, and split reductions of a library are not seen. What programs of one
Triton launch read again (neighbours of a filter, a gradient that each block of channels takes) counts once: it is taken
to be in cache.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.autograd import _get_sequence_nr as get_sequence_nr  # type: ignore[attr-defined]
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack as dispatch_modes
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

NO_KERNEL = frozenset(
    {
        *(
            "detach",
            "detach_",
            "alias",
            "view",
            "_unsafe_view",
            "_reshape_alias",
            "t",
            "lift_fresh",
            "set_",
            "resize_",
        ),
        *(
            "empty",
            "empty_like",
            "empty_strided",
            "new_empty",
            "new_empty_strided",
            "record_stream",
            "_local_scalar_dense",
        ),
    }
)
"""Operators without a kernel: they make views or allocate memory."""

LAUNCHES = {
    **dict.fromkeys(
        ("slice_backward", "select_backward", "diagonal_backward", "slice_scatter", "select_scatter"), 2
    ),
    **dict.fromkeys(
        ("masked_fill", "index_put", "index_add", "index_copy", "scatter", "scatter_add", "eye"), 2
    ),
    **dict.fromkeys(("native_layer_norm_backward", "native_group_norm", "native_batch_norm"), 2),
    **dict.fromkeys(("native_group_norm_backward", "native_batch_norm_backward", "linalg_inv_ex"), 3),
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), 2),
}
"""Operators that launch more than one kernel: they fill or copy first, reduce in two passes, or transform two axes."""

ONLY_WRITE = frozenset({"fill_", "zero_", "copy_", "uniform_", "normal_", "random_", "bernoulli_"})
"""Operators in place that do not read the tensor that they write."""

TENSORS = (110, 64, 48, 36, 30)
"""Most tensors of one multi-tensor launch, by the number of lists (ATen/native/cuda/MultiTensorApply.cuh)."""
BLOCKS = 320
CHUNK = 65_536

_READ_BY_HOST = frozenset(
    {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2"}
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """Kernels that one operator launched."""

    name: str
    module: str
    """Class of the innermost module that was running, forward or backward."""
    launches: int
    traffic: int
    """Bytes read and written."""
    flops: int = 0
    half: bool = False
    """Whether the arithmetic is on 16-bit numbers."""


@dataclass
class Count:
    """All that a piece of code asked of the device."""

    kernels: list[Kernels] = field(default_factory=list)
    synchronisations: list[str] = field(default_factory=list)
    """The operator and the line of each read by the host."""

    @property
    def launches(self) -> int:
        """Return the number of kernels."""
        return sum(k.launches for k in self.kernels)

    @property
    def traffic(self) -> int:
        """Return the bytes read and written."""
        return sum(k.traffic for k in self.kernels)

    @property
    def flops(self) -> int:
        """Return the arithmetic of matrix products and convolutions: two for each multiply-add."""
        return sum(k.flops for k in self.kernels)

    def by(self, key: str) -> dict[str, tuple[int, int]]:
        """Return launches and bytes by `name` or `module`, most bytes first."""
        found: dict[str, tuple[int, int]] = {}
        for k in self.kernels:
            launches, size = found.get(getattr(k, key), (0, 0))
            found[getattr(k, key)] = launches + k.launches, size + k.traffic
        return dict(sorted(found.items(), key=lambda row: -row[1][1]))


class Counter(TorchDispatchMode):
    """Counts the operators of the code that runs within it. Enter it inside a FakeTensorMode."""

    def __init__(self, running: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.count = Count()
        self._running = running
        self._opened = 0
        self._paused = False
        self._module = ""
        self._owners: dict[int, str] = {}
        """The module of each node of the autograd graph, by the node's number."""

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        if self._paused:
            return function(*args, **kwargs)
        if not self._opened:
            self._module = self._module_of()
        name, inputs = _name(function), _tensors((args, kwargs))
        if function.namespace == "prim":
            return function(*args, **kwargs)
        if name == "_pin_memory":  # fake tensors cannot; where a host tensor lies does not matter here
            return args[0]
        if name in _READ_BY_HOST:
            return self._read_by_host(name, function, args, inputs)
        own = OPDEFS.get(function._schema.name)
        if own is not None and function.namespace == "mirage" and _on_device(inputs):
            self._opened += 1
            try:
                with self:
                    return own._init_fn(*args, **kwargs)
            finally:
                self._opened -= 1
        if self._opened:  # here operators arrive that autograd would have split
            with self:
                out = function.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        # Fused optimisers work in place and return nothing; not all of them take fake tensors.
        out = None if name.startswith("_fused_") else function(*args, **kwargs)
        outputs = _tensors(out)
        if not (_on_device(inputs) or _on_device(outputs)):
            return out
        if name in ("_to_copy", "copy_"):
            self._moved(name, function, inputs, outputs, args, kwargs)
        if function.is_view or name in NO_KERNEL:
            return out
        for launches, traffic in _cost(name, args, inputs, outputs):
            self._add(str(function.overloadpacket), launches, traffic, function, args, kwargs, out)
        return out

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Return whether torch.compile works within this mode."""
        return True

    @staticmethod
    def current() -> Counter | None:
        """Return the innermost counter in force."""
        found = [mode for mode in dispatch_modes() if isinstance(mode, Counter)]
        return found[-1] if found else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing within the block."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def planned(self, name: str, traffic: int) -> None:
        """Count one kernel that a compiler made."""
        self.count.kernels.append(Kernels(name, self._module_of(), 1, traffic))

    def launched(self, name: str, arguments: Iterable[Any]) -> None:
        """Count one launch of a Triton kernel, which touches each of its tensors once."""
        tensors = {
            (x.untyped_storage()._cdata, x.storage_offset(), x.shape): x for x in _tensors(list(arguments))
        }
        traffic = sum(map(_size, tensors.values()))
        self.count.kernels.append(Kernels(f"triton.{name}", self._module, 1, traffic))

    def _add(
        self, name: str, launches: int, traffic: int, function: Any, args: Any, kwargs: Any, out: Any
    ) -> None:
        formula = flop_registry.get(function.overloadpacket)
        flops = int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
        half = any(x.dtype in (torch.bfloat16, torch.float16) for x in _tensors(args))
        self.count.kernels.append(Kernels(name, self._module, launches, traffic, flops, half))

    def _module_of(self) -> str:
        """Return the module that is running forward, or whose gradient is being computed."""
        node: Any = torch._C._current_autograd_node()
        if node is not None:
            return self._owners.get(node._sequence_nr(), "gradient sums")
        module = self._owners[get_sequence_nr() - 1] = self._running()
        return module

    def _read_by_host(self, name: str, function: Any, args: Sequence[Any], inputs: list[Tensor]) -> Any:
        if _on_device(inputs):
            self._synchronised(name)
        first = inputs[0]
        if name in ("_local_scalar_dense", "is_nonzero", "equal"):
            if name != "_local_scalar_dense" or first.dtype == torch.bool:
                return True
            return 1.0 if first.dtype.is_floating_point else 1
        if name == "nonzero":
            return first.new_empty((first.numel(), first.dim()), dtype=torch.int64)
        if name == "masked_select":
            return first.new_empty(first.numel())
        return function(*args)  # refused, with an error that names the operator

    def _moved(
        self, name: str, function: Any, inputs: list[Tensor], outputs: list[Tensor], args: Any, kwargs: Any
    ) -> None:
        """Count a copy to the host that waits for it."""
        source = inputs[-1] if name == "copy_" else inputs[0]
        if _on_device([source]) and not _on_device(outputs) and not kwargs.get("non_blocking", False):
            self._synchronised(f"{name} to the CPU")

    def _synchronised(self, name: str) -> None:
        self.count.synchronisations.append(f"{name} at {_source_line()}")


@contextmanager
def counting(model: torch.nn.Module, compiled: bool = False) -> Iterator[Count]:
    """Count what runs within the block, by the modules of `model` unless parts of it are compiled."""
    from triton.runtime import autotuner, jit

    classes = {type(model).__name__: type(model).__name__}
    for name, module in model.named_modules():
        classes[f"{type(model).__name__}.{name}"] = type(module).__name__
    # A tracker's hooks would split what torch.compile takes as one graph.
    with nullcontext() if compiled else ModuleTracker() as tracker:

        def innermost() -> str:
            if tracker is None:
                return "compiled model"
            return classes.get(max(tracker.parents - {"Global"}, key=_depth, default=""), "no module")

        counter = Counter(innermost)

        def launch(kernel: Any, *args: Any, **kwargs: Any) -> None:
            counter.launched(kernel.fn.__name__, (*args, *kwargs.values()))

        with (
            mock.patch.object(jit.JITFunction, "run", launch),
            mock.patch.object(autotuner.Autotuner, "run", lambda tuned, *a, **k: launch(tuned.fn, *a, **k)),
            torch.autograd.set_multithreading_enabled(False),
            counter,
        ):
            yield counter.count


def multi_tensor_launches(sizes: Sequence[int], lists: int) -> int:
    """Return the launches of multi_tensor_apply for tensors of these sizes, each one of `lists` tensors."""
    most, launches, tensors, blocks = TENSORS[min(lists, len(TENSORS)) - 1], 0, 0, 0
    for size in sizes:
        chunks = math.ceil(size / CHUNK)
        tensors += chunks > 0
        for chunk in range(chunks):
            blocks += 1
            last = chunk == chunks - 1
            if (tensors == most and last) or blocks == BLOCKS:
                launches, blocks, tensors = launches + 1, 0, 0 if last else 1
    return launches + (blocks > 0)


def _cost(
    name: str, args: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor]
) -> Iterator[tuple[int, int]]:
    """Yield launches and bytes of the kernels of one operator."""
    read, written = sum(map(_size, inputs)), sum(map(_size, outputs))
    if name.startswith(("_foreach_", "_fused_")):
        lists = [x for x in args if isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor)]
        each = [x.numel() for x in lists[0]]
        in_place = name.endswith("_")
        written = sum(map(_size, _written_in_place(name, lists))) if in_place else written
        yield _multi_tensor(name, lists, each, in_place), read + written
    elif name == "convolution_backward":
        grad, x, weight = inputs[:3]
        results = iter(outputs)
        for asked, other in zip(args[-1], (weight, x, None), strict=True):
            if asked:
                yield 1, _size(grad) + (0 if other is None else _size(other)) + _size(next(results))
    else:
        if name in ONLY_WRITE:
            read -= _size(inputs[0])
        launches = LAUNCHES.get(name, 1)
        # The first of two passes fills or copies what the second one changes.
        yield launches, read + written + (written if name in ("slice_backward", "select_backward") else 0)


def _multi_tensor(name: str, lists: list[Any], sizes: Sequence[int], in_place: bool) -> int:
    if any(len({x.dtype for x in tensors}) > 1 for tensors in lists) and "copy" not in name:
        return len(sizes)  # the slow path
    if name.startswith("_fused_"):
        lists = lists[:4]  # the steps are read beside
    launches = multi_tensor_launches(sizes, len(lists) + (not in_place and "norm" not in name))
    return launches + (2 if "norm" in name else 0)  # it clears its partial results and adds them up


def _written_in_place(name: str, lists: list[Any]) -> list[Tensor]:
    if not name.startswith("_fused_"):
        return list(lists[0])
    return [x for i in (0, 2, 3) for x in lists[i]]  # weights and both moments, not the gradients


def _name(function: Any) -> str:
    name: str = function._schema.name
    return name.partition("::")[2]


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _on_device(tensors: Iterable[Tensor]) -> bool:
    return any(x.device.type == "cuda" for x in tensors)


def _size(x: Tensor) -> int:
    """Return the bytes of a tensor; what is expanded counts once."""
    numbers = math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride or n == 0)
    return numbers * x.element_size()


def _depth(name: str) -> int:
    return name.count(".")


def _source_line() -> str:
    """Return the innermost line outside PyTorch and this module, as `file.py:12`."""
    torch_root, here = str(Path(torch.__file__).parent), __file__
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith((torch_root, here, "<")):
            return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno}"
    return "?"
