"""The MIRAGE image restoration model in plain PyTorch, independent of the orchestrator.

Its names are imported when they are used, so that `mirage.config` and `mirage.cost` need no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mirage.config import ModelConfig
    from mirage.inference import restore
    from mirage.model import MIRAGE, Output
    from mirage.weights import load, load_release, save

__all__ = ["MIRAGE", "ModelConfig", "Output", "load", "load_release", "restore", "save"]

_MODULES = {
    "MIRAGE": "model",
    "ModelConfig": "config",
    "Output": "model",
    "load": "weights",
    "load_release": "weights",
    "restore": "inference",
    "save": "weights",
}
"""Name -> the module that defines it."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
