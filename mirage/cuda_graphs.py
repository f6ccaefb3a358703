"""CUDA graphs for small batches: what hundreds of kernels cost to launch is paid once per input shape.

A recorded graph replays the kernels of one forward pass at the addresses that they used. So it knows one shape, one
autocast type, and the weights where they are: changing weights in place is seen, replacing them needs a new
`GraphedModel`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Passes before recording, in which libraries choose and allocate what they need."""


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most `limit` values by key."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: needs to hold at least one.")
        self.limit = limit
        self._values: OrderedDict[K, V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: K) -> bool:
        return key in self._values

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of `key`, made now if it is not there; the one unused for longest is let go before."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        while len(self._values) >= self.limit:
            self._values.popitem(last=False)
        value = self._values[key] = make()
        return value


class Graph(NamedTuple):
    """A recorded forward pass with the memory that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    degraded: Tensor
    restored: Tensor


class Key(NamedTuple):
    """What a recording holds for."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    autocast: torch.dtype | None


class GraphedModel:
    """A MIRAGE model in eval mode as a function from degraded to restored images, replayed from CUDA graphs.

    The results are those of the model, bit for bit where its kernels are deterministic. At most `shapes` recordings are
    kept, each with the memory of a forward pass. On other devices the model runs eagerly, after one warning.
    """

    def __init__(self, model: nn.Module, shapes: int = 8) -> None:
        self.model = model
        self.recordings: Recent[Key, Graph] = Recent(shapes)
        self._warned = False

    def __call__(self, degraded: Tensor) -> Tensor:
        """degraded (b, 3, h, w), h and w multiples of 8 → restored, the same shape, without a gradient."""
        if self.model.training:
            raise ValueError("CUDA graphs replay inference: call model.eval() first.")
        with torch.inference_mode():
            if degraded.device.type != "cuda":
                self._warn(degraded.device)
                return self._forward(degraded)
            key = Key(tuple(degraded.shape), degraded.dtype, _autocast_type())
            recorded = self.recordings.get(key, lambda: self._record(degraded))
            recorded.degraded.copy_(degraded)
            recorded.graph.replay()
            return recorded.restored.clone()

    def _forward(self, degraded: Tensor) -> Tensor:
        image: Tensor = self.model(degraded).image
        return image

    def _record(self, degraded: Tensor) -> Graph:
        given = degraded.clone(memory_format=torch.contiguous_format)
        dtype = _autocast_type()
        with (
            torch.cuda.device(degraded.device),
            # Without its cache: what autocast casts has to be cast again in every replay.
            torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False),
        ):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP):
                    self._forward(given)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                restored = self._forward(given)
        return Graph(graph, given, restored)

    def _warn(self, device: torch.device) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"CUDA graphs need a CUDA device; on {device.type} the model runs eagerly.", stacklevel=3
            )


def _autocast_type() -> torch.dtype | None:
    """The type that autocast works in on CUDA, None where it is off."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
