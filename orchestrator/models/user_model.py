"""User-defined models: `package.module:Class`, imported from a folder or from an installed package."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping
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

_WRAPPERS = ("params_ema", "params", "state_dict", "model", "model_state_dict")
"""Keys under which public checkpoints store their parameters."""


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
    return tuple(f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in sorted(names))


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
                source = file.read_bytes()
                size += len(source)
                files[file.relative_to(folder).as_posix()] = decode_source(source)
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
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [parent for name in found for parent in _parents(name)]


def _parents(name: str) -> list[str]:
    """Return the names of the packages of a module, from the outermost one, and its own."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def load_weights(network: nn.Module, data: bytes, where: str) -> None:
    """Load a safetensors file or a checkpoint of plain tensors into `network`, without running pickled code.

    A common prefix of all names, as wrappers add it (`net.`, `module.`), is removed. Raises ModelError.
    """
    state = _state(data, where)
    own = set(network.state_dict())
    prefix = _shared_prefix(state)
    if prefix and not own & set(state):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        missing, unknown = sorted(own - set(state)), sorted(set(state) - own)
        problems = [f"{len(missing)} of {len(own)} are missing, first {missing[0]}"] if missing else []
        problems += [f"{len(unknown)} are unknown, first {unknown[0]}"] if unknown else []
        problems = problems or [str(error).splitlines()[-1].strip()]
        raise ModelError(f"{where}: the tensors do not fit the network: {'; '.join(problems)}.") from error


@cache
def _providers() -> Mapping[str, list[str]]:
    """Return the installed distributions of each module, which takes a second to find out."""
    return importlib.metadata.packages_distributions()


def _import_for(name: str, path: str | None) -> ModuleType:
    """Return the module of `name` (package.module:Class), imported from the folder `path`. Raises ModelError."""
    return _import(name.partition(":")[0], None if path is None else Path(absolute_uri(path)))


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


def _state(data: bytes, where: str) -> dict[str, Tensor]:
    try:
        return dict(safetensors.torch.load(data))
    except SafetensorError:
        pass  # then it is a torch checkpoint
    try:
        content = read_checkpoint(data)
    except WeightsError as error:
        raise ModelError(f"{where}: neither safetensors nor {error}") from error
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    ):
        raise ModelError(f"{where}: has no parameters, and none of the keys {', '.join(_WRAPPERS)}.")
    return content


def _shared_prefix(state: Mapping[str, Tensor]) -> str:
    """Return the first part of all names with its dot, such as `net.`; "" if they differ."""
    firsts = {key.partition(".")[0] for key in state}
    return f"{firsts.pop()}." if len(firsts) == 1 else ""
