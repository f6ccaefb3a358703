"""Read and write many tensors by few operations, so that a GPU launches few kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def is_writable(tensor: Tensor) -> bool:
    """Return whether its elements have memory of their own, unlike those of an expanded tensor."""
    return 0 not in tensor.stride() or tensor.numel() <= 1


def same_form(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors have the same shape and dtype."""
    return a.shape == b.shape and a.dtype == b.dtype


class TensorGroups:
    """Tensors of one network, grouped by dtype."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._groups: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            self._groups.setdefault(tensor.dtype, []).append(tensor)

    def flat(self) -> list[Tensor]:
        """Return a copy of the values: one vector for each dtype."""
        return [torch.cat([t.detach().flatten() for t in group]) for group in self._groups.values()]

    def parts(self, flat: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each tensor with its part, in its shape, of vectors in the form of `flat`."""
        return [
            (tensor, part.view(tensor.shape))
            for group, vector in zip(self._groups.values(), flat, strict=True)
            for tensor, part in zip(group, torch.split(vector, [t.numel() for t in group]), strict=True)
        ]

    def assign(self, flat: Sequence[Tensor]) -> None:
        """Write the values that `flat` returned back into the tensors."""
        if pairs := self.parts(flat):
            tensors, parts = zip(*pairs, strict=True)
            with torch.no_grad():
                torch._foreach_copy_(tensors, parts)
