"""Register a finished run as a model version in MLflow."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mirage
from mirage.weights import WeightsError, loads
from orchestrator.errors import RegistryError
from orchestrator.registry.client import (
    CODE_TAG,
    CODE_VERSION_TAG,
    DIGEST_TAG,
    FILE_TAG,
    KEY_TAG,
    _aliases,
    _package_digest,
    _registry,
    _sha256,
)
from orchestrator.registry.lease import lease
from orchestrator.run_files import WEIGHTS
from orchestrator.version import code_version

SERVED = Path(__file__).with_name("pyfunc_model.py")


REQUIREMENTS = ("imagecodecs", "mlflow", "numpy", "pillow", "safetensors", "torch")
"""What a version needs besides the code that it carries; pinned to what is installed here."""


PHOTOS = "mirage_photos"
"""Package under which a version carries `photos` and `errors`, for image files as bytes."""


MAX_DESCRIPTION = 5000
"""Characters that MLflow's database holds."""


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int
    uri: str


def register(
    tracking_uri: str,
    name: str,
    *,
    run_id: str,
    weights: bytes,
    card: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    idempotency_key: str,
    alias: str = "candidate",
    files: Mapping[str, bytes] | None = None,
) -> RegisteredVersion:
    """Put `weights`, a MIRAGE as safetensors, into the registry as a new version that `alias` points to.

    The card is the version's description and an artifact beside the weights, as are `files`, by name; metrics and
    tags are its tags. A second call with the same key makes no second version, so a driver that died half-way may call
    again; of two calls at once, the version with the lower number stays. Raises RegistryError.
    """
    try:
        loads(weights)
    except WeightsError as error:
        raise RegistryError(f"{name}: not registered, the weights are no MIRAGE ({error})") from error
    with _registry(tracking_uri) as client:
        if not _made_before(client, name, idempotency_key):
            carried = {"card.md": card.encode(), **(files or {})}
            facts = {
                **tags,
                **{f"metric.{key}": f"{value:.6g}" for key, value in metrics.items()},
                **{FILE_TAG + key: _sha256(content) for key, content in carried.items()},
                KEY_TAG: idempotency_key,
                DIGEST_TAG: _sha256(weights),
                CODE_TAG: _package_digest(Path(mirage.__file__).parent),
                CODE_VERSION_TAG: code_version(),
            }
            with _process_wide(tracking_uri):
                model_id = _log_model(client, name, run_id, {WEIGHTS: weights, **carried})
                _create_version(client, name, model_id, run_id, _description(card), facts)
        number, *twins = _made_before(client, name, idempotency_key)
        for twin in twins:  # made by another process at the same time, which deletes them as well
            _delete_version(client, name, twin)
        with lease(tracking_uri, name) as held:  # of two at once, each could see an older holder
            if _aliases(client, name).get(alias, 0) < number:  # a newer version keeps the alias
                held.check()
                client.set_registered_model_alias(name, alias, str(number))
    return RegisteredVersion(name, number, f"models:/{name}/{number}")


def _made_before(client: Any, name: str, idempotency_key: str) -> list[int]:
    """Return the numbers of the versions that were registered with this key, ascending."""
    found = client.search_model_versions(f"name = '{name}' AND tags.`{KEY_TAG}` = '{idempotency_key}'")
    return sorted(int(entry.version) for entry in found)


def _delete_version(client: Any, name: str, number: int) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.delete_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _log_model(client: Any, name: str, run_id: str, files: Mapping[str, bytes]) -> str:
    """Store the model, made of these files, with its run and return its id."""
    import mlflow
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="mirage-model-") as folder:
        parts = {Path(name).stem: Path(folder, name) for name in files}  # served.py asks for `weights`
        for path in parts.values():
            path.write_bytes(files[path.name])
        mlflow.pyfunc.save_model(
            Path(folder, "model"),
            python_model=str(SERVED),
            artifacts={key: str(path) for key, path in parts.items()},
            signature=False,  # from the type hint; ours is written below
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS],
            code_paths=[str(Path(mirage.__file__).parent), str(_photos_package(Path(folder)))],
        )
        _sign(Path(folder, "model"))
        experiment = client.get_run(run_id).info.experiment_id
        model_id: str = client.create_logged_model(experiment, name=name, source_run_id=run_id).model_id
        client.log_model_artifacts(model_id, str(Path(folder, "model")))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id


def _sign(folder: Path) -> None:
    """Write the signature of a saved model: what arrays become.

    It says nothing of the input, since MLflow would let one kind of it through: arrays of floats or bytes, not both.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = Model.load(str(folder))
    model.signature = ModelSignature(
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1), name="restored")])
    )
    model.save(str(folder / "MLmodel"))


def _photos_package(folder: Path) -> Path:
    """Make, below `folder`, the package through which a version reads and writes image files."""
    package = folder / PHOTOS
    orchestrator = Path(__file__).parents[1]
    for name in ("__init__.py", "errors.py", "imaging/__init__.py", "imaging/photos.py"):
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(orchestrator / name, target)
    return package


def _create_version(
    client: Any, name: str, model_id: str, run_id: str, description: str, tags: dict[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=tags, description=description, model_id=model_id
    )
    return int(made.version)


def _description(card: str) -> str:
    more = "\n\n(The whole card is the artifact card.md.)"
    return card if len(card) <= MAX_DESCRIPTION else card[: MAX_DESCRIPTION - len(more)] + more


@contextmanager
def _process_wide(tracking_uri: str) -> Iterator[None]:
    """Set MLflow's process-wide URI, and with it the environment variable, for a while."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
