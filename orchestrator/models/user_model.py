"""User-defined models: `package.module:Class`, imported from a folder or from an installed package."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mirage.weights import WeightsError, read_checkpoint
from orchestrator.errors import ModelError
from orchestrator.paths import absolute_uri

_WRAPPERS = ("params_ema", "params", "state_dict", "model", "model_state_dict")
"""Keys under which public checkpoints store their parameters."""


def build(name: str, path: str | None, arguments: Mapping[str, Any]) -> nn.Module:
    """Return a new network of the class `name` (package.module:Class), imported from the folder `path`.

    A relative path is relative to the project. Raises ModelError.
    """
    module_name, _, class_name = name.partition(":")
    module = _import(module_name, None if path is None else Path(absolute_uri(path)))
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
        raise ModelError(f"{name} cannot be built: {_told(error)}.") from error
    return network


Call = Callable[[nn.Module, Tensor, Tensor | None], object]
"""From a network, degraded images and the indices of their degradations (None: unknown) to its output."""


def import_call(name: str, path: str | None) -> Call:
    """Return the function `name` (package.module:function) that calls a network, imported as `build` does.

    Raises ModelError.
    """
    module_name, _, function_name = name.partition(":")
    module = _import(module_name, None if path is None else Path(absolute_uri(path)))
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(f"model.adapter {name}: {module_name} has no function of that name.")
    return cast(Call, function)


def call_with_image(network: nn.Module, degraded: Tensor, labels: Tensor | None) -> object:
    """Call a network that takes images alone."""
    return network(degraded)


def source_digest(name: str, path: str | None) -> str:
    """Return a sha256 of the source that defines a class: its module, and what that imports from beside it.

    Raises ModelError.
    """
    module = _import(name.partition(":")[0], None if path is None else Path(absolute_uri(path)))
    folder = _file_of(module).parents[module.__name__.count(".") + (_file_of(module).name == "__init__.py")]
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
        waiting += _imports(imported, sources[imported.__name__])
    digest = hashlib.sha256()
    for key in sorted(sources):
        digest.update(f"{key} {len(sources[key])}\n".encode() + sources[key])
    return digest.hexdigest()


def _file_of(module: ModuleType | None) -> Path:
    return Path(getattr(module, "__file__", None) or "").resolve()


def _imports(module: ModuleType, source: bytes) -> list[str]:
    """Return the names of modules that a module imports, wherever in its source."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [
        ".".join(parts[: n + 1]) for parts in (name.split(".") for name in found) for n in range(len(parts))
    ]


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


def outputs_of(output: object) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the image and the loss terms of what a network, or its adapter, returned. Raises ModelError."""
    terms: object = {}
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[1], Mapping):
        output, terms = output
    assert isinstance(terms, Mapping)
    for name, term in terms.items():
        if not (isinstance(name, str) and isinstance(term, Tensor) and term.ndim <= 1):
            raise ModelError(
                f"model.adapter returned {name!r}: a loss term is a tensor with one number, or with one for each image."
            )
    return image_of(output), dict(terms)


def image_of(output: object) -> Tensor:
    """Return the restored image from the output of a network: a tensor, the first of several, or `.image`."""
    image = getattr(output, "image", output)
    if isinstance(image, tuple | list) and image:
        image = image[0]
    if not isinstance(image, Tensor):
        raise ModelError(
            f"the network returned {type(output).__name__}: it must return a tensor or a tuple that begins with one."
        )
    return image


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
        raise ModelError(f"model.class: {name} fails while it is imported: {_told(error)}.") from error
    origin = Path(getattr(module, "__file__", None) or "").resolve()
    if folder is not None and not origin.is_relative_to(folder.resolve()):
        raise ModelError(f"model.class: {name} was imported from {origin}, which hides the one in {folder}.")
    return module


def _told(error: BaseException) -> str:
    """Return an error of the user's code with its type and its innermost line."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


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
