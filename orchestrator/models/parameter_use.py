"""Forward passes of networks that do not use all of their parameters.

Some networks define parameters that they never use, or choose their experts by the input. Engines wait for a gradient
of every parameter, so a parameter that is not used gets a gradient of zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import ModelError


class _WithGradients(torch.autograd.Function):
    """The identity of an image, whose backward pass also gives zero gradients to parameters."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(p.shape, p.dtype, p.device) for p in parameters]
        return image.view_as(image)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
        return grads[0], *zeros


def with_gradients(image: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return `image`; its backward pass adds zero to the gradient of each trainable parameter."""
    return cast(Tensor, _WithGradients.apply(image, *(p for p in parameters if p.requires_grad)))  # type: ignore[no-untyped-call]


class _InOrder(torch.autograd.Function):
    """The identity of several tensors, whose backward pass starts once the gradients of all of them are complete."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(p.view_as(p) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads


class _Call(nn.Module):
    """A function of a network and other inputs as a module, for `torch.func.functional_call`."""

    def __init__(self, function: Callable[..., object], network: nn.Module) -> None:
        super().__init__()
        self.function, self.network = function, network

    def forward(self, *inputs: object) -> object:
        """Call the function."""
        return self.function(self.network, *inputs)


def call_in_order(
    function: Callable[..., object], network: nn.Module, *inputs: object
) -> tuple[object, dict[str, Tensor]]:
    """Return function(network, *inputs), and the views of the trainable parameters, by name, that it could use.

    The parameters get their gradients together, in an order that depends on no input.
    """
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    views = _InOrder.apply(*named.values())  # type: ignore[no-untyped-call]
    view_of = {id(p): view for p, view in zip(named.values(), views, strict=True)}
    # Every place of a parameter once: `functional_call` would not restore a layer that it finds under two names.
    places = {
        f"network.{prefix}{'.' if prefix else ''}{name}": view_of[id(p)]
        for prefix, module in network.named_modules()
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(p) in view_of
    }
    result = torch.func.functional_call(_Call(function, network), places, inputs, tie_weights=False)
    return result, dict(zip(named, views, strict=True))


def unused(outputs: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the parameters, or of views of them, that no output depends on.

    Raises ModelError for a network whose graph is hidden by a reentrant checkpoint.
    """
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, leaves, inputs = set(waiting), set(), set()
    while waiting:
        node = waiting.pop()
        if node.name() == "CheckpointFunctionBackward":
            raise ModelError(
                "the network uses torch.utils.checkpoint with use_reentrant=True, whose gradients do not reach the "
                "engine. Set use_reentrant=False there."
            )
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for edge in node.next_functions:
            inputs.add(edge)
            if edge[0] is not None and edge[0] not in seen:
                seen.add(edge[0])
                waiting.append(edge[0])
    return {
        name
        for name, tensor in parameters.items()
        if not (id(tensor) in leaves if tensor.is_leaf else (tensor.grad_fn, tensor.output_nr) in inputs)
    }
