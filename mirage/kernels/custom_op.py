"""Custom operators that torch.compile does not trace into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

P = ParamSpec("P")
R = TypeVar("R")


class CustomOperator(Generic[P, R]):
    """A function of tensors, registered as the operator `torch.ops.mirage.<its name>`.

    The registered operator serves torch.compile and fake tensors. On ordinary tensors the function is called directly
    and its gradient is an autograd.Function: a call of the registered operator takes as long as the work on a small
    map, and the first one imports torch's compiler, which takes seconds.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._differentiable: Callable[..., R] | None = None
        self._operator: Any = torch.library.custom_op(
            f"mirage::{function.__name__}", function, mutates_args=()
        )
        self.register_fake = self._operator.register_fake
        self.__doc__ = function.__doc__

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Callable[..., None]) -> None:
        """Register the gradient, with arguments as those of `torch.library.register_autograd`."""
        self._operator.register_autograd(backward, setup_context=setup_context)
        self._differentiable = _differentiable(self._function, backward, setup_context)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the operator."""
        # The order matters: dynamo cannot trace the conditions after the first.
        if torch.compiler.is_compiling() or not _are_ordinary(args) or kwargs:
            result: R = self._operator(*args, **kwargs)
        elif not torch.is_grad_enabled():
            result = self._function(*args, **kwargs)
        elif self._differentiable is None:
            result = self._operator(*args, **kwargs)
        else:
            result = self._differentiable(*args)
        return result


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the inputs of an operator for its gradient."""
    ctx.save_for_backward(*inputs)


def _are_ordinary(args: Iterable[Any]) -> bool:
    """Return whether all tensors, also those in lists, are neither fake nor of another subclass."""
    return all(
        _are_ordinary(arg) if isinstance(arg, list) else type(arg) in (Tensor, torch.nn.Parameter)
        for arg in args
    )


def _differentiable(
    function: Callable[..., R], backward: Callable[..., Any], setup_context: Callable[..., None]
) -> Callable[..., R]:
    """Return `function` with a gradient; its arguments are tensors and lists of tensors."""

    def run(ctx: Any, sizes: list[int | None], *flat: Tensor) -> R:
        inputs = _nested(flat, sizes)
        output = function(*inputs)
        setup_context(ctx, inputs, output)
        return output

    def gradients(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        found = backward(ctx, *grads)
        return None, *_flat(found if isinstance(found, tuple) else (found,))

    methods = {"forward": staticmethod(run), "backward": staticmethod(once_differentiable(gradients))}
    name = f"mirage::{function.__name__}"  # in profiles
    differentiable: Any = type(name, (torch.autograd.Function,), methods)

    def call(*args: Any) -> R:
        sizes = [len(arg) if isinstance(arg, list) else None for arg in args]
        found: R = differentiable.apply(sizes, *_flat(args))
        return found

    return call


def _flat(values: Iterable[Any]) -> list[Any]:
    """Return the values, and those of lists among them, as one list."""
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def _nested(flat: Iterable[Any], sizes: Iterable[int | None]) -> tuple[Any, ...]:
    """Invert `_flat`; `sizes` are the lengths of lists, and None for other values."""
    rest = iter(flat)
    return tuple(next(rest) if size is None else [next(rest) for _ in range(size)] for size in sizes)
