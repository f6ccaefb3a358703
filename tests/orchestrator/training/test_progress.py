"""What can be seen of a run: what its loss consists of, what its nodes do, a trace, and lines for programs."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from orchestrator.console import json_console
from orchestrator.data import datasets
from orchestrator.events import LogMessage, Metrics, ProfileWritten
from orchestrator.runner import run_any
from orchestrator.training.loss_breakdown import degradation_sums, with_breakdown
from orchestrator.training.system_metrics import NodeMetrics
from tests.orchestrator.training.test_loop import Listener, run


def test_the_loss_is_told_by_degradation_and_by_term(small_job, small_data, tmp_path) -> None:
    job, driver = (
        small_job(track={"every_steps": 6}, data={"mixture": {"haze": 3, "lowlight": 3}}),
        Listener(),
    )
    run(job, small_data, tmp_path, driver)
    told = driver.scalars[6]
    shares = [told[f"loss_share/{term}"] for term in ("l1", "fourier", "spd")]
    assert sum(shares) == pytest.approx(1)
    assert all(share > 0 for share in shares)
    each = {name: value for name, value in told.items() if name.startswith("loss_of/")}
    assert len(each) >= 2
    assert each.keys() <= {f"loss_of/{name}" for name in job.data.mixture}
    assert min(each.values()) < told["loss/l1"] < max(each.values())


def test_sums_by_degradation_are_those_of_the_images(small_job) -> None:
    job = small_job()
    restored, clean = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 4, 4)
    labels = torch.tensor([list(job.data.mixture).index(name) for name in ("haze", "rain", "haze")])
    found = degradation_sums(job, restored, clean, labels)
    each = (restored - clean).abs().mean((1, 2, 3))
    assert float(found["l1_sum/haze"]) == pytest.approx(float(each[0] + each[2]))
    assert float(found["images/haze"]) == 2
    assert float(found["images/blur"]) == 0
    whole = {name: float(value) for name, value in found.items()}
    whole |= {"loss/total": 1.0, "loss/l1": 1.0, "loss/fourier": 0.0, "loss/spd": 0.0}
    told = with_breakdown(job, whole)
    assert told["loss_of/rain"] == pytest.approx(float(each[1]))
    assert "loss_of/blur" not in told
    assert not any(name.startswith(("l1_sum", "images")) for name in told)


def test_a_node_tells_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_RANK", "3")
    meter = NodeMetrics.of_this_worker(torch.device("cpu"))
    assert meter is not None
    values = meter.read()
    assert all(name.startswith("system/node-3/") for name in values)
    assert 0 < values["system/node-3/memory_percent"] < 100
    assert values["system/node-3/disk_read_mib_per_second"] >= 0
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert NodeMetrics.of_this_worker(torch.device("cpu")) is None


def test_a_run_looks_at_its_node_as_often_as_asked(small_job, small_data, tmp_path) -> None:
    often, never = Listener(), Listener()
    run(small_job(track={"system_metrics_seconds": 1e-6}), small_data, tmp_path / "often", often)
    run(small_job(track={"system_metrics_seconds": 1e6}), small_data, tmp_path / "never", never)
    looked = [step for step, values in often.scalars.items() if "system/node-0/cpu_percent" in values]
    assert looked == [1, 2, 3, 4, 5, 6]
    assert not any("system" in name for values in never.scalars.values() for name in values)


def test_a_profile_of_the_asked_steps_is_left_in_the_run(small_job, small_data, tmp_path) -> None:
    driver = Listener()
    run(small_job(profile={"steps": 2, "skip_first": 3}), small_data, tmp_path, driver)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name.startswith("steps-3-to-5-")
    assert any(isinstance(e, ProfileWritten) and file.name in e.uri for e in driver.events)
    names = {event.get("name", "") for event in json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]}
    assert any("convolution" in name for name in names)
    assert any("Backward" in name for name in names)


def test_a_run_that_ends_within_its_profile_leaves_what_there_is(small_job, small_data, tmp_path) -> None:
    run(small_job(profile={"steps": 50, "skip_first": 4}), small_data, tmp_path)
    (file,) = (tmp_path / "profile").iterdir()
    assert file.name.startswith("steps-4-to-6-")


@pytest.fixture
def events(small_job, small_data, at_home, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    opened: list[object] = []
    open_dataset = datasets.open_dataset
    monkeypatch.setattr(datasets, "open_dataset", lambda job: opened.append(job) or open_dataset(job))
    lines: list[str] = []
    job = small_job(
        name="json",
        track={"log": "json", "register_as": None},
        profile={"steps": 1, "skip_first": 1},
        example=None,
    )
    run_any(job, lines.append, in_process=True)
    assert len(opened) == 1, "a job opens its dataset once"
    return [json.loads(line) for line in lines]


@pytest.mark.filterwarnings("ignore")
def test_a_driver_prints_one_json_object_per_event(events: list[dict], at_home) -> None:
    kinds = {event["event"] for event in events}
    assert kinds >= {"log_message", "run_started", "progress", "metrics", "validation", "run_finished"}
    assert all(event["job"] == "json" and event["time"].endswith("+00:00") for event in events)
    steps = [event["step"] for event in events if "loss/total" in event]
    assert steps == [2, 4, 6]
    texts = [event["text"] for event in events if "text" in event]
    assert len(texts) == len(set(texts))  # nothing twice
    assert any("step 6/6" in text for text in texts)
    assert list((at_home / "mlartifacts").rglob("profile/steps-*.json.gz"))


def test_what_is_not_finite_is_null_and_several_lines_are_one_event() -> None:
    lines: list[str] = []
    emit = json_console(lines.append, "job", lambda: 0.0)
    emit(Metrics(3, {"loss/total": float("nan"), "optim/lr": 0.5}))
    emit(LogMessage("a\nb\n"))
    emit(LogMessage("\n"))
    one, two = (json.loads(line) for line in lines)
    assert one == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "job": "job",
        "event": "metrics",
        "step": 3,
        "loss/total": None,
        "optim/lr": 0.5,
    }
    assert two["text"] == "a\nb\n"
