"""CUDA graphs for inference on small batches: the launch cost of hundreds of kernels is paid once per input shape.

A graph replays the kernels of one forward pass at the addresses that they used. It is valid for one shape, one autocast
dtype and the weights' addresses: weights changed in place are seen, replaced weights need a new `GraphedModel`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes before recording, in which libraries choose algorithms and allocate memory."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


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


class RecordedGraph(NamedTuple):
    """A recorded forward pass and its input and output memory."""

    graph: torch.cuda.CUDAGraph
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
        self.recorded: LRUCache[GraphKey, RecordedGraph] = LRUCache(shapes)
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
            recorded.graph.replay()
            return recorded.restored.clone()

    def _forward(self, degraded: Tensor) -> Tensor:
        image: Tensor = self.model(degraded).image
        return image

    def _record(self, degraded: Tensor) -> RecordedGraph:
        static_input = degraded.clone(memory_format=torch.contiguous_format)
        dtype = _autocast_dtype()
        with (
            torch.cuda.device(degraded.device),
            # Without autocast's cache: the casts must be part of the graph.
            torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False),
        ):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    self._forward(static_input)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Another thread may load a model meanwhile, which allocates memory.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                restored = self._forward(static_input)
        return RecordedGraph(graph, static_input, restored)

    def _warn(self, device: torch.device) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"CUDA graphs need a CUDA device; on {device.type} the model runs eagerly.", stacklevel=3
            )


def _autocast_dtype() -> torch.dtype | None:
    """Return the dtype of autocast on CUDA, None if it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
