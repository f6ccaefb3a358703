"""CUDA graphs: the launch cost of many kernels is paid once per input shape.

A graph replays kernels at the addresses that they used. One of a forward pass is valid for one shape, one autocast
dtype and the weights' addresses: weights changed in place are seen, replaced weights need a new `GraphedModel`.
"""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes before recording, in which libraries choose algorithms and allocate memory."""


_MEMORY_MARGIN = 1.5
"""Free memory that a recording asks for, in multiples of what the function allocates: other work needs some as well."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")


class LRUCache(Generic[K, V]):
    """At most `limit` values by key; the least recently used is dropped first."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: must be at least 1.")
        self.limit = limit
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of `key`, calling `make` if it is missing."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        while len(self._values) >= self.limit:  # before `make`, which needs the memory
            self._values.popitem(last=False)
        value = self._values[key] = make()
        return value


class Recording(NamedTuple, Generic[T]):
    """What a function computed on a device, ready to be computed again."""

    replay: Callable[[], None]
    """Compute again from the inputs' memory into that of `result`, without running Python code of the function."""
    result: T
    """What the function returned; its values are those of the newest replay."""


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of a device on which graphs are recorded; PyTorch forbids the default stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudaRecorder:
    """Records what functions compute on a device into graphs that share their memory.

    Only one of the graphs may run at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._bytes = 0

    def eagerly(self, function: Callable[[], T]) -> T:
        """Call `function` as it will be recorded, which PyTorch asks for several times before a recording."""
        stream, current = side_stream(self._device), torch.cuda.current_stream(self._device)
        before = torch.cuda.memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            result = function()
        current.wait_stream(stream)
        self._bytes = torch.cuda.max_memory_allocated(self._device) - before
        return result

    def obstacle(self) -> str:
        """Return why there is not enough memory to record what `eagerly` ran; empty if there is."""
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        free = torch.cuda.mem_get_info(self._device)[0] + cached
        if self._bytes * _MEMORY_MARGIN <= free:
            return ""
        return f"a graph needs about {self._bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"

    def record(self, function: Callable[[], T]) -> Recording[T]:
        """Record `function` without running its kernels. Raises RuntimeError if CUDA cannot."""
        graph, stream = torch.cuda.CUDAGraph(), side_stream(self._device)
        # Other threads may use CUDA meanwhile, as those do that copy batches into page-locked memory.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            result = function()
        return Recording(graph.replay, result)


class RecordedForward(NamedTuple):
    """A recorded forward pass and its input and output memory."""

    replay: Callable[[], None]
    degraded: Tensor
    restored: Tensor


class GraphKey(NamedTuple):
    """The conditions under which a recorded graph is valid."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None


class GraphedModel:
    """A MIRAGE model in eval mode as a function from degraded to restored images, replayed from CUDA graphs.

    The results equal the model's, bit for bit where its kernels are deterministic. At most `shapes` graphs are kept,
    each with the memory of a forward pass. On other devices the model runs eagerly, after one warning.
    """

    def __init__(self, model: nn.Module, shapes: int = 8) -> None:
        self.model = model
        self.recorded: LRUCache[GraphKey, RecordedForward] = LRUCache(shapes)
        self._warned = False

    def __call__(self, degraded: Tensor) -> Tensor:
        """Restore degraded (b, 3, h, w), h and w multiples of 8; the result has the same shape and no gradient."""
        if self.model.training:
            raise ValueError("CUDA graphs replay inference: call model.eval() first.")
        with torch.inference_mode():
            if degraded.device.type != "cuda":
                self._warn(degraded.device)
                return self._forward(degraded)
            key = GraphKey(tuple(degraded.shape), degraded.dtype, _autocast_dtype())
            recorded = self.recorded.get(key, lambda: self._record(degraded))
            recorded.degraded.copy_(degraded)
            recorded.replay()
            return recorded.restored.clone()

    def _forward(self, degraded: Tensor) -> Tensor:
        image: Tensor = self.model(degraded).image
        return image

    def _record(self, degraded: Tensor) -> RecordedForward:
        static_input = degraded.clone(memory_format=torch.contiguous_format)
        dtype = _autocast_dtype()
        with (
            torch.cuda.device(degraded.device),
            # Without autocast's cache: the casts must be part of the graph.
            torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False),
        ):
            recorder = CudaRecorder(degraded.device)
            for _ in range(WARM_UP):
                recorder.eagerly(lambda: self._forward(static_input))
            recorded = recorder.record(lambda: self._forward(static_input))
        return RecordedForward(recorded.replay, static_input, recorded.result)

    def _warn(self, device: torch.device) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"CUDA graphs need a CUDA device; on {device.type} the model runs eagerly.", stacklevel=3
            )


def _autocast_dtype() -> torch.dtype | None:
    """Return the dtype of autocast on CUDA, None if it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
