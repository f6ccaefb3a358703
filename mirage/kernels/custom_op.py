"""Custom operators that torch.compile does not trace into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Operator(Generic[P, R]):
    """A function of tensors, registered as the operator `torch.ops.mirage.<its name>`.

    In inference mode the function is called directly: the first call of a registered operator imports torch's compiler,
    which takes seconds and delays the first restored photograph.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._operator: Any = torch.library.custom_op(
            f"mirage::{function.__name__}", function, mutates_args=()
        )
        self.register_fake = self._operator.register_fake
        self.register_autograd = self._operator.register_autograd
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the operator."""
        # The order matters: dynamo cannot trace is_inference_mode_enabled.
        if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
            return self._function(*args, **kwargs)
        result: R = self._operator(*args, **kwargs)
        return result


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep the inputs of an operator for its gradient."""
    ctx.save_for_backward(*inputs)
