"""Import and export of the authors' checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mirage import load, load_release, save
from mirage.config import ModelConfig
from mirage.cost import parameters
from mirage.weights import WeightsError, save_release


def import_checkpoint(checkpoint: Path, out: Path) -> str:
    """Write the weights of one of the authors' `.ckpt` files as safetensors and describe them.

    The configuration follows from the shapes. Raises WeightsError and writes nothing if the file is not such a
    checkpoint or `out` cannot be written.
    """
    _check_target(checkpoint, out, ".safetensors")
    model = load_release(checkpoint)
    _write(out, lambda: save(model, out, {"origin": f"release checkpoint {checkpoint.name}"}))
    return f"{checkpoint} -> {out}: {_describe(model.config)}"


def export_checkpoint(weights: Path, out: Path) -> str:
    """Write a safetensors file of this project as a `.ckpt` for the authors' test scripts, and describe it."""
    _check_target(weights, out, ".ckpt")
    model = load(weights)
    _write(out, lambda: save_release(model, out))
    return f"{weights} -> {out}: {_describe(model.config)}"


def _check_target(source: Path, out: Path, suffix: str) -> None:
    if not source.is_file():
        raise WeightsError(f"{source}: no such file.")
    if out.suffix != suffix:
        raise WeightsError(f"{out}: the result is a {suffix} file; give -o a name with this suffix.")
    if out.exists():
        raise WeightsError(f"{out} already exists: remove it, or give -o another name.")


def _write(out: Path, write: Callable[[], None]) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write()
    except OSError as error:
        raise WeightsError(f"{out}: cannot write the file ({error.strerror}).") from error


def _describe(config: ModelConfig) -> str:
    names = {ModelConfig.tiny(): "MIRAGE-T", ModelConfig.small(): "MIRAGE-S"}
    name = names.get(config, f"a network of dim {config.dim}")
    return f"{name}, {parameters(config):,} parameters"
