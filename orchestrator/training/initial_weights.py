"""Store and load the initial weights of a run, which `init_from` names.

A name may refer to other weights later (an alias moves, a file is replaced). So the driver resolves it once, when the
run starts, and stores the bytes in the run's folder under their digest; workers and later submissions read that copy.
"""

from __future__ import annotations

import hashlib
import json

from mirage import MIRAGE
from mirage.weights import CONFIG_KEY, WeightsError, loads, read_metadata
from orchestrator.config.schema import Job
from orchestrator.errors import ModelError
from orchestrator.models import network, network_file, user_model
from orchestrator.models.network import Network
from orchestrator.paths import absolute_if_file
from orchestrator.registry.resolve import find_model
from shards.store import Store
from shards.store.checked import read_named

FOLDER = "initial/"
_HEADS = "spd_"
_MAY_DIFFER = ("drop_path", "batch_norm", "shallow_tap", "alignment", "spd_channels", "spd_embed_dim")
"""Keys of `model` that may differ from those of the weights: they change no tensor, or only the SPD heads."""


def store_weights(job: Job, store: Store, tracking_uri: str) -> str:
    """Resolve the job's initial weights, store them in the run's folder, and return their digest.

    Weights that are already stored are not resolved again. Raises RegistryError if the name is unknown, ModelError if
    the weights do not fit the network.
    """
    assert job.init_from is not None, "called only for jobs with init_from"
    found = store.list(FOLDER)
    if not found:
        named = find_model(absolute_if_file(job.init_from), tracking_uri)
        if job.model.class_ is None:
            try:
                _require_mirage(named.data(), job.init_from)
                data = named.weights()
            except WeightsError as error:
                raise ModelError(f"init_from {job.init_from}: {error}") from error
        else:
            data = named.data()
        load_bytes(network.make(job.model), data, job.init_from)
        found = [FOLDER + hashlib.sha256(data).hexdigest()]
        store.write(found[0], data)
    return found[0].removeprefix(FOLDER)


def load_stored(job: Job, model: Network, store: Store) -> None:
    """Load the stored initial weights into `model`."""
    assert job.init_from is not None, "called only for jobs with init_from"
    (kept,) = store.list(FOLDER)
    load_bytes(model, read_named(store, kept), job.init_from)


def load_bytes(model: Network, data: bytes, where: str) -> None:
    """Load weights into `model`. SPD heads of another shape keep their values. Raises ModelError."""
    if not isinstance(model, MIRAGE):
        user_model.load_weights(model.inner, data, f"init_from {where}{_origin(data)}")
        return
    source = loads(data)
    own, given = model.state_dict(), source.state_dict()
    fitting = {name: t for name, t in given.items() if name in own and own[name].shape == t.shape}
    if any(name not in fitting and not name.startswith(_HEADS) for name in own | given):
        theirs, ours = source.config.to_dict(), model.config.to_dict()
        differ = [
            f"{key} is {theirs[key]} there and {value} here"
            for key, value in ours.items()
            if key not in _MAY_DIFFER and theirs[key] != value
        ]
        raise ModelError(
            f"init_from {where}: the weights belong to another network: {'; '.join(differ)}. "
            "Set the section `model` to the values of the weights."
        )
    model.load_state_dict(fitting, strict=False)


def _require_mirage(data: bytes, where: str) -> None:
    """Raise ModelError if these are the weights of a user-defined network."""
    if origin := _origin(data, mirage=""):
        raise ModelError(
            f"init_from {where}{origin}: this job trains a MIRAGE. Give it the same network in the section `model`, "
            "with class, path and arguments."
        )


def _origin(data: bytes, mirage: str = ", weights of a MIRAGE") -> str:
    """Return what the header says about the network of the weights, "" where it says nothing."""
    try:
        header = read_metadata(data)
        code = network_file.code_of(data)
    except (WeightsError, ModelError):  # a checkpoint of torch, or a damaged file: reading it says so
        return ""
    if code is not None:
        return f", weights of {code.class_} with arguments {json.dumps(code.arguments)}"
    if CONFIG_KEY in header:
        return mirage
    return f", weights of {header['class']}" if "class" in header else ""
