"""Register a finished run as a model version in MLflow.

MLflow reads its process-wide tracking URI while it saves and registers, whatever URI the client has: it is set for
that time and restored.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import mirage
from mirage.weights import WeightsError, not_finite
from orchestrator.errors import ModelError, RegistryError
from orchestrator.models import network_file, trust
from orchestrator.models.network_code import NetworkCode
from orchestrator.registry import versions
from orchestrator.registry.lease import lease
from orchestrator.registry.versions import ModelVersion, registry_client, sha256
from orchestrator.run_files import WEIGHTS
from orchestrator.tracking.checkpoints import log_model_metrics
from orchestrator.tracking.client import ignoring
from orchestrator.tracking.inputs import InputDataset
from orchestrator.version import code_version

PYFUNC_MODEL = Path(__file__).with_name("pyfunc_model.py")
REQUIREMENTS = ("imagecodecs", "mlflow", "numpy", "pillow", "safetensors", "torch")
"""What a version needs besides the code in it; pinned to the versions installed here."""
PHOTOS_PACKAGE = "mirage_photos"
"""Name in a version of the package that reads and writes image files, and that loads networks."""
SOURCE_FOLDER = "network_source"
"""Folder in a version with the source of a user-defined network to read; the header of the weights has what runs."""
_MODEL_MODULES = ("__init__.py", "network_code.py", "network_file.py", "parameter_use.py", "user_network.py")
MODEL_DESCRIPTION = """\
Image restoration models, registered by `mirage run`. The description of a version is its model card.

- Alias `candidate`: the newest version. Alias `champion`: the version that `mirage promote` chose.
- Restore photographs: `mirage restore PHOTO -m models:/NAME@champion`
- In Python: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(images)`, float32 of (n, 3, height, width)
"""
"""Description of a new registered model on MLflow's page, in Markdown."""
ALIAS = "candidate"
MAX_DESCRIPTION = 5000
"""Longest description that MLflow's database holds, in characters."""


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
    measured_on: InputDataset | None = None,
    files: Mapping[str, bytes] | None = None,
) -> ModelVersion:
    """Register `weights`, written by `network_file.dumps`, as a new version that the alias `candidate` points to.

    The card becomes the version's description. The card and `files` (name → contents) are stored beside the weights;
    metrics become tags and, as measured on `measured_on`, metrics of the model; tags become tags. A repeated call
    with the same key creates no second version, so a driver that died may call again; of two calls at once, the
    version with the lower number stays. Raises RegistryError.
    """
    try:
        network = network_file.loads(weights, trusted=trust.trusted())
        code = network_file.code_of(weights)
    except (WeightsError, ModelError) as error:
        raise RegistryError(f"{name}: not registered: the weights are not a model ({error})") from error
    if wrong := not_finite(network.module):
        raise RegistryError(f"{name}: not registered: {len(wrong)} tensors are not finite, first {wrong[0]}.")
    with registry_client(tracking_uri) as client:
        if not _versions_with_key(client, name, idempotency_key):
            carried = {"card.md": card.encode(), **(files or {})}
            facts = {
                **tags,
                **{f"metric.{key}": f"{value:.6g}" for key, value in metrics.items()},
                **{versions.FILE_TAG + key: sha256(content) for key, content in carried.items()},
                versions.KEY_TAG: idempotency_key,
                versions.DIGEST_TAG: sha256(weights),
                versions.CODE_TAG: versions.package_digest(Path(mirage.__file__).parent),
                versions.CODE_VERSION_TAG: code_version(),
                **({versions.NETWORK_TAG: code.digest} if code else {}),
            }
            with _process_wide_uri(tracking_uri):
                model_id = _log_model(client, name, run_id, {WEIGHTS: weights, **carried}, code)
                of_model = {key.removeprefix("test/"): value for key, value in metrics.items()}
                log_model_metrics(client, run_id, model_id, 0, of_model, measured_on)
                _create_version(client, name, model_id, run_id, _description(card), facts)
        version, *duplicates = _versions_with_key(client, name, idempotency_key)
        for duplicate in duplicates:  # from another process at the same time, which deletes it as well
            with ignoring("RESOURCE_DOES_NOT_EXIST"):
                client.delete_model_version(name, str(duplicate.version))
        with lease(tracking_uri, name) as held:
            # A newer version keeps the alias.
            if (versions.holder_of(client, name, ALIAS) or 0) < version.version:
                held.check()
                client.set_registered_model_alias(name, ALIAS, str(version.version))
    return version


def is_registered(tracking_uri: str, name: str, idempotency_key: str) -> bool:
    """Return whether a version was registered with this key. Raises RegistryError."""
    with registry_client(tracking_uri) as client:
        return bool(_versions_with_key(client, name, idempotency_key))


def _versions_with_key(client: Any, name: str, idempotency_key: str) -> list[ModelVersion]:
    """Return the versions registered with this key, by ascending number."""
    with_key = f"name = '{name}' AND tags.`{versions.KEY_TAG}` = '{idempotency_key}'"
    found = client.search_model_versions(with_key)
    registered = [ModelVersion(name, int(entry.version), entry.run_id, dict(entry.tags)) for entry in found]
    return sorted(registered, key=lambda version: version.version)


def _log_model(
    client: Any, name: str, run_id: str, files: Mapping[str, bytes], code: NetworkCode | None
) -> str:
    """Save the model with these files as an artifact of its run; return the id of the logged model."""
    import mlflow
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="mirage-model-") as folder:
        parts = {Path(name).stem: Path(folder, name) for name in files}  # pyfunc_model.py reads `weights`
        for path in parts.values():
            path.write_bytes(files[path.name])
        mlflow.pyfunc.save_model(
            Path(folder, "model"),
            python_model=str(PYFUNC_MODEL),
            artifacts={key: str(path) for key, path in parts.items()},
            signature=False,  # MLflow would infer it from the type hint; _write_signature has ours
            pip_requirements=sorted(
                {f"{package}=={version(package).partition('+')[0]}" for package in REQUIREMENTS}
                | set(code.requires if code else ())
            ),
            code_paths=[
                str(Path(mirage.__file__).parent),
                str(_photos_package(Path(folder))),
                *([str(_network_source(Path(folder), code))] if code else []),
            ],
        )
        _write_signature(Path(folder, "model"))
        experiment = client.get_run(run_id).info.experiment_id
        model_id: str = client.create_logged_model(experiment, name=name, source_run_id=run_id).model_id
        client.log_model_artifacts(model_id, str(Path(folder, "model")))
    client.finalize_logged_model(model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    return model_id


def _write_signature(folder: Path) -> None:
    """Write the signature of a saved model: float32 images as output.

    It leaves the input open, because MLflow would enforce a single type: either float arrays or bytes.
    """
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = Model.load(str(folder))
    model.signature = ModelSignature(
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 3, -1, -1), name="restored")])
    )
    model.save(str(folder / "MLmodel"))


def _photos_package(folder: Path) -> Path:
    """Create the package that reads image files and loads networks below `folder`; return its path."""
    package = folder / PHOTOS_PACKAGE
    orchestrator = Path(__file__).parents[1]
    unused = {"contact_sheet.py", "convert.py"}
    modules = [path.name for path in (orchestrator / "imaging").glob("*.py") if path.name not in unused]
    names = [f"imaging/{module}" for module in modules] + [f"models/{module}" for module in _MODEL_MODULES]
    for name in ("__init__.py", "errors.py", *names):
        target = package / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(orchestrator / name, target)
    return package


def _network_source(folder: Path, code: NetworkCode) -> Path:
    """Write the source of a user-defined network below `folder`; return its folder."""
    for path, text in code.files.items():
        target = folder / SOURCE_FOLDER / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="")
    return folder / SOURCE_FOLDER


def _create_version(
    client: Any, name: str, model_id: str, run_id: str, description: str, tags: dict[str, str]
) -> None:
    with ignoring("RESOURCE_ALREADY_EXISTS"):
        client.create_registered_model(name, description=MODEL_DESCRIPTION)
    client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=tags, description=description, model_id=model_id
    )


def _description(card: str) -> str:
    note = "\n\n(The whole card is the artifact card.md.)"
    return card if len(card) <= MAX_DESCRIPTION else card[: MAX_DESCRIPTION - len(note)] + note


@contextmanager
def _process_wide_uri(tracking_uri: str) -> Iterator[None]:
    """Set MLflow's process-wide URI, and with it the environment variable, inside the context."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)
