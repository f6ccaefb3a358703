"""Find the weights that a MODEL argument names: on a command line, in a job and in the service.

weights.safetensors              a weights file
3Deg_tiny.ckpt                   a checkpoint of the authors
models:/mirage-5deg@champion     a registered model by alias, or by version: models:/mirage-5deg/3
demo-1f2e3d4c                    a finished run by its name or its MLflow id; also runs:/<MLflow id>
s3://bucket/runs/demo-1f2e3d4c   a finished run by its folder in the store, which may be a local one
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mirage import load_release
from mirage.weights import WeightsError, dumps
from orchestrator.errors import DamagedResultError, RegistryError, TrackingError, UntrustedCodeError
from orchestrator.masking import without_password
from orchestrator.models import network_file, trust
from orchestrator.models.network_code import NetworkCode
from orchestrator.models.network_file import RestoringNetwork
from orchestrator.paths import below, home
from orchestrator.registry import versions
from orchestrator.run_files import RESULT, RUN_TAG, WEIGHTS, read_result
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri, sqlite_file
from shards.errors import CorruptObjectError, MissingObjectError
from shards.filesystem import expand_user
from shards.store import checked, open_store

_CHECKPOINTS = (".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class ModelFile:
    """A weights file on this machine."""

    name: str
    """The MODEL argument."""
    path: Path
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    trusted: frozenset[str] = field(default=frozenset(), repr=False)
    """Digests of the code that may run, if the model brings code."""

    def data(self) -> bytes:
        """Return the bytes of the file. Raises RegistryError unless they are those whose digest this is.

        So what is read to ask for consent and what is read to run are the same.
        """
        data = self.path.read_bytes()
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise RegistryError(
                f"{self.name}: {self.path} was replaced while it was used. Run the command again."
            )
        return data

    def load(self, device: torch.device) -> RestoringNetwork:
        """Return the model in eval mode. Raises WeightsError, and ModelError if it brings code that may not run."""
        return self._loaded(device)[0]

    def weights(self) -> bytes:
        """Return the model as safetensors, after loading it once. Raises WeightsError and ModelError as `load`."""
        return self._loaded(torch.device("cpu"))[1]

    def code(self) -> NetworkCode | None:
        """Return the code that the model brings, None for a MIRAGE; nothing is run. Raises ModelError, WeightsError."""
        return None if self._is_release else network_file.code_of(self.data())

    def require_consent(self) -> None:
        """Raise UntrustedCodeError if the model brings code that may not run."""
        if not self._is_release:
            self._require_consent(self.data())

    def _require_consent(self, data: bytes) -> None:
        if code := network_file.code_of(data):
            try:
                network_file.require_consent(code, self.trusted, self.name)
            except UntrustedCodeError as error:
                raise UntrustedCodeError(f"{self.name}: {error}") from error

    @property
    def _is_release(self) -> bool:
        return self.path.suffix in _CHECKPOINTS

    def _loaded(self, device: torch.device) -> tuple[RestoringNetwork, bytes]:
        if self._is_release:
            model = load_release(self.path, device)
            return network_file.restoring(model), dumps(model)
        data = self.data()
        try:
            self._require_consent(data)
            return network_file.loads(data, device, trusted=self.trusted), data
        except WeightsError as error:
            raise WeightsError(f"{self.path}: {error}") from error


def find_model(name: str, tracking_uri: str | None = None, trust_code: Collection[str] = ()) -> ModelFile:
    """Return the weights that `name` names, downloaded once if they are remote. Raises RegistryError.

    Registered models and runs are searched at `tracking_uri`, by default this project's store. trust_code: digests of
    code that may run, besides that of this project's training jobs.
    """
    try:
        path = _path(name, resolve_tracking_uri(tracking_uri))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return ModelFile(name, path, digest, trust.trusted(trust_code))
    except OSError as error:  # no permission, a full disk
        raise RegistryError(f"{name}: the weights cannot be read: {error}") from error


def _path(name: str, uri: str) -> Path:
    if name.startswith("models:/"):
        return versions.weights_file(name, uri)
    if name.startswith("runs:/"):
        folder = _run_folder(name.removeprefix("runs:/").strip("/"), uri)
        return _weights_of_run(name, folder) if folder else versions.weights_file(name, uri)
    if "://" in name:
        return _weights_of_run(name, name)
    path = expand_user(name)
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
    """Return the store folder of the run with this name or MLflow id, None if there is none."""
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        return None
    try:
        found = runs.find_run(uri, RUN_TAG, name)
    except TrackingError as error:
        raise RegistryError(f"{name}: {error}") from error
    if found is None or RUN_TAG not in found.tags or "storage" not in found.params:
        return None
    return f"{below(found.params['storage'], 'runs')}/{found.tags[RUN_TAG]}"


def _weights_of_run(name: str, folder: str) -> Path:
    """Return the weights of the finished run in a store folder: in place if it is local, else a cached copy."""
    store = open_store(folder)
    try:
        key = read_result(store)["weights"]
    except MissingObjectError as error:
        raise RegistryError(
            f"{name}: {folder} holds no finished run (no {RESULT}). Name a finished run or a weights file."
        ) from error
    except DamagedResultError as error:
        raise RegistryError(f"{name}: {error}") from error
    try:
        if "://" not in folder:
            path = Path(folder, key)
            checked.check_file(path, checked.digest_in(key))
            return path
        cached = home() / "models" / checked.digest_in(key) / WEIGHTS
        if cached.is_file():
            with suppress(CorruptObjectError):  # a kept copy that is damaged is downloaded again
                checked.check_file(cached, checked.digest_in(key))
                return cached
        checked.download_named(store, key, cached)
    except CorruptObjectError as error:
        raise RegistryError(f"{name}: the weights are damaged: {error}") from error
    return cached
