"""What an operator of a degradation is: a function of an image, a generator and drawn numbers, known by its name.

    @operator(sigma=Parameter(0.0, 50.0, unit="pixels", about="standard deviation of the Gaussian"))
    def gaussian_blur(image: Image, rng: np.random.Generator, *, sigma: float) -> Image:
        ...

A pipeline of a job names operators and gives each parameter a number, or a distribution from which it draws one.
A function with an argument `original` also gets the size, (height, width), that the image had before the pipeline.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""(h, w, 3) RGB in [0, 1], coded as in an sRGB file unless a docstring says linear light."""

Value = float | int | bool | str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an operator: a number in a range, or one of some words."""

    minimum: float = 0.0
    maximum: float = 1.0
    unit: str = ""
    """Unit for people: pixels, grey levels, degrees."""
    about: str = ""
    """Meaning in one line, for the schema and the docs."""
    default: Value | None = None
    """Value of a job that names none; None: the job must give one."""
    integer: bool = False
    words: tuple[str, ...] = ()
    """The words that are possible instead of numbers."""


@dataclass(frozen=True)
class Operator:
    """A function that degrades an image, with its parameters."""

    name: str
    function: Callable[..., Image]
    parameters: Mapping[str, Parameter]
    version: int = 1
    """Raise it when the pixels of equal values, or a default, change: digests of pipelines then change too."""
    needs: tuple[str, str] | None = None
    """A module that is not among the dependencies, and the extra that brings it."""

    @cached_property
    def needs_original(self) -> bool:
        """Whether the function takes the size that the image had before the pipeline."""
        return "original" in inspect.signature(self.function).parameters

    @property
    def lacks_package(self) -> bool:
        """Whether the module that the operator needs is not installed here."""
        return self.needs is not None and importlib.util.find_spec(self.needs[0]) is None

    @property
    def about(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def __call__(
        self,
        image: Image,
        rng: np.random.Generator,
        values: Mapping[str, Value],
        original: tuple[int, int] | None = None,
    ) -> Image:
        """Return the degraded image: finite, float32, clipped to [0, 1]; its size may differ.

        `values` has a drawn value for each parameter, `original` the size before the pipeline (None: that of `image`).
        The same arguments give the same pixels.
        """
        size = {"original": original or image.shape[:2]} if self.needs_original else {}
        degraded = np.asarray(self.function(image, rng, **values, **size), np.float32)
        assert degraded.shape[2:] == (3,), f"{self.name} returned {degraded.shape}"
        if np.isnan(degraded).any():
            degraded = np.nan_to_num(degraded, nan=0.0)
        return degraded.clip(0, 1)


OPERATORS: dict[str, Operator] = {}
"""The operators by name. Import `shards.degradations.operators` to fill it."""


def operator(
    version: int = 1, needs: tuple[str, str] | None = None, /, **parameters: Parameter
) -> Callable[[Callable[..., Image]], Callable[..., Image]]:
    """Register a function as the operator of its name."""

    def register(function: Callable[..., Image]) -> Callable[..., Image]:
        name = function.__name__
        assert name not in OPERATORS, f"two operators are named {name}"
        OPERATORS[name] = Operator(name, function, parameters, version, needs)
        return function

    return register
