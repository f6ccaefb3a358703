"""`mirage rm` deletes one dataset, run or version, never what is in use, and leaves nothing half-readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import OwnedError, PlanError
from orchestrator.maintenance import deletion
from orchestrator.ownership import owned
from shards.manifest import POINTER
from shards.store import LocalStore, open_store
from tests.claims import assert_one_clear_error, assert_unchanged, mirage

HEX = "0" * 64
DATASET = [POINTER, f"manifests/{HEX}.json.gz", f"shards/{HEX}.tar", f"sources/{HEX}.txt"]
RUN = [
    "result.json",
    "checkpoints/000000001-0123456789ab.json",
    f"blobs/{HEX}.safetensors",
    f"weights/{HEX}.x",
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


def test_a_run_at_work_keeps_itself_and_the_datasets_beside_it(storage: Path) -> None:
    run = open_store(str(storage / "runs" / "one"))
    with owned(run, "run one", print):
        for name, says in (("runs/one", "belongs to"), ("data", "run runs/one: ")):
            done = mirage("rm", storage / name, "--yes")
            assert done.status == 2
            assert says in done.text
    assert files(storage) >= {f"data/{key}" for key in DATASET} | {f"runs/one/{key}" for key in RUN}
    assert mirage("rm", storage / "data", "--yes").status == 0


def test_the_run_of_a_registered_model_stays(storage: Path) -> None:
    found = deletion.find(open_store(str(storage / "runs" / "one")))
    with assert_unchanged(storage), pytest.raises(PlanError, match="a registered model comes from this run"):
        deletion.delete(found, {"one"}, (), print)


def test_what_a_command_of_this_project_uses_stays(storage: Path) -> None:
    found = deletion.find(open_store(str(storage / "data")))
    with assert_unchanged(storage), pytest.raises(OwnedError, match="may be in use"):
        deletion.delete(found, (), ["evaluate job x: process 1"], print)


@pytest.mark.parametrize("name", ["", "runs", "nowhere"])
def test_what_is_neither_a_dataset_nor_a_run_is_refused(storage: Path, name: str) -> None:
    with assert_unchanged(storage):
        assert_one_clear_error(mirage("rm", storage / name, "--yes"), "is neither a packed dataset nor a run")


@pytest.mark.parametrize("model", ["models:/mirage-demo", "models:/mirage-demo@candidate", "models:/a/b/3"])
def test_a_model_is_deleted_by_its_version(storage: Path, model: str) -> None:
    assert_one_clear_error(mirage("rm", model, "--yes"), "name one version to delete")
