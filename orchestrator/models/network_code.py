"""The source code of a user-defined network, as a weights file carries it, and its import.

A registered version carries this module too (see `registry.registration`), so it imports nothing above `errors`.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import linecache
import re
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, cast

from torch import Tensor, nn

from ..errors import ModelError

Call = Callable[[nn.Module, Tensor, Tensor | None], object]
"""From a network, degraded images and the indices of their degradations (None: unknown) to its output."""

MAX_BYTES = 8 * 2**20
"""Largest source of a network: a folder of scripts has a hundredth of it."""
_FILE = re.compile(r"([A-Za-z_]\w*/)*[A-Za-z_]\w*\.py", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_DISTRIBUTION = re.compile(r"\w[\w.-]*==[\w.!+-]+", re.ASCII)
_LOCK = threading.RLock()
"""Held while `sys.modules` has the modules of a network that was read from a file."""


@dataclass(frozen=True)
class NetworkCode:
    """What builds a user-defined network: its class, the arguments, the adapter, and the source of their modules."""

    class_: str
    """package.module:Class."""
    adapter: str | None
    """package.module:function."""
    arguments: Mapping[str, Any]
    files: Mapping[str, str]
    """Source text by path, such as `net/model.py`, relative to the folder that is imported from."""
    requires: tuple[str, ...] = ()
    """Distributions that the source imports, with their versions: `einops==0.8.1`."""

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of the source, the names in it that are called, and the arguments."""
        values = self._values()
        del values["requires"]  # what is installed here runs, whatever a file says
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()

    def dumps(self) -> str:
        """Return the code as JSON."""
        return json.dumps(self._values())

    def _values(self) -> dict[str, Any]:
        # The order of files means nothing; that of the arguments' mappings may be the order of layers.
        return {**asdict(self), "files": dict(sorted(self.files.items()))}

    @classmethod
    def loads(cls, text: str) -> NetworkCode:
        """Return the code in JSON, which may come from anybody; nothing in it is run. Raises ModelError."""
        try:
            values = json.loads(text)
            code = cls(**{**values, "requires": tuple(values["requires"])})
            for source in code.files.values():
                source.encode()  # raises ValueError for half of a character pair
            _ = code.digest  # raises RecursionError where the arguments are too deep
            well_formed = (
                all(_is(_NAME, name) for name in (code.class_, code.adapter or code.class_))
                and isinstance(code.arguments, dict)
                and all(_is(_FILE, path) for path in code.files)
                and all(isinstance(source, str) for source in code.files.values())
                and all(_is(_DISTRIBUTION, name) for name in code.requires)
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ModelError(f"the description of the network's code cannot be read: {error}") from error
        if not well_formed:
            raise ModelError("the description of the network's code is malformed.")
        return code

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules in `files`."""
        return tuple(
            sorted(
                path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in self.files
            )
        )

    def build(self) -> tuple[nn.Module, Call | None]:
        """Run the code: return a new network of the class, and the adapter. Raises ModelError.

        The modules are imported under their own names without touching those of the same name in this process.
        """
        space = _ModuleSpace(self)
        with space.active():
            network = instance(self._module(self.class_), self.class_, self.arguments)
            call = None if self.adapter is None else function(self._module(self.adapter), self.adapter)
        return network, call

    def _module(self, name: str) -> ModuleType:
        module_name = name.partition(":")[0]
        if module_name not in self.modules:
            raise ModelError(f"{name}: the file has no source of {module_name}.")
        try:
            return importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            packages = " ".join(self.requires) or error.name
            raise ModelError(f"the network's code needs {error.name}: pip install {packages}") from error
        except (Exception, SystemExit) as error:  # the user's code
            raise ModelError(f"{module_name} fails while it is imported: {explain(error)}.") from error


def instance(module: ModuleType, name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a new network of the class `name` (package.module:Class) in `module`. Raises ModelError."""
    module_name, _, class_name = name.partition(":")
    class_ = getattr(module, class_name, None)
    if not (isinstance(class_, type) and issubclass(class_, nn.Module)):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, nn.Module)]
        raise ModelError(
            f"model.class {name}: {module_name} has no torch.nn.Module of that name. It has: "
            f"{', '.join(classes) or 'none'}."
        )
    try:
        network: nn.Module = class_(**arguments)
    except TypeError as error:
        raise ModelError(f"model.arguments do not fit {name}: {error}.") from error
    except (Exception, SystemExit) as error:  # the user's code
        raise ModelError(f"{name} cannot be built: {explain(error)}.") from error
    return network


def function(module: ModuleType, name: str) -> Call:
    """Return the function `name` (package.module:function) in `module` that calls a network. Raises ModelError."""
    module_name, _, function_name = name.partition(":")
    found = getattr(module, function_name, None)
    if not callable(found):
        raise ModelError(f"model.adapter {name}: {module_name} has no function of that name.")
    return cast(Call, found)


def explain(error: BaseException) -> str:
    """Return an error of the user's code with its type and its innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


class _ModuleSpace:
    """The modules of one network. They are in `sys.modules` only while one of them imports."""

    def __init__(self, code: NetworkCode) -> None:
        self._files = code.files
        self._first = {path.partition("/")[0].removesuffix(".py") for path in code.files}
        self._modules: dict[str, ModuleType] = {}
        self._active = False
        self._builtins = {**vars(builtins), "__import__": self._import}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Exchange the modules of the same names in `sys.modules` for these, inside the context."""
        with _LOCK:
            if self._active:
                yield
                return
            hidden = self._taken_out()
            sys.modules.update(self._modules)
            finder = _Finder(self._files, self._first, self._builtins)
            sys.meta_path.insert(0, finder)
            self._active = True
            try:
                yield
            finally:
                self._active = False
                sys.meta_path.remove(finder)
                self._modules = self._taken_out()
                sys.modules.update(hidden)
                finder.close()

    def _taken_out(self) -> dict[str, ModuleType]:
        # A copy of the names: other threads may import at the same time.
        names = [name for name in list(sys.modules) if name.partition(".")[0] in self._first]
        return {name: sys.modules.pop(name) for name in names}

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Import as `__import__` does, for statements in functions of the network as well."""
        own = level > 0 or name.partition(".")[0] in self._first
        with self.active() if own else contextlib.nullcontext():
            return __import__(name, globals, locals, fromlist or (), level)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of one network, whose files it writes when the first one is imported."""

    def __init__(self, files: Mapping[str, str], first: set[str], builtins: Mapping[str, object]) -> None:
        self._files = files
        self._first = first
        self._builtins = builtins
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """Delete the files."""
        if self._folder is not None:
            self._folder.cleanup()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module, a package or a namespace package; None for others."""
        if name.partition(".")[0] not in self._first:
            return None
        place = self._written().joinpath(*name.split("."))
        for file, inside in (
            (place / "__init__.py", [str(place)]),
            (place.with_name(f"{place.name}.py"), None),
        ):
            if file.is_file():
                loader = _Loader(name, str(file), self._builtins)
                return importlib.util.spec_from_file_location(
                    name, file, loader=loader, submodule_search_locations=inside
                )
        if not place.is_dir():
            return None
        namespace = ModuleSpec(name, None, is_package=True)
        namespace.submodule_search_locations = [str(place)]
        return namespace

    def _written(self) -> Path:
        if self._folder is not None:
            return Path(self._folder.name)
        self._folder = tempfile.TemporaryDirectory(prefix="mirage-network-")
        for path, text in self._files.items():
            file = Path(self._folder.name, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", newline="")
            # For tracebacks and `inspect.getsource` after the file is gone.
            linecache.cache[str(file)] = (len(text), None, text.splitlines(keepends=True), str(file))
        return Path(self._folder.name)


class _Loader(SourceFileLoader):
    """Runs a module of a network with the imports of its network."""

    def __init__(self, name: str, path: str, builtins: Mapping[str, object]) -> None:
        super().__init__(name, path)
        self._builtins = builtins

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's code in its namespace."""
        module.__dict__["__builtins__"] = self._builtins
        super().exec_module(module)

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        """Compile the text, which is UTF-8 here whatever encoding its first lines name."""
        return compile(bytes(data).decode(), path, "exec", dont_inherit=True, optimize=_optimize)


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
