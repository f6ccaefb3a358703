"""Import networks from checkouts of public repositories; nothing is copied or changed.

Their modules import packages that the networks do not need (timm, torchvision, profilers). Those that are not installed
are replaced by stubs. DropPath becomes the identity, so that a comparison does not depend on random draws.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orchestrator.bench.errors import BenchError
from orchestrator.bench.transforms import TRANSFORMS

_STUBBED = ("timm", "fvcore", "torchvision", "thop", "huggingface_hub", "lightning", "cv2", "lmdb")


class _Placeholder:
    """Replaces names that a module imports but does not use, as a value or as a base class."""

    def __init_subclass__(cls, **_: Any) -> None:
        pass

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


class _Resize(nn.Module):
    """Replaces torchvision's Resize, for tensors."""

    def __init__(self, size: list[int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(x, self.size, mode="bilinear", antialias=True)


class _StubModule(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # makes it a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name.islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        return {"DropPath": nn.Identity, "Resize": _Resize, **TRANSFORMS}.get(name, _Placeholder)


class _StubFinder:
    """Finds stubs for the packages of `_STUBBED` that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] in _STUBBED:
            return importlib.util.spec_from_loader(name, self)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _StubModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: a stub has no code."""


def load(root: Path, module: str, folder: str = "", repository: str = "") -> types.ModuleType:
    """Import `module` from the checkout at `root`, whose import root is `folder` in it.

    Raises BenchError if the file is missing, or needs a package that is not installed.
    """
    file = root / folder / (module.replace(".", "/") + ".py")
    if not file.is_file():
        source = f": git clone https://github.com/{repository}" if repository else "."
        raise BenchError(
            f"{root}: no {folder + '/' if folder else ''}{module.replace('.', '/')}.py in it. "
            f"Give a checkout{source}"
        )
    with _importing_from(root / folder, top=module.partition(".")[0]):
        try:
            return importlib.import_module(module)
        except ImportError as error:
            raise BenchError(f"{file.name} of {repository or root} cannot be imported: {error}.") from error


@contextmanager
def _importing_from(folder: Path, top: str) -> Iterator[None]:
    """Import from `folder` first, and remove its modules afterwards: several repositories have a package `net`."""
    finder: Any = _StubFinder()
    sys.path.insert(0, str(folder))
    sys.meta_path.append(finder)  # last, so that an installed package is preferred
    importlib.invalidate_caches()
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        for name in list(sys.modules):
            if name == top or name.startswith(f"{top}.") or isinstance(sys.modules[name], _StubModule):
                del sys.modules[name]
