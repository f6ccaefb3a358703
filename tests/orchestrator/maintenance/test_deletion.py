"""`mirage rm` deletes one dataset, run or version, never what is in use, and leaves nothing half-readable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.cluster.local.users import using
from orchestrator.errors import PlanError
from orchestrator.maintenance import deletion
from orchestrator.ownership import FOLDER, Lease, next_claim, owned
from orchestrator.run_files import LOCATION, UNPUBLISHED
from shards.manifest import POINTER
from shards.pack import pack
from shards.sources import FolderSource
from shards.store import LocalStore, open_store
from tests.claims import assert_one_clear_error, assert_unchanged, mirage

HEX = "0" * 64
CLAIM = f"owner/000001-{'0' * 32}.json"
DATASET = [POINTER, f"manifests/{HEX}.json.gz", f"shards/{HEX}.tar", f"sources/{HEX}.txt"]
RUN = [
    "result.json",
    "checkpoints/000000001-0123456789ab.json",
    f"blobs/{HEX}.safetensors",
    f"weights/{HEX}.safetensors",
]


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage with a dataset, another one inside it, a run, and a file of the user's own in each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    storage = tmp_path / "storage"
    for folder, keys in (("data", DATASET), ("data/inner", DATASET), ("runs/one", RUN)):
        for key in [*keys, "notes.txt"]:
            file = storage / folder / key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(key.encode())
    return storage


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "keys"), [("data", DATASET), ("runs/one", RUN)])
def test_what_mirage_wrote_in_this_folder_is_deleted_and_nothing_else(
    storage: Path, name: str, keys: list[str]
) -> None:
    before = files(storage)
    done = mirage("rm", storage / name, "--yes")
    assert done.status == 0, done.text
    assert before - files(storage) == {f"{name}/{key}" for key in keys}


@pytest.mark.parametrize(("name", "first"), [("data", DATASET[:2]), ("runs/one", RUN[:2])])
def test_what_makes_it_readable_is_deleted_first_and_a_second_call_continues(
    storage: Path, name: str, first: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []

    def interrupted(store: LocalStore, key: str) -> None:
        if len(deleted) == 2:
            raise KeyboardInterrupt
        deleted.append(key)
        store.path(key).unlink()

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "delete", interrupted)
        assert mirage("rm", storage / name, "--yes").status == 130
    assert deleted == first
    assert mirage("rm", storage / name, "--yes").status == 0
    assert files(storage / name) <= {"notes.txt", *(f"inner/{key}" for key in [*DATASET, "notes.txt"])}


def test_without_a_yes_it_lists_and_deletes_nothing(storage: Path) -> None:
    with assert_unchanged(storage):
        done = mirage("rm", storage / "data")
    assert done.status == 2
    assert f"dataset {storage / 'data'}: 4 objects" in done.text
    assert "To delete it: --yes" in done.text


def test_nothing_is_left_of_a_dataset_that_was_packed(
    storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").mkdir()
    Image.fromarray(np.zeros((40, 48, 3), dtype=np.uint8)).save(tmp_path / "raw" / "0.png")
    store = LocalStore(storage / "packed")
    pack(FolderSource(tmp_path / "raw", ["rain"], seed=1), store, name="set")
    tables = [key for key in store.list("manifests/") if key.endswith(".parquet")]
    deleted: list[str] = []
    delete = LocalStore.delete
    monkeypatch.setattr(LocalStore, "delete", lambda store, key: (deleted.append(key), delete(store, key)))
    done = mirage("rm", storage / "packed", "--yes")
    assert done.status == 0, done.text
    assert not store.root.exists()
    (named,) = (key for key in deleted if key.startswith("manifests/") and key.endswith(".json"))
    assert deleted.index(POINTER) < deleted.index(named) < min(map(deleted.index, tables))


FOREIGN = {
    "a project": ["weights/best.pth", "report.html", "blobs/x", "manifest", "profile/a"],
    "a file of a common name": ["result.json", "report.html"],
    "a pointer's name": ["manifest", "shards/0001.tar", "manifests/app.json"],
    "a sweep": [CLAIM, "events/000000.json"],
    "other checkpoints": ["checkpoints/last.json", "history/log.txt"],
    "models by digest": [f"weights/{HEX}.safetensors", f"blobs/{HEX}"],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_the_users_own_is_no_run_and_no_dataset(tmp_path: Path, name: str) -> None:
    for key in FOREIGN[name]:
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(b"mine")
    with assert_unchanged(tmp_path):
        assert_one_clear_error(mirage("rm", tmp_path, "--yes"), "is neither a packed dataset nor a run")


def test_the_users_own_files_and_empty_folders_stay_beside_a_run(storage: Path) -> None:
    own = ["weights/best.pth", "checkpoints/mine.json", "profile/mine", "initial/a.pth", "ledger/b"]
    for key in own:
        (storage / "runs" / "one" / key).parent.mkdir(parents=True, exist_ok=True)
        (storage / "runs" / "one" / key).write_bytes(b"mine")
    (storage / "runs" / "one" / "empty" / "too").mkdir(parents=True)
    assert mirage("rm", storage / "runs" / "one", "--yes").status == 0
    assert files(storage / "runs" / "one") == {*own, "notes.txt"}
    assert (storage / "runs" / "one" / "empty" / "too").is_dir()
    assert not (storage / "runs" / "one" / "blobs").exists()


@pytest.mark.parametrize("job", ["runs/one", "sweeps/one", "proofs/a/killed", "other/runs/one"])
@pytest.mark.parametrize("dataset", ["data", "data/inner"])
def test_a_job_at_work_keeps_the_datasets_of_every_folder_around_it(
    storage: Path, job: str, dataset: str
) -> None:
    with owned(open_store(str(storage / job)), "it", print):
        done = mirage("rm", storage / dataset, "--yes")
        assert done.status == 2
        assert f"{storage / job}: " in done.text
    assert files(storage) >= {f"{dataset}/{key}" for key in DATASET}
    done = mirage("rm", storage / dataset, "--yes")
    assert done.status == 0
    assert f"no job at work was found in {(storage / dataset).parent}" in done.text


def test_a_job_at_work_keeps_datasets_far_from_its_storage(
    storage: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = str(tmp_path_factory.mktemp("far") / "a" / "b" / "runs" / "two")
    location = storage.parent / ".mirage" / "runs" / "two" / LOCATION
    location.parent.mkdir(parents=True)
    location.write_text(f"{run}\n")
    with owned(open_store(run), "run two", print):
        done = mirage("rm", storage / "data", "--yes")
    assert done.status == 2
    assert f"{run}: " in done.text


def test_a_run_at_work_stays_and_the_message_names_no_option_that_rm_lacks(storage: Path) -> None:
    with owned(open_store(str(storage / "runs" / "one")), "run one", print):
        done = mirage("rm", storage / "runs" / "one", "--yes")
    assert done.status == 2
    assert "belongs to" in done.text
    assert "--wait" not in done.text
    assert files(storage) >= {f"runs/one/{key}" for key in RUN}


def test_a_trial_of_a_sweep_at_work_stays(storage: Path) -> None:
    trial = storage / "runs" / f"s-{HEX[:10]}-t003-{HEX[:10]}"
    (storage / "runs" / "one").rename(trial)
    with owned(open_store(str(storage / "sweeps" / f"s-{HEX[:10]}")), "sweep s", print):
        assert mirage("rm", trial, "--yes").status == 2
    assert mirage("rm", trial, "--yes").status == 0


def test_the_run_of_a_registered_model_stays(storage: Path) -> None:
    found = deletion.find(open_store(str(storage / "runs" / "one")))
    with pytest.raises(PlanError, match="a registered model comes from this run"):
        deletion.require_unused(found, {"one"})


@pytest.mark.parametrize("here", [True, False])
def test_a_result_that_waits_to_be_registered_stays_and_reports_go_with_their_run(
    storage: Path, here: bool
) -> None:
    reports = storage.parent / ".mirage" / "runs" / "one"
    reports.mkdir(parents=True)
    (reports / UNPUBLISHED).write_text("{}")
    (reports / LOCATION).write_text(f"{storage / 'runs/one' if here else 's3://elsewhere/runs/one'}\n")
    done = mirage("rm", storage / "runs" / "one", "--yes")
    if not here:
        assert done.status == 0
        assert reports.is_dir(), "they are of a run of the same job elsewhere"
        return
    assert done.status == 2
    assert "mirage sync" in done.text
    assert files(storage) >= {f"runs/one/{key}" for key in RUN}
    (reports / UNPUBLISHED).unlink()
    done = mirage("rm", storage / "runs" / "one", "--yes")
    assert done.status == 0
    assert "no model is registered at" in done.text
    assert not reports.exists()


def test_a_command_of_this_project_keeps_datasets_and_no_finished_run(storage: Path) -> None:
    with using(storage.parent / ".mirage", "evaluate job x"):
        with assert_unchanged(storage):
            done = mirage("rm", storage / "data", "--yes")
        assert done.status == 2
        assert "evaluate job x" in done.text
        assert mirage("rm", storage / "runs" / "one", "--yes").status == 0


def test_the_claim_of_a_driver_that_takes_the_run_after_its_deletion_stays(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(storage / "runs" / "one")
    release = Lease.release

    def release_and_lose(lease: Lease) -> None:
        release(lease)
        store.write_pointer(next_claim(store), b"of another driver")

    monkeypatch.setattr(Lease, "release", release_and_lose)
    deletion.delete(deletion.find(store), print)
    (left,) = store.list(f"{FOLDER}/")
    assert store.read_pointer(left) == b"of another driver"


@pytest.mark.parametrize("name", ["", "runs", "nowhere"])
def test_what_is_neither_a_dataset_nor_a_run_is_refused(storage: Path, name: str) -> None:
    with assert_unchanged(storage):
        assert_one_clear_error(mirage("rm", storage / name, "--yes"), "is neither a packed dataset nor a run")


@pytest.mark.parametrize("model", ["models:/mirage-demo", "models:/mirage-demo@candidate", "models:/a/b/3"])
def test_a_model_is_deleted_by_its_version(storage: Path, model: str) -> None:
    assert_one_clear_error(mirage("rm", model, "--yes"), "name one version to delete")
