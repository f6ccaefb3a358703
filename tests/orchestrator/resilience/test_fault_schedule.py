"""Parts of `mirage chaos` that need no cluster: fault schedule, report, and a run on a failing store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster.local import s3_server
from orchestrator.events import Event, Progress, Resumed, WorkersStarted
from orchestrator.resilience.fault_schedule import (
    FAULT_KINDS,
    KILL_KINDS,
    ChaosReport,
    FaultOutcome,
    ScheduledFault,
    newest_step,
    repeated_steps,
    schedule_faults,
)
from orchestrator.resilience.faulty_proxy import FaultyProxy, RequestFault, random_faults
from orchestrator.resilience.resume_proof import Proof, ProofConfig, prove_resume
from tests.claims import assert_one_clear_error, mirage

WHOLE = Proof(compared=(2, 4), different={}, ledger="", positions=24, attempts=3, same_world_size=True)


def report(**changes: object) -> ChaosReport:
    faults = schedule_faults(len(FAULT_KINDS), seed=0, steps=100)
    outcomes = [FaultOutcome(fault, fault.step, 12.0, 4 * (fault.kind in KILL_KINDS)) for fault in faults]
    return replace(ChaosReport(outcomes, {"HTTP 503": 3}, 2, WHOLE, 0), **changes)


def test_every_kind_of_fault_is_scheduled_once_before_any_repeats() -> None:
    kinds = len(FAULT_KINDS)
    scheduled = schedule_faults(kinds + 2, seed=3, steps=70)
    assert {fault.kind for fault in scheduled[:kinds]} == set(FAULT_KINDS)
    steps = [fault.step for fault in scheduled]
    assert steps == sorted(set(steps))
    assert steps[0] > 0
    assert steps[-1] < 70
    assert scheduled == schedule_faults(kinds + 2, seed=3, steps=70)
    assert scheduled != schedule_faults(kinds + 2, seed=4, steps=70)


def test_only_the_selected_kinds_are_scheduled() -> None:
    assert {
        fault.kind for fault in schedule_faults(4, seed=0, steps=50, kinds=["node lost", "store faulty"])
    } == {
        "node lost",
        "store faulty",
    }


def progress(*steps: int) -> list[Event]:
    return [Progress(step, {}, total_steps=100, seconds_left=0.0) for step in steps]


def test_repeated_steps_follow_from_the_events_since_a_kill() -> None:
    late = progress(41, 42)
    started = [WorkersStarted(2), Resumed("000000030-0123456789ab", 30)]
    assert newest_step(late) == 42
    assert repeated_steps(late, at_step=40) is None
    assert repeated_steps(late + started, at_step=40) is None
    assert repeated_steps(late + started + progress(31, 32), at_step=40) == 12
    assert repeated_steps(started + progress(31), at_step=40) == 10
    assert repeated_steps([WorkersStarted(1), *progress(1)], at_step=3) == 3


def test_the_report_lists_every_fault_and_that_nothing_was_lost() -> None:
    text = report().render()
    for kind in FAULT_KINDS:
        assert f"{kind}" in text
    rows = {
        line[:21].strip(): line.split()[-4:] for line in text.splitlines() if line.startswith(FAULT_KINDS)
    }
    assert rows["worker killed"] == ["1", "12", "s", "4"]
    assert rows["store faulty"] == ["1", "12", "s", "-"]
    assert "3 x HTTP 503" in text
    assert text.endswith("NOTHING WAS LOST")


@pytest.mark.parametrize(
    "loss",
    [
        {"untracked_steps": 1},
        {"proof": replace(WHOLE, different={4: ("model",)})},
        {"proof": replace(WHOLE, ledger="position 3 is missing")},
        {"outcomes": [FaultOutcome(schedule_faults(1, 0, 10)[0], 4, None)]},
    ],
)
def test_any_loss_is_reported(loss: dict[str, object]) -> None:
    lost = report(**loss)
    assert not lost.holds
    assert lost.render().endswith("SOMETHING WAS LOST")


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    server = s3_server.new(None)
    (tmp_path / "s3").mkdir()
    process = s3_server.start(server, tmp_path / "s3", tmp_path / "log.txt", "chaos-test")
    with FaultyProxy(server.port, stall_seconds=0.2) as proxy:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy
    psutil.Process(process.pid).kill()


def test_a_killed_run_on_a_failing_store_loses_nothing_and_needs_no_disk_of_its_earlier_workers(
    small_job, faulty: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = (tmp_path / f"disk-{number}" for number in itertools.count())

    def on_another_disk(line: str) -> None:
        monkeypatch.setenv("MIRAGE_CACHE", str(next(disks)))

    job = small_job(
        storage="s3://faulty",
        data={"manifests": "small"},
        train={"steps": 100},
        validation={"every_steps": 100},
    )
    faulty.plan = random_faults(0.1, seed=5)
    proof = prove_resume(job, ProofConfig(kills=1, seed=0, steps=8, workers=1), on_another_disk)
    assert len({shard.parents[1] for shard in tmp_path.glob("disk-*/shards/*.tar")}) >= 3
    assert proof.holds, proof.render()
    kinds = {fault for fault in faulty.counts if fault is not RequestFault.NONE}
    assert len(kinds) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--workers", "9"), "9 workers cannot share a micro-batch of 2 images"),
        (("--faults", "30", "--steps", "20"), "30 faults need as many steps"),
        (("--only", "moon"), "--only moon: choose from worker"),
    ],
)
def test_impossible_options_are_refused_before_anything_starts(
    options: tuple[str, ...], message: str
) -> None:
    assert_one_clear_error(mirage("chaos", "jobs/demo.yaml", *options), message)


def test_faults_come_at_least_half_a_share_of_the_steps_apart_and_before_the_end() -> None:
    for seed in range(20):
        steps = [fault.step for fault in schedule_faults(9, seed, steps=1000)]
        assert all(50 <= step - 100 * number <= 100 for number, step in enumerate(steps))
    assert [fault.step for fault in schedule_faults(4, seed=0, steps=1)] == [1, 1, 1, 1]


def test_steps_that_were_reported_before_the_new_workers_started_are_repeated_too() -> None:
    after = [*progress(44), WorkersStarted(2), *progress(41)]
    assert repeated_steps(after, at_step=40) == 4
    assert repeated_steps([WorkersStarted(2), *progress(50)], at_step=40) == 0
    assert newest_step([]) == 0


def test_the_report_has_one_line_for_each_kind_with_all_its_faults() -> None:
    first, second = (ScheduledFault("worker killed", step) for step in (10, 20))
    store = ScheduledFault("store faulty", 30)
    outcomes = [
        FaultOutcome(first, 10, 12.4, 3),
        FaultOutcome(second, 20, 9.0, 5),
        FaultOutcome(store, 30, None),
    ]
    text = report(outcomes=outcomes, store_faults={}).render()
    rows = [line.split() for line in text.splitlines() if line.startswith(FAULT_KINDS)]
    assert sorted(rows) == [
        ["store", "faulty", "1", "0", "never", "-"],
        ["worker", "killed", "2", "2", "12", "s,", "9", "s", "3,", "5"],
    ]
    assert "failed requests to the store     none" in text
