"""Operators that torch.compile does not look into, at no price where nothing is compiled or recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class Operator(Generic[P, R]):
    """A function of tensors as the operator `torch.ops.mirage.<its name>`.

    In inference mode the function itself is called: the first call of an operator imports torch's compiler, which takes
    seconds, and who restores one photograph waits for it.
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
        """Compute it."""
        if (
            not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
        ):  # dynamo cannot trace the second
            return self._function(*args, **kwargs)
        result: R = self._operator(*args, **kwargs)
        return result
