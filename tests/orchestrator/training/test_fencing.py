"""Workers that train on after others took their place write nothing, and the run ends with the same bits."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.job_types import JobOutcome
from orchestrator.errors import NewOwnerError, SupersededError
from orchestrator.ownership import owned
from orchestrator.run_files import RESULT
from orchestrator.training.checkpoint import Checkpoints, Retention
from orchestrator.training.driver import ControlSignal
from orchestrator.training.fencing import Turn, fenced, new_claim, write_claim
from shards.store import LocalStore
from shards.store.checked import record_digest
from tests.claims import assert_same_weights, final_weights, wait_until
from tests.orchestrator.training.test_checkpoint import IDENTITY, state
from tests.orchestrator.training.test_loop import Listener, run


class Replaced(Listener):
    """A driver whose group is replaced after a step, without hearing of it."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__()
        self.folder, self.step = folder, step
        self.left: dict[str, bytes] = {}

    def control_signal(self, step: int) -> ControlSignal:
        if step == self.step:
            for earlier in range(2, step, 2):  # its checkpoint is written in the background
                record = f"{earlier:09d}-*.json"
                wait_until(lambda name=record: [*(self.folder / "checkpoints").glob(name)], record)
            claim_writing(LocalStore(self.folder))
            self.left = contents(self.folder)
        return ControlSignal.CONTINUE


def claim_writing(store: LocalStore, turn: Turn | None = None) -> str:
    claim = new_claim(store, turn)
    write_claim(store, claim)
    return claim


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("step", [3, 6])
def test_replaced_workers_write_nothing_more_and_the_new_ones_end_with_the_same_bits(
    small_job, small_data, tmp_path, step
) -> None:
    job, folder = small_job(data={"ledger": True}), tmp_path / "run"
    driver = Replaced(folder, step)
    run(small_job(), small_data, tmp_path / "undisturbed")
    assert run(job, small_data, folder, driver) == JobOutcome("stopped", 0, 6)
    assert {k: v for k, v in contents(folder).items() if k not in driver.left} == {}
    assert run(job, small_data, folder) == JobOutcome("finished", 6, 6)
    assert_same_weights(final_weights(folder), final_weights(tmp_path / "undisturbed"))


def test_a_result_that_replaced_workers_wrote_at_the_last_moment_is_the_result(
    small_job, small_data, tmp_path
) -> None:
    """The old group looked for a newer one, hung, and wrote after that."""
    old, new = tmp_path / "old", tmp_path / "new"
    run(small_job(), small_data, old)

    class Late(Listener):
        def control_signal(self, step: int) -> ControlSignal:
            if step == 6:
                result = json.loads((old / RESULT).read_text()) | {"finished_unix": 1}
                result["sha256"] = record_digest(result)
                (new / RESULT).write_text(json.dumps(result))
            return super().control_signal(step)

    assert run(small_job(), small_data, new, Late()) == JobOutcome("finished", 6, 6)
    assert json.loads((new / RESULT).read_text())["finished_unix"] == 1


def test_every_write_of_replaced_workers_is_refused_and_every_read_works(tmp_path) -> None:
    store = LocalStore(tmp_path)
    old = fenced(store, claim_writing(store))
    old.write("a", b"1")
    (tmp_path / "file").write_bytes(b"2")
    new = fenced(store, claim_writing(store))
    for write in (
        lambda: old.write("b", b"1"),
        lambda: old.write_file("b", tmp_path / "file"),
        lambda: old.create("b", b"1"),
        lambda: old.write_pointer("b", b"1"),
        lambda: old.delete("a"),
    ):
        with pytest.raises(SupersededError, match="other workers"):
            write()
    assert (old.read("a"), old.exists("b"), old.uri) == (b"1", False, store.uri)
    new.write("b", b"3")
    assert store.read("b") == b"3"


TURNS = [Turn(1, 1, 1), Turn(1, 1, 2), Turn(1, 2, 1), Turn(2, 1, 1), Turn(10, 1, 1)]


@given(st.permutations(TURNS))
def test_in_whatever_order_groups_claim_only_the_last_turn_writes(order: list[Turn]) -> None:
    """A group may hang before it claims, and a dead driver's Ray may start its group again."""
    with tempfile.TemporaryDirectory() as folder:
        store = LocalStore(folder)
        claims: dict[Turn, str] = {}
        for turn in order:
            claims[turn] = claim = new_claim(store, turn)
            if turn == max(claims):
                write_claim(store, claim)
                continue
            kind = SupersededError if turn.owner == max(claims).owner else NewOwnerError
            with pytest.raises(SupersededError) as error:
                write_claim(store, claim)
            assert type(error.value) is kind
        for turn, claim in claims.items():
            if turn == TURNS[-1]:
                fenced(store, claim).write("a", b"1")
            else:
                with pytest.raises(SupersededError):
                    fenced(store, claim).write("b", b"1")


@pytest.mark.parametrize(
    ("late", "status"),
    [(Turn(2, 1, 1), "restarting"), (Turn(1, 9, 9), "stopped")],
    ids=["a group that was replaced", "a group of a dead driver"],
)
def test_a_group_that_starts_late_does_not_stop_the_one_in_its_place(
    small_job, small_data, tmp_path, late, status
) -> None:
    ended: list[JobOutcome] = []

    class Hung(Listener):
        def control_signal(self, step: int) -> ControlSignal:
            if step == 3:
                ended.append(run(small_job(), small_data, tmp_path, turn=late))
            return super().control_signal(step)

    assert run(small_job(), small_data, tmp_path, Hung(), turn=Turn(2, 1, 2)) == JobOutcome("finished", 6, 6)
    assert ended == [JobOutcome(status, 0, 6)]


def test_workers_without_an_owner_follow_all_others_and_an_owner_follows_them(tmp_path) -> None:
    store = LocalStore(tmp_path)
    with owned(store, "run r", print) as lease:
        first = claim_writing(store, Turn(lease.number))
    trial = claim_writing(store)
    with owned(store, "run r", print) as lease:
        assert first < trial < claim_writing(store, Turn(lease.number))


def test_each_deletion_of_old_checkpoints_looks_for_newer_workers(tmp_path) -> None:
    class Taken(LocalStore):
        """A store in which other workers take over after the first deletion."""

        def delete(self, key: str) -> None:
            super().delete(key)
            if key.startswith("checkpoints/"):
                claim_writing(LocalStore(tmp_path))

    store = Taken(tmp_path)
    all_kept = Checkpoints(store, IDENTITY, keep=Retention(newest=9))
    for step in (1, 2, 3):
        all_kept.save(state(step))
        all_kept.wait()
    one_kept = Checkpoints(fenced(store, claim_writing(store)), IDENTITY, keep=Retention(newest=1, best=0))
    one_kept.save(state(4))
    with pytest.raises(SupersededError):
        one_kept.wait()
    assert len(all_kept.names()) == 3
