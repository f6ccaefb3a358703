"""Find registered model versions in MLflow and read what they carry.

    models:/mirage-5deg@champion     models:/mirage-5deg/3     runs:/<run id>     weights.safetensors

A version consists of code (`pyfunc_model.py` and the package `mirage`) and a safetensors file, which holds the code of
a user-defined network as well. It needs no pickle, so it loads with MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false, and it
takes images of any size.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from orchestrator.errors import RegistryError, RegistryUnavailableError
from orchestrator.masking import without_password
from orchestrator.paths import home
from orchestrator.run_files import WEIGHTS
from orchestrator.tracking.client import connect
from orchestrator.tracking.failures import explain
from shards.listing import digest_of, list_folder
from shards.store import checked

KEY_TAG = "mirage.idempotency_key"
DIGEST_TAG = "mirage.weights_sha256"
FILE_TAG = "mirage.sha256."
"""Prefix of the tags that hold the SHA-256 of each file of a version; the file's name follows."""
CODE_TAG = "mirage.code_sha256"
"""Digest of the package `mirage` in a version, as computed by `shards.listing`."""
NETWORK_TAG = "mirage.network_sha256"
"""Digest of the code of a user-defined network, which is in the header of the weights."""
CODE_VERSION_TAG = "mirage.code_version"
"""Release and commit that trained the version."""
_MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's codes for a name, an alias or a number that there is not."""
_MAX_NAMED = 20
"""Most versions that an error lists."""


@dataclass(frozen=True)
class ModelVersion:
    """A registered model version without its files."""

    name: str
    version: int
    run_id: str
    """MLflow id of the run that produced it."""
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The version's `models:/` URI."""
        return f"models:/{self.name}/{self.version}"


def tag_values(tracking_uri: str, tag: str) -> set[str]:
    """Return the values of `tag` over all versions of all registered models. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        values: set[str] = set()
        token = None
        while True:
            page = client.search_model_versions(max_results=1000, page_token=token)
            values |= {str(version.tags[tag]) for version in page if tag in version.tags}
            token = page.token
            if not token:
                return values


def aliases(tracking_uri: str, name: str) -> dict[str, int]:
    """Return alias → version of a registered model. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        return aliases_of(client, name)


def alias_holder(tracking_uri: str, name: str, alias: str) -> int | None:
    """Return the version of a registered model that `alias` points to, None if there is none. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        return holder_of(client, name, alias)


def set_aliases(tracking_uri: str, name: str, targets: Mapping[str, int]) -> None:
    """Point aliases to versions, in the order given. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        for alias, number in targets.items():
            client.set_registered_model_alias(name, alias, str(number))


def delete(version: ModelVersion, tracking_uri: str) -> None:
    """Delete a version. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        client.delete_model_version(version.name, str(version.version))


def newest(tracking_uri: str, name: str) -> int | None:
    """Return the newest version of a registered model, None if it has none. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        found = client.search_model_versions(
            f"name = '{name}'", max_results=1, order_by=["version_number DESC"]
        )
        return int(found[0].version) if found else None


def describe(model: str, tracking_uri: str) -> ModelVersion:
    """Return the version that `model` names: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN.

    runs:/RUN is the newest version registered from that MLflow run. Raises RegistryError.
    """
    with registry_client(tracking_uri) as client:
        found = _of_run(client, model) if model.startswith("runs:/") else _of_name(client, model)
        return ModelVersion(found.name, int(found.version), found.run_id, dict(found.tags))


def find(model: str, tracking_uri: str) -> ModelVersion:
    """Return what `describe` returns, if this project registered it. Raises RegistryError."""
    version = describe(model, tracking_uri)
    if DIGEST_TAG not in version.tags:
        raise RegistryError(
            f"{model}: version {version.version} of {version.name} was not registered by mirage"
        )
    return version


def read_file(version: ModelVersion, name: str, tracking_uri: str) -> bytes:
    """Return a file that was registered with a version, verified by its digest. Raises RegistryError."""
    if FILE_TAG + name not in version.tags:
        raise RegistryError(
            f"{version.uri} carries no {name}: an earlier release registered it. Train and register it again."
        )
    return _verified(version, name, version.tags[FILE_TAG + name], tracking_uri).read_bytes()


def packaged_code_digest(version: ModelVersion, tracking_uri: str) -> str:
    """Return the current digest of the package `mirage` in a version, "" if it is gone. Raises RegistryError."""
    with (
        registry_client(tracking_uri) as client,
        tempfile.TemporaryDirectory(prefix="mirage-code-") as folder,
    ):
        location = client.get_model_version_download_uri(version.name, str(version.version))
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            package = Path(unquote(parts.path), "code", "mirage")
        else:
            from mlflow.artifacts import download_artifacts

            package = Path(
                download_artifacts(f"{location}/code/mirage", dst_path=folder, tracking_uri=tracking_uri)
            )
        return package_digest(package) if package.is_dir() else ""


def weights_file(model: str, tracking_uri: str) -> Path:
    """Return the local weights file that `model` names, downloaded once if it is remote and verified by its digest.

    `model` is `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN` or a file. Raises RegistryError.
    """
    if not model.startswith(("models:/", "runs:/")):
        path = Path(model)
        if not path.is_file():
            raise RegistryError(f"{model}: no such file. A registered model is written models:/NAME@ALIAS.")
        return path
    version = find(model, tracking_uri)
    return _verified(version, WEIGHTS, version.tags[DIGEST_TAG], tracking_uri)


@contextmanager
def registry_client(tracking_uri: str) -> Iterator[Any]:
    """Yield an `MlflowClient` and turn its errors into a RegistryUnavailableError of one line."""
    try:
        yield connect(tracking_uri)
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryUnavailableError(
            f"MLflow at {without_password(tracking_uri)}: {explain(error)}"
        ) from error


def holder_of(client: Any, name: str, alias: str) -> int | None:
    """Return the version that `alias` points to, None if there is none, without reading any other version."""
    from mlflow.exceptions import MlflowException

    try:
        return int(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        return None


def aliases_of(client: Any, name: str) -> dict[str, int]:
    """Return alias → version of a registered model. MLflow reads all versions for it; `holder_of` does not."""
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


def package_digest(package: Path) -> str:
    """Return the digest of a package's Python files."""
    return digest_of(list_folder(package, package.rglob("*.py")))


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _of_name(client: Any, model: str) -> Any:
    from mlflow.exceptions import MlflowException

    name, at, alias = model.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    try:
        return (
            client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, number)
        )
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        raise RegistryError(f"{model}: {_why_missing(client, name, alias, number)}") from error


def _why_missing(client: Any, name: str, alias: str, number: str) -> str:
    """Return what is missing, and what there is instead."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code not in _MISSING:
            raise
        models = [entry.name for entry in client.search_registered_models()]
        return f"no model {name!r} is registered. Registered: {', '.join(models) or 'none'}."
    if alias:
        there = [f"{key} (version {value})" for key, value in sorted(aliases_of(client, name).items())]
        return f"{name} has no alias {alias!r}. It has: {', '.join(there) or 'none'}."
    newest = client.search_model_versions(
        f"name = '{name}'", max_results=_MAX_NAMED, order_by=["version_number DESC"]
    )
    numbers = sorted(int(entry.version) for entry in newest)
    return (
        f"{name} has no version {number!r}. {'Its newest are' if newest.token else 'It has'}: "
        f"{', '.join(map(str, numbers)) or 'none'}."
    )


def _of_run(client: Any, model: str) -> Any:
    run_id = model.removeprefix("runs:/").strip("/")
    found = client.search_model_versions(
        f"run_id = '{run_id}'", max_results=1, order_by=["version_number DESC"]
    )
    if not found:
        raise RegistryError(f"{model}: no version was registered from that run.")
    return found[0]


def _verified(version: ModelVersion, name: str, digest: str, tracking_uri: str) -> Path:
    """Return a local file of a version: in place if the store is local, else a cached copy.

    Raises RegistryError if it is gone or was changed.
    """
    with registry_client(tracking_uri) as client:
        location = client.get_model_version_download_uri(version.name, str(version.version))
        for _ in range(checked.ATTEMPTS):
            path = _local(location, name, digest, tracking_uri)
            if path.is_file() and sha256(path.read_bytes()) == digest:
                return path
            if not path.is_relative_to(home() / "models"):
                break
            path.unlink(missing_ok=True)  # the kept copy, or what arrived, is damaged: download it again
    state = "is not what was registered" if path.is_file() else "is gone or arrives damaged"
    raise RegistryError(f"{version.uri}: {path} {state}. Bring back the file, or register again.")


def _local(location: str, name: str, digest: str, tracking_uri: str) -> Path:
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path), "artifacts", name)
    cached = home() / "models" / digest / name
    if not cached.is_file():
        from mlflow.artifacts import download_artifacts

        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as partial:
            source = f"{location}/artifacts/{name}"
            Path(download_artifacts(source, dst_path=partial, tracking_uri=tracking_uri)).replace(cached)
    return cached
