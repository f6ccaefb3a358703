"""Trained models in the MLflow registry: put in once, found by name, version, alias or run.

    models:/mirage-5deg@champion     models:/mirage-5deg/3     runs:/<run id>     weights.safetensors

A registered version is made from code (`served.py` and the package `mirage`) and a safetensors file, without
pickle: it loads with MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false and takes images of any size.

MLflow consults its process-wide tracking URI while it registers, whatever a client was told: it is set for
that time and put back.
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

from orchestrator.errors import RegistryError
from orchestrator.paths import home
from orchestrator.run_files import WEIGHTS
from orchestrator.tracking import client as tracking
from orchestrator.tracking.uri import without_password
from shards.listing import digest_of, list_folder

KEY_TAG = "mirage.idempotency_key"
DIGEST_TAG = "mirage.weights_sha256"
FILE_TAG = "mirage.sha256."
"""Before the name of a file that a version carries: its SHA-256."""
CODE_TAG = "mirage.code_sha256"
"""The digest of the package `mirage` that a version carries, as `shards.listing` makes it."""
CODE_VERSION_TAG = "mirage.code_version"
"""The release and commit that trained the version."""


@dataclass(frozen=True)
class Version:
    """One version as it stands in the registry, with what is known of it."""

    name: str
    version: int
    run_id: str
    """MLflow's, of the run that made it."""
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """What MLflow calls it."""
        return f"models:/{self.name}/{self.version}"


def runs_of_models(tracking_uri: str, tag: str) -> set[str]:
    """Return the values of `tag` over all versions of all registered models. Raises RegistryError."""
    with _registry(tracking_uri) as client:
        found: set[str] = set()
        token = None
        while True:
            page = client.search_model_versions(max_results=1000, page_token=token)
            found |= {str(version.tags[tag]) for version in page if tag in version.tags}
            token = page.token
            if not token:
                return found


def aliases(tracking_uri: str, name: str) -> dict[str, int]:
    """Return alias to version of a registered model. Raises RegistryError."""
    with _registry(tracking_uri) as client:
        return _aliases(client, name)


@dataclass(frozen=True)
class Described:
    """What the registry says of a version, without its weights."""

    name: str
    version: str
    tags: Mapping[str, str]


def describe(model: str, tracking_uri: str) -> Described:
    """Return the version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means now. Raises RegistryError."""
    with _registry(tracking_uri) as client:
        found = _of_name(client, model)
        return Described(found.name, str(found.version), dict(found.tags))


def point(tracking_uri: str, name: str, moves: Mapping[str, int]) -> None:
    """Set aliases to versions, in this order. Raises RegistryError."""
    with _registry(tracking_uri) as client:
        for alias, number in moves.items():
            client.set_registered_model_alias(name, alias, str(number))


def find(model: str, tracking_uri: str) -> Version:
    """Return the version that `model` names: models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN.

    Raises RegistryError.
    """
    with _registry(tracking_uri) as client:
        found = _of_run(client, model) if model.startswith("runs:/") else _of_name(client, model)
        if DIGEST_TAG not in found.tags:
            raise RegistryError(
                f"{model}: version {found.version} of {found.name} was not registered by mirage"
            )
        return Version(found.name, int(found.version), found.run_id, dict(found.tags))


def artifact(version: Version, name: str, tracking_uri: str) -> bytes:
    """Return a file that a version carries, as it was registered. Raises RegistryError."""
    if FILE_TAG + name not in version.tags:
        raise RegistryError(
            f"{version.uri} carries no {name}: an earlier release registered it. Train and register it anew."
        )
    return _checked(version, name, version.tags[FILE_TAG + name], tracking_uri).read_bytes()


def carried_code(version: Version, tracking_uri: str) -> str:
    """Return the digest of the package `mirage` in a version as it is now, empty when it is gone."""
    with _registry(tracking_uri) as client, tempfile.TemporaryDirectory(prefix="mirage-code-") as folder:
        location = client.get_model_version_download_uri(version.name, str(version.version))
        parts = urlsplit(location)
        if parts.scheme in ("", "file"):
            package = Path(unquote(parts.path), "code", "mirage")
        else:
            from mlflow.artifacts import download_artifacts

            package = Path(
                download_artifacts(f"{location}/code/mirage", dst_path=folder, tracking_uri=tracking_uri)
            )
        return _package_digest(package) if package.is_dir() else ""


def resolve(model: str, tracking_uri: str) -> Path:
    """Return the weights file that `model` names, on this machine; what is remote is fetched once.

    `model` is `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/RUN` (the version made from that run) or a
    file. Weights that are not what was registered are refused. Raises RegistryError.
    """
    if not model.startswith(("models:/", "runs:/")):
        path = Path(model)
        if not path.is_file():
            raise RegistryError(f"{model}: no such file. A registered model is written models:/NAME@ALIAS.")
        return path
    version = find(model, tracking_uri)
    return _checked(version, WEIGHTS, version.tags[DIGEST_TAG], tracking_uri)


# ------------------------------------------------------------------------------------------- putting in


def _package_digest(package: Path) -> str:
    return digest_of(list_folder(package, package.rglob("*.py")))


def _aliases(client: Any, name: str) -> dict[str, int]:
    return {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()}


# ------------------------------------------------------------------------------------------- finding


def _of_name(client: Any, model: str) -> Any:
    name, at, alias = model.removeprefix("models:/").partition("@")
    name, _, number = name.partition("/")
    if not client.search_registered_models(f"name = '{name}'"):
        known = ", ".join(entry.name for entry in client.search_registered_models()) or "none"
        raise RegistryError(f"{model}: no model {name!r} is registered. Registered: {known}.")
    if at:
        known_aliases = _aliases(client, name)
        if alias not in known_aliases:
            listed = ", ".join(f"{key} (version {value})" for key, value in sorted(known_aliases.items()))
            raise RegistryError(f"{model}: {name} has no alias {alias!r}. It has: {listed or 'none'}.")
        number = str(known_aliases[alias])
    versions = {entry.version: entry for entry in client.search_model_versions(f"name = '{name}'")}
    found = {str(key): entry for key, entry in versions.items()}.get(number)
    if found is None:
        listed = ", ".join(sorted(map(str, versions), key=int))
        raise RegistryError(f"{model}: {name} has no version {number!r}. It has: {listed or 'none'}.")
    return found


def _of_run(client: Any, model: str) -> Any:
    run_id = model.removeprefix("runs:/").strip("/")
    found = client.search_model_versions(f"run_id = '{run_id}'")
    if not found:
        raise RegistryError(f"{model}: no version was registered from that run.")
    return max(found, key=lambda entry: int(entry.version))


def _checked(version: Version, name: str, digest: str, tracking_uri: str) -> Path:
    """Return the file that a version carries: in place if it lies on this machine, else a kept copy.

    Raises RegistryError when it is gone or is not what was registered.
    """
    with _registry(tracking_uri) as client:
        location = client.get_model_version_download_uri(version.name, str(version.version))
        path = _local(location, name, digest, tracking_uri)
    if not path.is_file() or _sha256(path.read_bytes()) != digest:
        state = "is not what was registered" if path.is_file() else "is gone"
        raise RegistryError(f"{version.uri}: {path} {state}. Bring back the file, or register anew.")
    return path


def _local(location: str, name: str, digest: str, tracking_uri: str) -> Path:
    parts = urlsplit(location)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path), "artifacts", name)
    kept = home() / "models" / digest / name
    if not kept.is_file():
        from mlflow.artifacts import download_artifacts

        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as partial:
            source = f"{location}/artifacts/{name}"
            Path(download_artifacts(source, dst_path=partial, tracking_uri=tracking_uri)).replace(kept)
    return kept


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _registry(tracking_uri: str) -> Iterator[Any]:
    """Yield a client; what it raises becomes one line."""
    try:
        yield tracking.connect(tracking_uri)
    except RegistryError:
        raise
    except Exception as error:
        raise RegistryError(
            f"MLflow at {without_password(tracking_uri)}: {tracking.one_line(error)}"
        ) from error
