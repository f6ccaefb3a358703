"""Garbage is what nothing refers to: found by looking, listed first, removed on request, and never anything else."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from orchestrator.maintenance.garbage_collection import find, remove
from orchestrator.run_files import RETENTION_RULE
from orchestrator.training.checkpoint import Checkpoints, CheckpointState, Retention, RunIdentity
from shards.manifest import POINTER, load_manifest
from shards.pack import pack
from shards.processes import RowsCallback
from shards.sources import FolderSource
from shards.store import LocalStore
from shards.verify import verify


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(
            tmp_path / f"raw/{number}.png"
        )
    return tmp_path / "raw"


@pytest.fixture
def storage(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "storage")


def pack_seed(raw: Path, storage: LocalStore, seed: int) -> LocalStore:
    store = LocalStore(storage.root / "data" / "set")
    pack(FolderSource(raw, ["rain"], seed=seed), store, name="set", shard_bytes=10_000)
    return store


def grow_old(storage: LocalStore, hours: float = 48) -> None:
    then = time.time() - hours * 3600
    for path in storage.root.rglob("*"):
        os.utime(path, (then, then))


def interrupt(raw: Path, store: LocalStore, seed: int) -> None:
    def stop(work, tasks, tick: RowsCallback):
        for index, task in list(enumerate(tasks))[:2]:
            yield index, work(task, tick)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(FolderSource(raw, ["rain"], seed=seed), store, name="set", shard_bytes=10_000, runner=stop)


def test_every_manifest_keeps_its_shards_whatever_the_pointer_says(raw: Path, storage: LocalStore):
    store = pack_seed(raw, storage, 1)
    old = load_manifest(store)
    pack_seed(raw, storage, 2)
    grow_old(storage)
    found = find(storage, set())
    assert found.garbage == ()
    store.path(POINTER).unlink()
    assert find(storage, set()).garbage == ()
    verify(store, old)


def test_an_unpublished_packing_and_orphans_go_and_the_published_dataset_stays(
    raw: Path, storage: LocalStore
):
    store = pack_seed(raw, storage, 1)
    before = set(storage.list())
    interrupt(raw, store, 2)
    store.write(f"shards/{'0' * 64}.tar", b"orphan")
    store.write("shards/notes.txt", b"not ours")
    grow_old(storage)
    read: list[tuple[int, int, str]] = []
    found = find(storage, set(), on_progress=lambda *made: read.append(made))
    assert read[-1][0] == read[-1][1] > 0
    assert {item.key for item in found.garbage} == set(storage.list()) - before - {
        "data/set/shards/notes.txt"
    }
    reasons = sorted(item.why for item in found.garbage)
    assert reasons == [
        *["record of a packing that was not published"] * 2,
        "shard in no manifest",
        *["shard of a packing that was not published"] * 2,
    ]
    assert found.bytes == sum(storage.stat(item.key).size for item in found.garbage)
    deleted: list[tuple[int, int, str]] = []
    assert remove(storage, found.garbage, lambda *made: deleted.append(made)) == 5
    assert [done for done, _, _ in deleted] == [0, 1, 2, 3, 4, 5]
    assert set(storage.list()) == before | {"data/set/shards/notes.txt"}
    verify(store, load_manifest(store), decode=True)


def test_a_packing_in_progress_is_left_alone(raw: Path, storage: LocalStore):
    store = pack_seed(raw, storage, 1)
    interrupt(raw, store, 2)
    found = find(storage, set())
    assert found.garbage == ()
    assert "may be in use" in found.notes[0]
    assert len(find(storage, set(), grace_hours=0).garbage) == 4


@pytest.mark.parametrize("suffix", [".json", ".rows.parquet"])
def test_a_dataset_with_a_manifest_that_cannot_be_read_is_left_alone(
    raw: Path, storage: LocalStore, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shards.store.checked._FIRST_PAUSE_SECONDS", 0)
    store = pack_seed(raw, storage, 1)
    interrupt(raw, store, 2)
    (key,) = (key for key in store.list("manifests/") if key.endswith(suffix))
    store.path(key).write_bytes(b"damaged")
    grow_old(storage)
    found = find(storage, set())
    assert found.garbage == ()
    assert "skipped" in found.notes[0]
    assert key in found.notes[0]


def test_tables_of_a_manifest_that_was_not_published_are_garbage(raw: Path, storage: LocalStore):
    store = pack_seed(raw, storage, 1)
    left = f"manifests/{'0' * 64}.rows.parquet"
    store.write(left, b"of a process that was killed")
    grow_old(storage)
    (found,) = find(storage, set()).garbage
    assert (found.key, found.why) == (f"data/set/{left}", "table of a manifest that was not published")


DEFAULT = Retention()


def checkpointed(storage: LocalStore, run: str, scores: list[float], **more: list[float]) -> Checkpoints:
    kept = Checkpoints(
        LocalStore(storage.root / "runs" / run), RunIdentity(run, ("d",)), keep=Retention(len(scores))
    )
    for step, score in enumerate(scores, 1):
        tensors = {"model": {"w": torch.full((4,), float(step))}}
        others = {f"val/5deg/haze/{name}": values[step - 1] for name, values in more.items()}
        kept.save(CheckpointState(step, step * 8, 0, tensors, {"val/psnr": score, **others}))
    kept.wait()
    return kept


def finish(storage: LocalStore, run: str, rule: Retention | None = DEFAULT) -> str:
    key = f"weights/{'a' * 64}.safetensors"
    store = LocalStore(storage.root / "runs" / run)
    store.write(key, b"weights")
    result = {"weights": key} | ({"checkpoint_rule": asdict(rule)} if rule else {})
    store.write("result.json", json.dumps(result).encode())
    return f"runs/{run}/{key}"


def test_a_finished_run_keeps_its_newest_and_best_checkpoint_and_its_weights(storage: LocalStore):
    kept = checkpointed(storage, "one", [20.0, 30.0, 25.0, 24.0])
    weights = finish(storage, "one")
    grow_old(storage)
    found = find(storage, set())
    assert sum("checkpoint of a finished run" in item.why for item in found.garbage) == 2
    assert sum("tensors of no checkpoint" in item.why for item in found.garbage) == 2
    remove(storage, found.garbage)
    assert [kept.load(name).step for name in kept.names()] == [2, 4]
    assert storage.exists(weights)
    assert find(storage, set()).garbage == ()


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (Retention(metric="val/5deg/haze/ssim"), [3, 4]),
        (Retention(metric="val/5deg/haze/lpips", larger_is_better=False), [1, 4]),
        (Retention(best=2, metric="val/5deg/haze/ssim"), [2, 3, 4]),
        (Retention(best=0), [4]),
        (Retention(best=0, hours=1), [1, 2, 3, 4]),
    ],
)
def test_the_best_of_a_finished_run_are_those_of_its_own_rule(
    storage: LocalStore, rule: Retention, steps: list[int]
):
    kept = checkpointed(
        storage, "one", [20.0, 30.0, 25.0, 24.0], ssim=[0.5, 0.7, 0.9, 0.6], lpips=[0.1, 0.2, 0.3, 0.4]
    )
    finish(storage, "one", rule)
    grow_old(storage)
    remove(storage, find(storage, set()).garbage)
    assert [kept.load(name).step for name in kept.names()] == steps


def test_a_finished_run_of_unknown_rule_keeps_its_checkpoints(storage: LocalStore):
    checkpointed(storage, "one", [20.0, 30.0, 25.0])
    finish(storage, "one", None)
    grow_old(storage)
    assert find(storage, set()).garbage == ()


def test_a_proof_goes_when_it_is_old_and_what_else_lies_there_stays(storage: LocalStore):
    proof = "proofs/small-0123456789-7-0"
    for run in ("reference", "killed"):
        store = LocalStore(storage.root / proof / run)
        kept = Checkpoints(store, RunIdentity("small", ("d",)), keep=Retention(9))
        kept.save(CheckpointState(1, 8, 0, {"model": {"w": torch.ones(4)}}))
        kept.wait()
        store.write("ledger/0001/000000000-worker-0-of-1.jsonl", b"{}")
        store.write("notes.txt", b"not ours")
    storage.write("proofs/mine/killed/blobs/x", b"not ours either")
    found = find(storage, set())
    assert found.garbage == ()
    assert f"{proof}: skipped, 6 unreferenced objects" in found.notes[0]
    grow_old(storage)
    assert remove(storage, find(storage, set()).garbage) == 6
    assert storage.list() == [
        "proofs/mine/killed/blobs/x",
        f"{proof}/killed/notes.txt",
        f"{proof}/reference/notes.txt",
    ]


def test_a_run_in_progress_and_one_that_models_came_from_lose_nothing(storage: LocalStore):
    checkpointed(storage, "running", [20.0, 30.0, 25.0])
    checkpointed(storage, "registered", [20.0, 30.0, 25.0])
    finish(storage, "registered")
    grow_old(storage)
    assert find(storage, {"registered"}).garbage == ()


def test_a_registered_run_is_known_when_its_own_folder_is_looked_through(storage: LocalStore):
    checkpointed(storage, "registered", [20.0, 30.0, 25.0])
    finish(storage, "registered")
    grow_old(storage)
    own = LocalStore(storage.root / "runs" / "registered")
    assert find(own, {"registered"}).garbage == ()
    assert len(find(own, set()).garbage) == 2  # the first checkpoint and its tensors


def with_another_blob(data: bytes) -> bytes:
    """Return a record that names another blob, as after a flipped bit; the blob that it named looks like garbage."""
    record = json.loads(data)
    return json.dumps(record | {"blobs": dict.fromkeys(record["blobs"], "0" * 64)}).encode()


@pytest.mark.parametrize("damage", [lambda _: b"<html>", lambda _: b"[" * 100_000, with_another_blob])
def test_a_run_with_a_damaged_record_is_left_alone(storage: LocalStore, damage):
    checkpointed(storage, "one", [20.0, 30.0, 25.0])
    finish(storage, "one")
    path = storage.path(storage.list("runs/one/checkpoints/")[0])
    path.write_bytes(damage(path.read_bytes()))
    grow_old(storage)
    found = find(storage, set())
    assert found.garbage == ()
    assert "skipped" in found.notes[0]


@pytest.mark.parametrize("rule", [{"newest": "many"}, {"hours": None}, {"best": [1]}])
def test_a_run_whose_result_has_a_damaged_rule_is_left_alone(storage: LocalStore, rule: dict[str, object]):
    checkpointed(storage, "one", [20.0, 30.0, 25.0])
    finish(storage, "one")
    path = storage.path("runs/one/result.json")
    result = json.loads(path.read_bytes())
    result.pop("sha256", None)
    path.write_bytes(json.dumps(result | {RETENTION_RULE: rule}).encode())
    grow_old(storage)
    found = find(storage, set())
    assert found.garbage == ()
    assert "skipped" in found.notes[0]


def test_what_a_killed_write_left_goes_when_it_is_old(raw: Path, storage: LocalStore):
    store = pack_seed(raw, storage, 0)
    left = store.root / "shards" / ".tmp-0123"
    left.write_bytes(b"half")
    assert "data/set/shards/.tmp-0123" not in {item.key for item in find(storage, ()).garbage}
    grow_old(storage)
    (item,) = find(storage, ()).garbage
    assert (item.key, item.size) == ("data/set/shards/.tmp-0123", 4)
    assert remove(storage, [item]) == 1
    assert not left.exists()
    verify(store, load_manifest(store), decode=True)
