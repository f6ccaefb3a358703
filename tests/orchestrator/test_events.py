"""Events: each survives its serialisation, and no consumer depends on their wording."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import pytest

from orchestrator import console, events
from orchestrator.console import json_console, text, text_console
from orchestrator.events import Event, from_dict, read_log, to_dict

EXAMPLES: list[Event] = [
    events.LogMessage("two\nlines", "warning"),
    events.RunStarted("demo-1", resumed=True),
    events.RunAlreadyFinished("demo-1"),
    events.RunStopped(3),
    events.ModelRegistered("demo", "2", "models:/demo@candidate"),
    events.RunFinished("demo-1", {"report.md": "runs/report.md", "sheet.png": "runs/sheet.png"}, "mlflow ui"),
    events.WorkersStarting(2),
    events.WorkersStarted(2),
    events.WorkersLost(("a" * 20,), (0, 1), "1 to 2 x (1 CPU, 0 GPU)"),
    events.NodesDraining(("a" * 20, "b" * 20), (1, 2), 7.5),
    events.NodesDraining(("a" * 20,), (1,), None),
    events.CapacityAvailable(2),
    events.WorkerTerminated(1),
    events.StopRequested("workers.max_runtime_hours (2) is over"),
    events.WorkersRestarting(40),
    events.WorkersReplaced((1,), "ActorDiedError: the worker died"),
    events.WorkersHung((1, 2), ("a" * 56, "b" * 56)),
    events.WorkersFailed("a worker died"),
    events.WorkerKilled(1, 3),
    events.Resumed("000000030-0123456789ab", 30),
    events.CheckpointWritten(30, "000000030-0123456789ab", {"000000030-0123456789ab": {"val/psnr": 20.5}}),
    events.ProfileWritten("s3://bucket/profile.json.gz"),
    events.Metrics(3, {"system/node-0/cpu_percent": 12.5}),
    events.Progress(3, {"loss/total": 0.5, "perf/images_per_second": 8.0, "perf/data_wait": 0.01}, 20, 61.0),
    events.Validation(3, {"val/psnr": 20.0}, {"haze": 20.0, "mean": 20.0}, {"haze": 1.0, "mean": 1.0}),
]


def test_every_kind_of_event_has_an_example() -> None:
    abstract = {events.Measured, events.RestartRequested}
    assert {type(event) for event in EXAMPLES} == set(Event.types.values()) - abstract - {events.Image}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: event.kind)
def test_an_event_survives_pickle_and_the_json_log(event: Event) -> None:
    assert pickle.loads(pickle.dumps(event)) == event
    lines: list[str] = []
    json_console(lines.append, "job")(event)
    assert [from_dict(json.loads(line)) for line in lines] == [event]


def test_a_metric_that_is_not_finite_is_null_in_json() -> None:
    values = to_dict(events.Metrics(1, {"loss/total": math.inf}))
    assert values["loss/total"] is None
    (event,) = read_log(json.dumps(values))
    assert isinstance(event, events.Metrics)
    assert math.isnan(event.metrics["loss/total"])


def test_a_log_that_was_cut_off_or_has_other_output_in_it_still_gives_its_events() -> None:
    whole = json.dumps(to_dict(events.WorkersStarted(2)))
    assert read_log(f'a library printed this\n[1]\n{{"event": "unknown"}}\n{whole}\n{whole[:-4]}') == [
        events.WorkersStarted(2)
    ]


def test_the_json_log_leaves_images_out() -> None:
    lines: list[str] = []
    json_console(lines.append, "job")(events.Image("sheet", b"\x89PNG", 3))
    assert not lines


def test_metrics_alone_print_no_text() -> None:
    lines: list[str] = []
    text_console(lines.append)(events.Metrics(3, {"loss/total": 1.0}))
    assert not lines


def test_every_event_but_metrics_checkpoints_and_images_has_a_text() -> None:
    assert [event for event in EXAMPLES if not text(event)] == [
        event for event in EXAMPLES if isinstance(event, events.Metrics | events.CheckpointWritten)
    ]


def test_rewording_the_console_changes_no_consumer(
    monkeypatch: pytest.MonkeyPatch, small_job, small_data, tmp_path: Path
) -> None:
    """With every text replaced, chaos counts the same steps and a proof still finds the run exact."""
    from orchestrator.resilience.fault_schedule import newest_step, repeated_steps
    from orchestrator.resilience.resume_proof import ProofConfig, prove_resume

    monkeypatch.setattr(console, "text", lambda event: "reworded")
    lines: list[str] = []
    emit = json_console(lines.append, "job")
    for event in (events.WorkersStarted(2), events.Resumed("c", 30), events.Progress(31, {}, 100, 0.0)):
        emit(event)
    found = read_log("\n".join(lines))
    assert newest_step(found) == 31
    assert repeated_steps(found, at_step=40) == 10
    job = small_job(storage=str(tmp_path), train={"steps": 100}, validation={"every_steps": 100})
    proof = prove_resume(job, ProofConfig(kills=1, seed=0, steps=4, workers=1), lambda line: None)
    assert proof.holds, proof.render()
