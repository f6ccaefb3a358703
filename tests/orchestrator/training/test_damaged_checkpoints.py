"""Whatever was damaged among its checkpoints, a run resumes from a whole one or asks, and ends with the same bits."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.identity import run_id
from orchestrator.config.job_types import JobOutcome
from orchestrator.config.schema import Job
from orchestrator.errors import CheckpointError, ModelError, TrainingError
from orchestrator.models.user_model import source_digest
from orchestrator.training.checkpoint import Checkpoints, Retention, RunIdentity
from orchestrator.training.engines.base import Engine
from orchestrator.training.loop import train
from shards.dataset import Dataset
from shards.store import LocalStore, checked
from shards.store.checked import record_digest
from tests.claims import assert_same_weights, final_weights
from tests.orchestrator.training.test_checkpoint import IDENTITY, state
from tests.orchestrator.training.test_loop import CPU, Listener, run


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)


def blob_of(record: Path, part: str) -> Path:
    digest = json.loads(record.read_bytes())["blobs"][part]
    return record.parents[1] / "blobs" / f"{digest}.safetensors"


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def sealed(**changes: object) -> Callable[[Path], None]:
    """Damage a record, but with the checksum of its new content; None removes a key."""

    def forge(record: Path) -> None:
        content = {**json.loads(record.read_bytes()), **changes}
        content = {key: value for key, value in content.items() if value is not None and key != "sha256"}
        overwrite(record, json.dumps({**content, "sha256": record_digest(content)}).encode())

    return forge


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty record": lambda record: overwrite(record, b""),
    "cut record": lambda record: overwrite(record, record.read_bytes()[:100]),
    "list": lambda record: overwrite(record, b"[1]"),
    "number": lambda record: overwrite(record, b"1"),
    "nested": lambda record: overwrite(record, b"[" * 100_000),
    "no text": lambda record: overwrite(record, b"\xff\xfe{}"),
    "another value": lambda record: overwrite(
        record, record.read_bytes().replace(b'"skipped_steps": 0', b'"skipped_steps": 1')
    ),
    "no blobs": sealed(blobs=None),
    "no optimizer": sealed(blobs={}),
    "no step": sealed(step=None),
    "step is text": sealed(step="4"),
    "step of another name": sealed(step=400),
    "metrics is a list": sealed(metrics=[]),
    "blob is a path": sealed(blobs={"model": "../../x", "optimizer": "y"}),
    "cut blob": lambda record: overwrite(
        blob_of(record, "model"), blob_of(record, "model").read_bytes()[:-8]
    ),
    "missing blob": lambda record: blob_of(record, "optimizer").unlink(),
}


def folder_with_checkpoints(folder: Path, *steps: int) -> list[Path]:
    checkpoints = Checkpoints(LocalStore(folder), IDENTITY, keep=Retention(9))
    for step in steps:
        checkpoints.save(state(step))
    checkpoints.wait()
    return sorted((folder / "checkpoints").iterdir())


def steps_in(folder: Path, kind: str = "checkpoints") -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in (folder / kind).glob("0*.json"))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoints_are_set_aside_and_what_is_written_next_stays(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    records = folder_with_checkpoints(tmp_path, 20, 24, 28, 30)
    for record in records[1:]:
        damage(record)
    contents = {record.name: record.read_bytes() for record in records[1:]}
    checkpoints = Checkpoints(LocalStore(tmp_path), IDENTITY, keep=Retention(1))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.load_newest()
    assert found is not None
    assert found[1].step == 20
    assert {path.name: path.read_bytes() for path in (tmp_path / "damaged").iterdir()} == contents
    assert all(f"{record.stem} is set aside" in caplog.text for record in records[1:])
    for step in (21, 22):
        checkpoints.save(state(step))
        written = checkpoints.wait()
        assert written is not None
        assert list(written.kept) == [written.name]
        assert steps_in(tmp_path) == [step]
    again = Checkpoints(LocalStore(tmp_path), IDENTITY, keep=Retention(1)).load_newest()
    assert again is not None
    assert again[1].step == 22


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_when_all_are_damaged_one_error_names_them_and_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    records = folder_with_checkpoints(tmp_path, 1, 2)
    for record in records:
        damage(record)
    for _ in range(2):
        checkpoints = Checkpoints(LocalStore(tmp_path), IDENTITY, keep=Retention(1))
        with pytest.raises(CheckpointError, match=r"checkpoint\.if_all_damaged=restart") as caught:
            checkpoints.load_newest()
        assert all(record.stem in str(caught.value) for record in records)
        assert steps_in(tmp_path) == [1, 2]
    assert checkpoints.load_newest(start_over=True) is None
    assert steps_in(tmp_path) == []
    assert steps_in(tmp_path, "damaged") == [1, 2]
    assert checkpoints.load_newest() is None  # the restart was asked for once


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["", *DAMAGE]), min_size=1, max_size=4), st.integers(1, 3))
def test_the_newest_whole_one_resumes_and_the_rules_count_whole_ones_only(
    tmp_path_factory: pytest.TempPathFactory, states: list[str], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("run")
    records = folder_with_checkpoints(folder, *range(1, len(states) + 1))
    for record, damage in zip(records, states, strict=True):
        if damage:
            DAMAGE[damage](record)
    whole = [step for step, damage in enumerate(states, 1) if not damage]
    checkpoints = Checkpoints(LocalStore(folder), IDENTITY, keep=Retention(keep, 0))
    found = checkpoints.load_newest(start_over=True)
    resumed = found[1].step if found else 0
    assert resumed == max(whole, default=0)
    checkpoints.save(state(resumed + 1))
    checkpoints.wait()
    assert resumed + 1 == max(steps_in(folder))
    newest = Checkpoints(LocalStore(folder), IDENTITY, keep=Retention(keep)).load_newest()
    assert newest is not None
    assert newest[1].step == resumed + 1


def test_a_run_with_a_damaged_newest_ends_with_the_bits_of_an_undisturbed_one(
    small_job, small_data, tmp_path
) -> None:
    job = small_job(checkpoint={"every_steps": 1, "keep": 3, "keep_best": 0})
    run(job, small_data, tmp_path / "whole")
    folder = tmp_path / "damaged"
    run(job, small_data, folder, Listener(stop_after=5))
    for record in sorted((folder / "checkpoints").iterdir())[1:]:
        overwrite(blob_of(record, "model"), b"")
    first = Listener(stop_after=1)
    assert run(job, small_data, folder, first) == JobOutcome("stopped", 4, 6)
    assert first.resumed_at() == [3]
    second = Listener()
    run(job, small_data, folder, second)
    assert second.resumed_at() == [4]
    assert_same_weights(final_weights(folder), final_weights(tmp_path / "whole"))


def test_a_run_asks_before_it_starts_at_step_0_again(small_job, small_data, tmp_path) -> None:
    run(small_job(), small_data, tmp_path, Listener(stop_after=4))
    for record in (tmp_path / "checkpoints").iterdir():
        overwrite(record, b"[1]")
    with pytest.raises(CheckpointError, match="no checkpoint of this run"):
        run(small_job(), small_data, tmp_path)
    asked = small_job(checkpoint={"if_all_damaged": "restart"})
    assert run(asked, small_data, tmp_path).status == "finished"


class Stale(LocalStore):
    """A store whose first lists are older than the newest changes."""

    def __init__(self, folder: Path, old: list[str], lists: int) -> None:
        super().__init__(folder)
        self.old, self.left = old, lists

    def list(self, prefix: str = "") -> list[str]:
        self.left -= 1
        return self.old if self.left >= 0 else super().list(prefix)


def test_a_list_older_than_the_newest_deletion_is_asked_for_again(tmp_path: Path) -> None:
    folder_with_checkpoints(tmp_path, 1, 2)
    old = [f"checkpoints/{n:09d}-{'a' * 12}.json" for n in (1, 9)]
    found = Checkpoints(Stale(tmp_path, old, 2), IDENTITY, keep=Retention(9)).load_newest()
    assert found is not None
    assert found[1].step == 2
    with pytest.raises(CheckpointError, match="damaged or gone"):
        Checkpoints(Stale(tmp_path, old, 99), IDENTITY, keep=Retention(9)).load_newest()
    checkpoints = Checkpoints(Stale(tmp_path, old, 99), IDENTITY, keep=Retention(9))
    checkpoints.save(state(3))
    checkpoints.wait()
    assert steps_in(tmp_path) == [1, 2, 3]


def test_files_that_are_no_checkpoints_are_ignored_with_one_warning_each(
    small_job, small_data, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    run(small_job(), small_data, tmp_path, Listener(stop_after=4))
    for name in (".DS_Store", "zzz", "000000099-note.json", "sub/000000001-aaaaaaaaaaaa.json", "1.json.bak"):
        (tmp_path / "checkpoints" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).write_bytes(b"x")
    driver = Listener()
    with caplog.at_level(logging.WARNING):
        assert run(small_job(), small_data, tmp_path, driver).status == "finished"
    assert driver.resumed_at() == [4]
    assert caplog.text.count("is no checkpoint, it is ignored") == 5


def test_a_record_beyond_the_end_of_the_job_does_not_finish_it(small_job, small_data, tmp_path) -> None:
    run(small_job(), small_data, tmp_path, Listener(stop_after=4))
    newest = max((tmp_path / "checkpoints").iterdir())
    per_step = small_job().train.global_batch_size
    sealed(step=500, position=500 * per_step)(newest)
    newest.rename(newest.with_name(newest.name.replace("000000004", "000000500")))
    with pytest.raises(TrainingError, match="is at step 500, but this job ends at step 6"):
        run(small_job(), small_data, tmp_path)


def test_another_version_of_the_code_is_named_and_goes_on(
    small_job, small_data, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    run(small_job(), small_data, tmp_path, Listener(stop_after=4))
    with caplog.at_level(logging.WARNING):
        train(small_job(), small_data, LocalStore(tmp_path), Engine(CPU), Listener(), "1.2.4+abc")
    assert "was written by version test, this is 1.2.4+abc" in caplog.text


def identity(job: Job, dataset: Dataset) -> RunIdentity:
    return RunIdentity(run_id(job, dataset.digests), tuple(dataset.digests))


def write_model(folder: Path, helper: str = "WIDTH = 4", note: str = "") -> None:
    (folder / "net").mkdir(exist_ok=True)
    (folder / "net" / "__init__.py").write_text("")
    (folder / "net" / "sizes.py").write_text(f"{helper}\n")
    (folder / "unrelated.py").write_text(f"# {note}\n")
    (folder / "net" / "model.py").write_text(
        "from torch import nn\nfrom .sizes import WIDTH\n\n\nclass Net(nn.Sequential):\n"
        "    def __init__(self) -> None:\n"
        "        super().__init__(nn.Conv2d(3, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 3, 3, padding=1))\n"
    )


@pytest.fixture
def fresh_modules(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))

    def forget() -> None:
        for name in [name for name in sys.modules if name == "net" or name.startswith("net.")]:
            del sys.modules[name]

    yield forget
    forget()


def test_the_digest_of_a_model_covers_what_it_imports_from_beside_it_and_nothing_else(
    tmp_path: Path, fresh_modules: Callable[[], None]
) -> None:
    def digest(**changes: str) -> str:
        fresh_modules()
        write_model(tmp_path, **changes)
        return source_digest("net.model:Net", str(tmp_path))

    first = digest()
    assert digest(note="changed") == first
    assert digest(helper="WIDTH = 8") != first
    assert digest() == first
    with pytest.raises(ModelError):
        source_digest("net.other:Net", str(tmp_path))


def test_a_run_of_a_changed_model_class_asks_before_it_goes_on(
    small_job, small_data, tmp_path, fresh_modules: Callable[[], None]
) -> None:
    def own(**changes: object):
        values = small_job(**changes).model_dump(mode="json")
        return small_job(
            model={
                "class": "net.model:Net",
                "path": str(tmp_path),
                "dim": None,
                "blocks": None,
                "heads": None,
                "refinement_blocks": None,
            },
            loss={"spd_weight": 0.0},
            track={"register_as": None},
            example=None,
            checkpoint=values["checkpoint"],
        )

    write_model(tmp_path)
    run(own(), small_data, tmp_path / "run", Listener(stop_after=2))
    fresh_modules()
    write_model(tmp_path, helper="WIDTH = 2 + 2")
    with pytest.raises(
        CheckpointError, match=r"model\.class is not that of checkpoint .*if_model_changed=continue"
    ):
        run(own(), small_data, tmp_path / "run")
    reader = Checkpoints(LocalStore(tmp_path / "run"), identity(own(), small_data), keep=Retention())
    assert reader.load_newest() is not None  # as a sweep copies the weights of another trial
    driver = Listener()
    assert (
        run(own(checkpoint={"if_model_changed": "continue"}), small_data, tmp_path / "run", driver).status
        == "finished"
    )
    assert driver.resumed_at() == [2]
