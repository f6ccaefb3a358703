"""Which weights a MODEL names, on a command line, in a job and for a service alike.

weights.safetensors              a file of ours
3Deg_tiny.ckpt                   a checkpoint of the authors
models:/mirage-5deg@champion     a registered model by alias, or by version: models:/mirage-5deg/3
demo-1f2e3d4c                    a finished run by its name or its MLflow id; also runs:/<MLflow id>
s3://bucket/runs/demo-1f2e3d4c   a finished run by its folder in the store, which may be a local one
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from mirage import MIRAGE, load, load_release
from orchestrator.errors import RegistryError, TrackingError
from orchestrator.paths import below, home
from orchestrator.registry import client as registry
from orchestrator.run_files import RESULT, RUN_TAG, WEIGHTS
from orchestrator.tracking import client as tracking
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file, without_password
from shards.errors import MissingObjectError
from shards.store import open_store

_CHECKPOINTS = (".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class NamedModel:
    """Weights that were found: a file on this machine."""

    name: str
    """As the user wrote it."""
    path: Path
    digest: str
    """SHA-256 of the file, in hexadecimal: what tells one model from another."""

    def load(self, device: torch.device) -> MIRAGE:
        """Return the model in eval mode. Raises WeightsError."""
        read = load_release if self.path.suffix in _CHECKPOINTS else load
        return read(self.path, device)


def find_model(name: str, tracking_uri: str | None = None) -> NamedModel:
    """Return the weights that `name` stands for; what is remote is fetched once. Raises RegistryError.

    Registered models and tracked runs are looked for at `tracking_uri`, by default where this project tracks.
    """
    try:
        path = _path(name, resolve_tracking_uri(tracking_uri))
        return NamedModel(name, path, hashlib.sha256(path.read_bytes()).hexdigest())
    except OSError as error:  # no permission, a full disk
        raise RegistryError(f"{name}: the weights cannot be had: {error}") from error


def _path(name: str, uri: str) -> Path:
    if name.startswith("models:/"):
        return registry.resolve(name, uri)
    if name.startswith("runs:/"):
        folder = _run_folder(name.removeprefix("runs:/").strip("/"), uri)
        return _weights_of_run(name, folder) if folder else registry.resolve(name, uri)
    if "://" in name:
        return _weights_of_run(name, name)
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _weights_of_run(name, str(path))
    folder = None if "/" in name or path.suffix else _run_folder(name, uri)
    if folder is None:
        raise RegistryError(
            f"{name}: no such file, and no run of that name is tracked at {without_password(uri)}. A registered model "
            "is written models:/NAME@ALIAS."
        )
    return _weights_of_run(name, folder)


def _run_folder(name: str, uri: str) -> str | None:
    """Return the folder in the store of the tracked run that has this name or MLflow id; None if there is none."""
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        return None
    try:
        found = tracking.find_params(uri, RUN_TAG, name)
    except TrackingError as error:
        raise RegistryError(f"{name}: {error}") from error
    if found is None:
        return None
    run_id, params = found
    return f"{below(params['storage'], 'runs')}/{run_id}" if "storage" in params else None


def _weights_of_run(name: str, folder: str) -> Path:
    """Return the weights of the run in `folder` of a store: in place if that is here, else a kept copy."""
    store = open_store(folder)
    try:
        key = str(json.loads(store.read(RESULT))["weights"])
    except MissingObjectError as error:
        raise RegistryError(
            f"{name}: {folder} holds no finished run (no {RESULT}). Name a run that has ended, or a weights file."
        ) from error
    except (ValueError, KeyError) as error:
        raise RegistryError(f"{name}: {folder}/{RESULT} is not the result of a run.") from error
    if "://" not in folder:
        return Path(folder, key)
    kept = home() / "models" / Path(key).stem / WEIGHTS
    if not kept.is_file():
        store.download(key, kept)
    return kept
