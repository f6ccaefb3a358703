"""User-defined models: `package.module:Class`, imported from a folder or from an installed package."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import decode_source
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mirage.weights import WeightsError, read_checkpoint
from orchestrator.config.schema import UserModel
from orchestrator.errors import ModelError
from orchestrator.models.network_code import MAX_BYTES, Call, NetworkCode, explain, function, instance
from orchestrator.paths import absolute_uri

_WRAPPERS = (
    *("params_ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema"),
    *("params", "state_dict", "model_state_dict", "model", "net", "network"),
)
"""Keys under which public checkpoints store their parameters, averaged ones first."""
_COUNTERS = ("total_ops", "total_params")
"""Buffers that the profiler `thop` leaves in a network."""
_MAX_DEPTH = 2
"""Most parts of a prefix: `module._orig_mod.`. Deeper ones are layers."""
_MAX_NAMED = 40
"""Most tensors that an error names."""


def build(name: str, path: str | None, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a new network of the class `name` (package.module:Class), imported from the folder `path`.

    A relative path is relative to the project. Raises ModelError.
    """
    return instance(_import_for(name, path), name, arguments)


def import_call(name: str, path: str | None) -> Call:
    """Return the function `name` (package.module:function) that calls a network, imported as `build` does.

    Raises ModelError.
    """
    return function(_import_for(name, path), name)


def code(model: UserModel) -> NetworkCode:
    """Return the code of the network in a section `model`: its modules, and those that they import from beside them.

    Raises ModelError.
    """
    assert model.class_ is not None, "called for user-defined networks"
    arguments = dict(model.arguments)
    try:
        same = json.loads(json.dumps(arguments)) == arguments
    except TypeError:
        same = False
    if not same:
        raise ModelError(
            f"model.arguments {arguments}: must be text, numbers, lists, and mappings with text as keys."
        )
    files: dict[str, str] = {}
    imported: set[str] = set()
    for name in [model.class_, *([model.adapter] if model.adapter else [])]:
        found, names = _files(_import_for(name, model.path), anywhere=model.path is not None)
        files |= found
        imported |= names
    if sum(map(len, files.values())) > MAX_BYTES:
        raise ModelError(
            f"model.class {model.class_}: it and what it imports from beside it are more than "
            f"{MAX_BYTES / 2**20:.0f} MiB of source. Put the network into a folder of its own, "
            "and name it in model.path."
        )
    own = {path.partition("/")[0].removesuffix(".py") for path in files}
    return NetworkCode(model.class_, model.adapter, arguments, files, _distributions(imported - own))


def _distributions(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the installed distributions that provide these modules, with their versions."""
    providers = _providers()
    names = {name for module in modules for name in providers.get(module, ())}
    versions = {
        name: importlib.metadata.version(name) or "" for name in sorted(names - {"mirage-orchestrator"})
    }
    return tuple(f"{name}=={version.partition('+')[0]}" for name, version in versions.items() if version)


_READ: WeakKeyDictionary[ModuleType, tuple[dict[str, str], set[str]]] = WeakKeyDictionary()
"""What `_files` returned by module: a file that changes later is not what this process runs."""


def _files(module: ModuleType, *, anywhere: bool) -> tuple[dict[str, str], set[str]]:
    """Return the sources of a module and of what it imports from beside it, by path, and the names of other modules.

    anywhere: all modules below the folder that the module was imported from count, else those of its package only.
    """
    if module in _READ:
        return _READ[module]
    folder, first = _import_folder(module), module.__name__.partition(".")[0]
    waiting, seen = _parents(module.__name__), set()
    files: dict[str, str] = {}
    others: set[str] = set()
    size = 0
    while waiting and size <= MAX_BYTES:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        base = folder.joinpath(*name.split("."))
        for file in (base / "__init__.py", base.with_name(f"{base.name}.py")):
            if (anywhere or name.partition(".")[0] == first) and file.is_file():
                try:
                    source = file.read_bytes()
                    text = decode_source(source)
                except (OSError, SyntaxError, UnicodeError):  # Python could not import it either
                    break
                size += len(source)
                files[file.relative_to(folder).as_posix()] = text
                waiting += _imports(name if file.name == "__init__.py" else name.rpartition(".")[0], source)
                break
        else:
            others.add(name.partition(".")[0])
    _READ[module] = files, others
    return files, others


def source_digest(name: str, path: str | None) -> str:
    """Return a sha256 of the source that defines a class: its module, and what that imports from beside it.

    Raises ModelError.
    """
    module = _import_for(name, path)
    folder = _import_folder(module)
    waiting, sources = [module.__name__], {}
    while waiting:
        imported = sys.modules.get(waiting.pop())
        file = _file_of(imported)
        # A module of an installed package has that package's own name as the first folder below `folder`.
        if imported is None or imported.__name__ in sources or file.suffix != ".py":
            continue
        if not file.is_relative_to(folder):
            continue
        if file.relative_to(folder).with_suffix("").parts[0] != imported.__name__.partition(".")[0]:
            continue
        sources[imported.__name__] = file.read_bytes()
        waiting += _imports(imported.__package__ or "", sources[imported.__name__])
    digest = hashlib.sha256()
    for key in sorted(sources):
        digest.update(f"{key} {len(sources[key])}\n".encode() + sources[key])
    return digest.hexdigest()


def _import_folder(module: ModuleType) -> Path:
    """Return the folder that a module was imported from."""
    file = _file_of(module)
    return file.parents[module.__name__.count(".") + (file.name == "__init__.py")]


def _file_of(module: ModuleType | None) -> Path:
    return Path(getattr(module, "__file__", None) or "").resolve()


def _imports(package: str, source: bytes) -> list[str]:
    """Return the names of modules that a module of `package` imports, wherever in its source, and their parents."""
    found: list[str] = []
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError):  # a script beside the network, of another Python
        return []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            try:
                base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # above the outermost package
                continue
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [parent for name in found for parent in _parents(name)]


def _parents(name: str) -> list[str]:
    """Return the names of the packages of a module, from the outermost one, and its own."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def load_weights(network: nn.Module, data: bytes, where: str) -> None:
    """Load a safetensors file or a checkpoint of plain tensors into `network`, without running pickled code.

    The parameters may be below a key (`_WRAPPERS`) and under a prefix, as Lightning, BasicSR and DDP write them, beside
    those of other modules. Of several copies an averaged one is taken. Raises ModelError that lists what does not fit.
    """
    own = network.state_dict()
    best: tuple[int, dict[str, Tensor]] = (-1, {})
    for state in _states(data, where):
        for prefix in _prefixes(state, own):
            below = {
                key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
            }
            fitting = len(own.keys() & below.keys())
            if fitting > best[0]:
                best = fitting, below
    problems = _differences(own, best[1])
    if problems:
        shown = problems[:_MAX_NAMED] + (
            [f"and {len(problems) - _MAX_NAMED} more"] * (len(problems) > _MAX_NAMED)
        )
        raise ModelError(f"{where}: the tensors do not fit the network:\n  " + "\n  ".join(shown))
    network.load_state_dict(best[1])


def _prefixes(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes under which `state` may hold the network: of averaged weights first, then short ones."""
    found = {"", _shared_prefix(state)}
    for name in own:  # the first one that is there at all
        if any(key == name or key.endswith(f".{name}") for key in state):
            found |= {key.removesuffix(name) for key in state if key == name or key.endswith(f".{name}")}
            break
    found = {prefix for prefix in found if prefix.count(".") <= _MAX_DEPTH}
    return sorted(found, key=lambda prefix: ("ema" not in prefix.lower(), len(prefix)))


def _differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Return a line for each tensor that is missing, unknown, or of another shape."""
    missing = [f"{name} {_shape(own[name])} is missing" for name in own if name not in given]
    unknown = [f"{name} {_shape(given[name])} is unknown" for name in given if name not in own]
    others = [
        f"{name} is {_shape(given[name])} there and {_shape(tensor)} here"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    return [*others, *missing, *unknown]


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "1"


@cache
def _providers() -> Mapping[str, list[str]]:
    """Return the installed distributions of each module, which takes a second to find out."""
    return importlib.metadata.packages_distributions()


def _import_for(name: str, path: str | None) -> ModuleType:
    """Return the module of `name` (package.module:Class), imported from the folder `path`. Raises ModelError."""
    return _import(name.partition(":")[0], None if path is None else Path(absolute_uri(path)))


@contextlib.contextmanager
def hidden(path: str | None) -> Iterator[None]:
    """Hide the folder `path` of a section `model`, and what was imported from it, during the context."""
    if path is None:
        yield
        return
    folder = Path(absolute_uri(path)).resolve()
    before = sys.path[:]
    modules = {
        name: module
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) and _file_of(module).is_relative_to(folder)
    }
    for name in modules:
        del sys.modules[name]
    sys.path[:] = [entry for entry in before if Path(entry).resolve() != folder]
    try:
        yield
    finally:
        sys.path[:] = before
        sys.modules.update(modules)


def _import(name: str, folder: Path | None) -> ModuleType:
    if folder is not None and not folder.is_dir():
        raise ModelError(f"model.path {folder}: no such folder.")
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        where = f" in {folder}" if folder else ""
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not name.startswith(missing):
            raise ModelError(
                f"model.class: {name}{where} needs the package {missing}: pip install {missing}"
            ) from error
        raise ModelError(
            f"model.class: {name} cannot be imported{where}: {error}. model.path is the folder that holds "
            f"{name.partition('.')[0]}."
        ) from error
    except (Exception, SystemExit) as error:  # the user's code
        raise ModelError(f"model.class: {name} fails while it is imported: {explain(error)}.") from error
    origin = Path(getattr(module, "__file__", None) or "").resolve()
    if folder is not None and not origin.is_relative_to(folder.resolve()):
        raise ModelError(f"model.class: {name} was imported from {origin}, which hides the one in {folder}.")
    return module


def _states(data: bytes, where: str) -> list[dict[str, Tensor]]:
    """Return the sets of tensors in a file, those of averaged weights first. Raises ModelError."""
    try:
        return [dict(safetensors.torch.load(data))]
    except SafetensorError:
        pass  # then it is a torch checkpoint
    try:
        content = read_checkpoint(data)
    except WeightsError as error:
        raise ModelError(f"{where}: neither safetensors nor {error}") from error
    if not isinstance(content, dict):
        content = {}
    found = [content.get(key) for key in _WRAPPERS] + [content]
    states = [
        {key: value for key, value in state.items() if not str(key).endswith(_COUNTERS)}
        for state in found
        if isinstance(state, dict)
        and state
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    ]
    if not states:
        raise ModelError(f"{where}: has no parameters, and none of the keys {', '.join(_WRAPPERS)}.")
    return states


def _shared_prefix(state: Mapping[str, Tensor]) -> str:
    """Return the first part of all names with its dot, such as `net.`; "" if they differ."""
    firsts = {key.partition(".")[0] for key in state}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""
