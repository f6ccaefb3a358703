"""`mirage prove-resume`: a killed and resumed run equals an uninterrupted one; a broken resume is detected."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from orchestrator.config.identity import run_id
from orchestrator.config.schema import Job
from orchestrator.errors import PlanError
from orchestrator.events import Event, WorkerKilled, read_log, to_dict
from orchestrator.maintenance.garbage_collection import find, remove
from orchestrator.resilience.resume_proof import (
    Proof,
    ProofConfig,
    RunSegment,
    instrument,
    newest_step,
    prove_resume,
    run_folders,
    run_in_processes,
)
from orchestrator.training.checkpoint import Checkpoints, Retention, RunIdentity
from orchestrator.training.driver import ControlSignal
from orchestrator.training.fault_injection import FaultInjectingDriver, KillSchedule
from shards.dataset import Dataset
from shards.store import Store, open_store
from shards.store.files import TEMPORARY


@pytest.fixture
def endless(small_job) -> Job:
    return small_job(train={"steps": 100}, validation={"every_steps": 100}, workers={"max": 4})


def test_the_seed_determines_the_kill_steps() -> None:
    steps = ProofConfig(kills=4, seed=1, steps=30, workers=1).kill_steps()
    assert steps == ProofConfig(kills=4, seed=1, steps=30, workers=1).kill_steps()
    assert steps != ProofConfig(kills=4, seed=2, steps=30, workers=1).kill_steps()
    assert sorted(set(steps)) == steps
    assert steps[0] > 0
    assert steps[-1] < 30


def test_segments_contain_every_kill_and_the_numbers_of_workers_in_turn() -> None:
    same = ProofConfig(kills=3, seed=1, steps=30, workers=2)
    (only,) = same.segments()
    assert [step for step, _ in only.kills] == same.kill_steps()
    assert {worker for _, worker in only.kills} <= {0, 1}
    first, second, third, last = replace(same, resume_workers=(3, 1)).segments()
    assert [s.workers for s in (first, second, third, last)] == [2, 3, 1, 3]
    assert [step for s in (first, second, third) for step, _ in s.kills] == same.kill_steps()
    assert last.kills == ()
    assert replace(same, kills=1, resume_workers=(2,)).segments() == [
        RunSegment(2, replace(same, kills=1).segments()[0].kills)
    ]


class SilentDriver:
    """Driver that always continues."""

    def emit(self, event: Event) -> None:
        print(json.dumps(to_dict(event)))

    def control_signal(self, step: int) -> ControlSignal:
        return ControlSignal.CONTINUE

    def flush(self) -> None:
        sys.stdout.flush()


SCHEDULE = KillSchedule(stop_step=9, kills=((3, 1), (5, 0)))


def test_a_worker_reports_its_kill_and_dies_at_the_scheduled_step() -> None:
    script = (
        "from tests.orchestrator.resilience.test_resume_proof import *\n"
        "driver = FaultInjectingDriver(SilentDriver(), SCHEDULE, rank=1, group=1)\n"
        "for step in range(1, 9): print(step); driver.control_signal(step)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split("\n")[:3] == ["1", "2", "3"]
    assert read_log(done.stdout) == [WorkerKilled(rank=1, step=3)]


def test_other_workers_continue_and_the_last_group_stops_at_the_stop_step() -> None:
    def signals(rank: int, group: int, steps: tuple[int, ...]) -> list[ControlSignal]:
        return [
            FaultInjectingDriver(SilentDriver(), SCHEDULE, rank, group).control_signal(step) for step in steps
        ]

    assert signals(0, 1, (2, 3, 9)) == [ControlSignal.CONTINUE] * 3
    assert signals(1, 2, (5, 9)) == [ControlSignal.CONTINUE] * 2
    assert signals(0, 3, (5, 8, 9)) == [ControlSignal.CONTINUE, ControlSignal.CONTINUE, ControlSignal.STOP]


def test_a_run_killed_on_two_workers_is_bit_equal_at_every_checkpoint(endless, small_data) -> None:
    lines: list[str] = []
    proofs = Path(endless.storage) / "proofs"
    before = sorted(proofs.rglob("*"))
    proof = prove_resume(endless, ProofConfig(kills=1, seed=2, steps=8, workers=2), lines.append)
    assert proof.holds, proof.render()
    assert proof.compared == (2, 4, 6, 8)
    assert not proof.different
    assert proof.attempts == 2
    assert sum("is killed" in line for line in lines) == 1
    assert "bit-equal" in proof.render()
    assert proof.render().endswith("RESUMES EXACTLY")
    assert sorted(proofs.rglob("*")) == before  # no empty folder either


def test_resumed_on_three_workers_it_consumes_the_same_samples(endless, small_data) -> None:
    job = endless.model_copy(update={"train": endless.train.model_copy(update={"global_batch_size": 4})})
    proof = prove_resume(
        job, ProofConfig(kills=1, seed=0, steps=6, workers=1, resume_workers=(3,)), print, keep=True
    )
    assert proof.holds, proof.render()
    assert not proof.same_world_size
    assert proof.compared == (1, 2, 3, 4, 5, 6)  # at least four checkpoints
    assert proof.positions == 24
    assert_kept(job)


def assert_kept(job: Job) -> None:
    """Check that both runs exist and that `mirage gc` recognizes and removes them."""
    store = open_store(job.storage)
    kept = store.list("proofs/")
    for run in ("reference", "killed"):
        assert any(f"/{run}/checkpoints/" in key for key in kept)
        assert any(f"/{run}/ledger/" in key for key in kept)
    found = find(store, set(), grace_hours=0).garbage
    removed = {item.key for item in found if item.key.startswith("proofs/")}
    # A killed worker may leave a file that it was writing, which `list` does not name.
    assert {key for key in removed if TEMPORARY not in key} == set(kept)
    remove(store, [item for item in found if item.key in kept])


def forget_moments(job: Job, dataset: Dataset):
    """Return a function that zeroes the second moments in the newest checkpoint and writes it with a valid checksum."""

    def tamper(store: Store) -> None:
        identity = RunIdentity(run_id(job, dataset.digests), tuple(dataset.digests))
        checkpoints = Checkpoints(store, identity, keep=Retention(10**6))
        newest = checkpoints.load_newest()
        assert newest is not None
        name, state = newest
        optimizer = {
            key: torch.zeros_like(value) if key.endswith("exp_avg_sq") else value
            for key, value in state.tensors["optimizer"].items()
        }
        store.delete(f"checkpoints/{name}.json")
        checkpoints.save(replace(state, tensors={**state.tensors, "optimizer": optimizer}))
        checkpoints.wait()

    return tamper


def test_a_resume_that_forgets_moments_is_detected(endless, small_data) -> None:
    config = ProofConfig(kills=1, seed=0, steps=8, workers=1)
    assert config.kill_steps()[0] > 2
    proof = prove_resume(
        endless,
        config,
        print,
        runner=partial(run_in_processes, after_kill=forget_moments(endless, small_data)),
    )
    assert not proof.holds
    assert "different from step" in proof.render()
    assert "DOES NOT RESUME EXACTLY" in proof.render()
    assert_kept(endless)


def test_a_ledger_with_another_sample_is_detected(endless, small_data) -> None:
    def swap(store: Store) -> None:
        key = store.list("ledger/")[0]
        first, *rest = store.read(key).decode().splitlines()
        line = json.loads(first)
        line["samples"][0][2] = "another"
        store.delete(key)
        store.write(key, "\n".join([json.dumps(line), *rest, ""]).encode())

    proof = prove_resume(
        endless,
        ProofConfig(kills=1, seed=4, steps=6, workers=1, resume_workers=(2,)),
        print,
        runner=partial(run_in_processes, after_kill=swap),
    )
    assert not proof.holds
    assert "another" in proof.render()


def test_impossible_proofs_are_refused(endless, small_data) -> None:
    with pytest.raises(PlanError, match="need more than 3 steps"):
        instrument(endless, small_data, ProofConfig(kills=3, seed=0, steps=3, workers=1))
    with pytest.raises(PlanError, match="9 workers cannot share a micro-batch of 6"):
        instrument(endless, small_data, ProofConfig(kills=1, seed=0, steps=5, workers=1, resume_workers=(9,)))
    two = endless.model_copy(update={"train": endless.train.model_copy(update={"micro_batches": 2})})
    with pytest.raises(PlanError, match="4 workers cannot share a micro-batch of 3"):
        instrument(two, small_data, ProofConfig(kills=1, seed=0, steps=5, workers=4))


def test_a_proof_leaves_the_run_itself_and_earlier_proofs_alone(endless, small_data) -> None:
    config = ProofConfig(kills=1, seed=77, steps=4, workers=1)
    one = run_folders(endless, small_data, config)
    assert "/proofs/" in one[0]
    open_store(one[0]).write("x", b"")
    assert run_folders(endless, small_data, config) != one
    assert newest_step(open_store(one[0])) == 0


def test_a_proof_lists_eight_steps_and_of_more_the_first_two_and_the_last() -> None:
    def first_line(*steps: int) -> str:
        return Proof(steps, {}, "", 24, 2, True).render().splitlines()[0]

    assert first_line(*range(1, 9)).endswith("8, at step 1, 2, 3, 4, 5, 6, 7, 8")
    assert first_line(*range(1, 10)).endswith("9, at step 1, 2, ... 9")
    assert first_line().endswith("0, at step -")


@pytest.mark.parametrize(
    ("proof", "holds", "says"),
    [
        (Proof((2,), {}, "", 8, 1, True), True, "RESUMES EXACTLY"),
        (Proof((), {}, "", 8, 1, True), False, "DOES NOT RESUME EXACTLY"),
        (Proof((2,), {}, "twice", 8, 1, True), False, "DOES NOT RESUME EXACTLY"),
        (Proof((2,), {2: ("EMA",)}, "", 8, 1, True), False, "DOES NOT RESUME EXACTLY"),
        (Proof((2,), {2: ("EMA",)}, "", 8, 1, False), True, "THE SAME SAMPLES, EACH ONCE"),
    ],
)
def test_a_proof_holds_for_equal_samples_and_for_equal_states_on_as_many_workers(
    proof: Proof, holds: bool, says: str
) -> None:
    assert proof.holds is holds
    *lines, last = proof.render().splitlines()
    assert last == says
    assert any("not required" in line for line in lines) is not proof.same_world_size


def test_a_proof_writes_a_ledger_and_four_checkpoints_and_keeps_them(endless, small_data) -> None:
    config = ProofConfig(kills=1, seed=0, steps=20, workers=1)
    seldom = endless.model_copy(
        update={"checkpoint": endless.checkpoint.model_copy(update={"every_steps": 50})}
    )
    found, changed = instrument(seldom, small_data, config)
    assert found == config
    assert (changed.checkpoint.every_steps, changed.track.every_steps, changed.data.ledger) == (5, 1, True)
    assert changed.checkpoint.keep >= 10**6
    assert run_id(changed, small_data.digests) == run_id(endless, small_data.digests)
    found, changed = instrument(seldom, small_data, replace(config, steps=1000))
    assert (found.steps, changed.checkpoint.every_steps) == (100, 25)
    assert instrument(seldom, small_data, replace(config, steps=3))[1].checkpoint.every_steps == 1
    assert instrument(endless, small_data, replace(config, steps=1000))[1].checkpoint.every_steps <= 5
