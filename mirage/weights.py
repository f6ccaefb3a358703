"""Weights on disk and on the wire: safetensors with the configuration in the header; a file is enough."""

from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from mirage.config import ModelConfig
from mirage.model import MIRAGE
from mirage.padding import padded
from mirage.release import PREFIX, from_release, release_state_dict

__all__ = [
    "WeightsError",
    "dumps",
    "load",
    "load_release",
    "loads",
    "read_metadata",
    "release_state_dict",
    "save",
    "save_release",
]

LIGHTNING = "2.6.0"
"""Version of Lightning that the release asks for, whose layout `save_release` writes."""

CONFIG_KEY = "mirage.config"
"""Header entry that holds the configuration as JSON."""


class WeightsError(ValueError):
    """A file or a string of bytes does not hold the weights of a MIRAGE."""


def dumps(model: MIRAGE, metadata: Mapping[str, str] | None = None) -> bytes:
    """The weights and configuration of `model` as the bytes of a safetensors file.

    metadata: further header entries, text to text.
    """
    _refuse_padded(model)
    header = {**(metadata or {}), CONFIG_KEY: json.dumps(model.config.to_dict())}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return safetensors.torch.save(tensors, header)


def loads(data: bytes, device: str | torch.device = "cpu", training: bool = False) -> MIRAGE:
    """The model whose `dumps` is `data`, in eval mode unless `training`."""
    header = read_metadata(data)
    if CONFIG_KEY not in header:
        raise WeightsError(
            "a safetensors file, but its header has no configuration: not written by mirage.save. "
            "The authors' checkpoints are read by mirage.load_release."
        )
    try:
        config = ModelConfig.from_dict(json.loads(header[CONFIG_KEY]))
        tensors = safetensors.torch.load(data)
    except (SafetensorError, TypeError, ValueError) as error:
        raise WeightsError(f"unreadable weights: {error}") from error
    model = MIRAGE(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"the tensors do not fit their own configuration: {error}") from error
    return model.to(device).train(training)


def read_metadata(data: bytes) -> dict[str, str]:
    """The header entries of a safetensors file's bytes."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise WeightsError(f"not a safetensors file, or cut short: {len(data)} bytes.")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise WeightsError("not a safetensors file: its header is no JSON.") from error
    entries = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return {str(name): str(value) for name, value in entries.items()}


def save(model: MIRAGE, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write `dumps` to a file; a reader sees the old file or the new one, never a part."""
    _replace(Path(path), dumps(model, metadata))


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    training: bool = False,
    *,
    align: int = 1,
) -> MIRAGE:
    """The model that `save` wrote, in eval mode unless `training`.

    align: pad hidden widths with zeros to multiples of this, 8 for inference on a GPU; see `mirage.padding`.
    """
    if training and align != 1:
        raise ValueError(f"align={align}: padded weights are for inference. Train without.")
    try:
        model = loads(Path(path).read_bytes(), device, training)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return model if align == 1 else padded(model, align)


def load_release(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", training: bool = False
) -> MIRAGE:
    """The model of one of the authors' Lightning checkpoints, without Lightning or unpickling code."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # whose own words advise to let the file run its code
        raise WeightsError(
            f"{path}: not a PyTorch checkpoint of plain tensors and values. Code that a file brings is never run: "
            "save it again without."
        ) from error
    except (RuntimeError, EOFError) as error:
        raise WeightsError(
            f"{path}: not a PyTorch checkpoint of plain tensors and values ({str(error).splitlines()[0]})"
        ) from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: no `state_dict` inside; a Lightning checkpoint has one.")
    outside = [name for name in state if not name.startswith(PREFIX)]
    if outside:
        raise WeightsError(f"{path}: {outside[0]} is not under `{PREFIX}` as the release's weights are.")
    try:
        model = from_release({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from error
    return model.to(device).train(training)


def save_release(model: MIRAGE, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that the authors' own code loads; `load_release` is the inverse.

    Plain tensors under their names, in the layout that Lightning reads weights from. Raises WeightsError when the
    release has no such network.
    """
    _refuse_padded(model)
    try:
        state = release_state_dict(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    buffer = io.BytesIO()
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    # Lightning reads the version before anything else, to decide whether to migrate an older layout.
    version = {"pytorch-lightning_version": LIGHTNING}
    torch.save({"state_dict": tensors, "epoch": 0, "global_step": 0, **version}, buffer)
    _replace(Path(path), buffer.getvalue())


def _refuse_padded(model: MIRAGE) -> None:
    if model.hidden_multiple > 1:
        raise WeightsError(
            f"the hidden widths of this model are padded to multiples of {model.hidden_multiple} for inference, and "
            "its configuration does not say so. Save the model that it was made of."
        )


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
