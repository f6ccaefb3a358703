"""Weights files: safetensors with the model's configuration in the header."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import struct
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from mirage.config import ModelConfig
from mirage.cost import parameters
from mirage.model import MIRAGE
from mirage.padding import padded
from mirage.release import PREFIX, from_release, release_state_dict

__all__ = [
    "WeightsError",
    "dumps",
    "load",
    "load_release",
    "loads",
    "not_finite",
    "read_checkpoint",
    "read_metadata",
    "release_state_dict",
    "save",
    "save_release",
    "to_bytes",
]

LIGHTNING = "2.6.0"
"""Version of Lightning that the release requires; `save_release` writes its checkpoint layout."""

_MAX_HEADER = 100_000_000
"""Maximum bytes of a header, as safetensors has it."""
CONFIG_KEY = "mirage.config"
"""Name of the header entry that holds the configuration as JSON."""


class WeightsError(ValueError):
    """A file or bytes that are not the weights of a MIRAGE model."""


def dumps(model: MIRAGE, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the weights and configuration of `model` as the bytes of a safetensors file.

    metadata: further header entries.
    """
    _refuse_padded(model)
    header = {**(metadata or {}), CONFIG_KEY: json.dumps(model.config.to_dict())}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return to_bytes(tensors, header)


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return tensors as a safetensors file whose bytes depend on them and the metadata alone.

    safetensors writes the entries of the metadata in random order; here they are sorted.
    """
    data = safetensors.torch.save(dict(tensors), dict(metadata) if metadata else None)
    if not metadata:
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + data[end:]


def not_finite(model: nn.Module) -> list[str]:
    """Return the names of the weights and running statistics that hold an infinite value or NaN.

    Other buffers may: masks hold minus infinity.
    """
    statistics = ("running_mean", "running_var")
    tensors = [
        *model.named_parameters(),
        *((name, buffer) for name, buffer in model.named_buffers() if name.endswith(statistics)),
    ]
    return [name for name, tensor in tensors if not bool(tensor.detach().isfinite().all())]


def loads(data: bytes, device: str | torch.device = "cpu", training: bool = False) -> MIRAGE:
    """Return the model that `dumps` wrote, in eval mode unless `training`."""
    header = read_metadata(data)
    if CONFIG_KEY not in header:
        raise WeightsError(
            "a safetensors file, but its header has no configuration: not written by mirage.save. "
            "Read the authors' checkpoints with mirage.load_release."
        )
    try:
        config = ModelConfig.from_dict(json.loads(header[CONFIG_KEY]))
        if parameters(config) > len(data):  # before a network is built that no memory holds
            raise ValueError(
                f"{len(data):,} bytes do not fit {parameters(config):,} parameters of their own configuration"
            )
        tensors = safetensors.torch.load(data)
    except (SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"unreadable weights: {error}") from error
    model = MIRAGE(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise WeightsError(f"the tensors do not fit their own configuration: {error}") from error
    return model.to(device).train(training)


def read_metadata(data: bytes) -> dict[str, str]:
    """Return the header entries in the bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _MAX_HEADER):
        raise WeightsError(f"not a safetensors file, or truncated: {len(data)} bytes.")
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise WeightsError("not a safetensors file: its header is not JSON.") from error
    entries = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if not isinstance(entries, dict):
        raise WeightsError("not a safetensors file: its metadata is not an object.")
    return {str(name): str(value) for name, value in entries.items()}


def save(model: MIRAGE, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Write the result of `dumps` to a file, atomically."""
    _replace(Path(path), dumps(model, metadata))


def load(
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    training: bool = False,
    *,
    align: int = 1,
) -> MIRAGE:
    """Return the model that `save` wrote, in eval mode unless `training`.

    align: pad hidden widths with zeros to multiples of this; 8 suits inference on a GPU, see `mirage.padding`.
    """
    if training and align != 1:
        raise ValueError(f"align={align}: padded weights are for inference only. Remove align to train.")
    try:
        model = loads(Path(path).read_bytes(), device, training)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return model if align == 1 else padded(model, align)


def read_checkpoint(data: bytes) -> Any:
    """Return the plain tensors and values in a PyTorch checkpoint. Raises WeightsError; pickled code is never run."""
    refused = "not a PyTorch checkpoint of plain tensors and values"
    if b"\nbytearray\n" in data or _unpacked_size(data) > len(data):
        raise WeightsError(f"{refused}: it would take far more memory than its size.")
    try:
        # Lightning writes the arguments of a script beside the tensors; a Namespace holds values and runs nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its message recommends to allow arbitrary code
        raise WeightsError(
            f"{refused}. Pickled code is never run: save the file again without it."
        ) from error
    except Exception as error:  # torch.load raises errors of any type for damaged files
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise WeightsError(f"{refused} ({reason})") from error


def _unpacked_size(data: bytes) -> int:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # zipfile raises it for a compression or a version that it does not know
        ValueError,
        OSError,
        struct.error,
    ):
        return 0  # an older layout, or damaged: torch says so


def load_release(
    path: str | os.PathLike[str], device: str | torch.device = "cpu", training: bool = False
) -> MIRAGE:
    """Return the model in one of the authors' Lightning checkpoints, without Lightning or running pickled code."""
    try:
        checkpoint = read_checkpoint(Path(path).read_bytes())
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    state = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: no `state_dict` inside, which a Lightning checkpoint has.")
    outside = [name for name in state if not (isinstance(name, str) and name.startswith(PREFIX))]
    if outside:
        raise WeightsError(f"{path}: {outside[0]} is not under `{PREFIX}`, unlike the release's weights.")
    try:
        model = from_release({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    except (ValueError, RuntimeError) as error:  # also tensors that are sparse or have no storage
        raise WeightsError(f"{path}: {error}") from error
    return model.to(device).train(training)


def save_release(model: MIRAGE, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that the authors' code loads; `load_release` is the inverse.

    It has plain tensors under the release's names in Lightning's layout. Raises WeightsError if the release has no such
    network.
    """
    _refuse_padded(model)
    try:
        state = release_state_dict(model)
    except ValueError as error:
        raise WeightsError(str(error)) from error
    buffer = io.BytesIO()
    tensors = {PREFIX + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    # Lightning reads the version first, to decide whether to migrate an older layout.
    version = {"pytorch-lightning_version": LIGHTNING}
    torch.save({"state_dict": tensors, "epoch": 0, "global_step": 0, **version}, buffer)
    _replace(Path(path), buffer.getvalue())


def _refuse_padded(model: MIRAGE) -> None:
    if model.hidden_multiple > 1:
        raise WeightsError(
            f"the hidden widths of this model are padded to multiples of {model.hidden_multiple} for inference, and "
            "its configuration does not say so. Save the original model."
        )


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, with the mode that the umask gives. Raises WeightsError."""
    partial = path.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        partial.unlink(missing_ok=True)
