"""A finished run stays finished: a damaged result is computed again, and a damaged timing hinders nobody."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import DamagedResultError
from orchestrator.maintenance.sample_ledger import consumed
from orchestrator.planning.throughput import Throughput, earlier_runs, store_throughput
from orchestrator.run_files import RESULT
from orchestrator.training.result import is_finished, run_result
from shards.store import LocalStore, checked
from tests.claims import final_weights
from tests.orchestrator.training.test_loop import run

PACE = {"seconds_per_step": 0.5, "steps": 9, "workers": 1, "device": "CPU", "load_per_core": 0.5}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "_FIRST_PAUSE_SECONDS", 0.0)


def without(key: str) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({k: v for k, v in json.loads(data).items() if k != key}).encode()


def with_score(**values: object) -> Callable[[bytes], bytes]:
    def damage(data: bytes) -> bytes:
        result = json.loads(data)
        first, *others = result["scores"]
        return json.dumps({**result, "scores": [{**first, **values}, *others]}).encode()

    return damage


def changed(**values: object) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps({**json.loads(data), **values}).encode()


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "list": lambda data: b"[]",
    "null": lambda data: b"null",
    "nested": lambda data: b"[" * 100_000,
    "no text": lambda data: b"\xff\xfe",
    **{f"without {key}": without(key) for key in ("step", "weights", "averaged", "scores")},
    "other weights": changed(weights="../../etc/passwd"),
    "scores of another shape": changed(scores=[{"psnr": 1}]),
    "no scores": changed(scores=[]),
    "scores that are text": changed(scores="none"),
    "a score that is text": with_score(psnr="31"),
    "a score that is null": with_score(ssim=None),
    "a photograph that is a number": with_score(photograph=5),
    "too few moments": with_score(moments=[1.0, 2.0]),
    "moments that are text": with_score(moments="123456"),
}


def test_a_damaged_result_is_set_aside_and_computed_again(small_job, small_data, tmp_path) -> None:
    store, file = LocalStore(tmp_path), tmp_path / RESULT
    assert not is_finished(store)
    run(small_job(), small_data, tmp_path)
    assert is_finished(store)
    whole, weights = file.read_bytes(), sorted((tmp_path / "weights").iterdir())
    without_checksum = without("sha256")(whole)  # as older versions wrote it
    assert without_checksum != whole
    for name, damage in DAMAGE.items():
        file.chmod(0o644)
        damaged = damage(without_checksum)
        file.write_bytes(damaged)
        with pytest.raises(DamagedResultError, match="is not the result of a run"):
            run_result(store)
        assert not is_finished(store), name
        assert not file.exists()
        assert damaged in [kept.read_bytes() for kept in (tmp_path / "damaged").iterdir()]
        file.write_bytes(without_checksum)
        assert is_finished(store), "an older version wrote it"
    for at in [at for at, byte in enumerate(whole) if chr(byte).isdigit()][::40]:
        damaged = whole[:at] + (b"9" if whole[at : at + 1] != b"9" else b"1") + whole[at + 1 :]
        file.write_bytes(damaged)
        if json.loads(damaged) != json.loads(whole):  # no last digit that makes no difference
            with pytest.raises(DamagedResultError, match="checksum"):
                run_result(store)
    file.unlink()
    assert run(small_job(), small_data, tmp_path).status == "finished"
    assert sorted((tmp_path / "weights").iterdir()) == weights
    assert run_result(store)["scores"] == json.loads(whole)["scores"]
    assert final_weights(tmp_path)


def test_the_ledger_of_a_run_with_a_damaged_result_is_one_error(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_bytes(b"{")
    with pytest.raises(DamagedResultError, match="Submit the job again"):
        consumed(str(tmp_path))


def test_a_run_that_is_trained_again_writes_its_timing_again(small_job) -> None:
    job = small_job()
    for seconds in (0.5, 0.7, 0.7):
        store_throughput(job, "run", {**PACE, "seconds_per_step": seconds})
        ((_, found),) = earlier_runs(job)
        assert found.seconds_per_step == seconds
    (Path(job.storage) / "timings" / "run.json").chmod(0o644)
    (Path(job.storage) / "timings" / "run.json").write_bytes(b"{")
    store_throughput(job, "run", PACE)
    assert earlier_runs(job) == [(job, Throughput(**PACE))]


def test_a_timing_that_cannot_be_stored_is_a_warning(small_job, caplog: pytest.LogCaptureFixture) -> None:
    job = small_job()
    timings = Path(job.storage) / "timings"
    timings.parent.mkdir(parents=True, exist_ok=True)
    timings.write_bytes(b"no folder")
    store_throughput(job, "run", PACE)
    assert "how fast run run was" in caplog.text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_file_among_the_timings_hinders_a_plan_and_the_whole_ones_count(
    small_job, data: st.DataObject
) -> None:
    job = small_job()
    store_throughput(job, "whole", PACE)
    folder = Path(job.storage) / "timings"
    whole: dict[str, Any] = json.loads((folder / "whole.json").read_bytes())
    kind = data.draw(st.sampled_from(["bytes", "value", "job", "pace", "one of job", "one of pace"]))
    torn = {
        "bytes": lambda: data.draw(st.binary(max_size=20)),
        "value": lambda: json.dumps(data.draw(values)).encode(),
        "job": lambda: json.dumps({**whole, "job": data.draw(values)}).encode(),
        "pace": lambda: json.dumps({**whole, "pace": data.draw(values)}).encode(),
        "one of job": lambda: json.dumps(
            {
                **whole,
                "job": {**whole["job"], data.draw(st.sampled_from(sorted(whole["job"]))): data.draw(values)},
            }
        ).encode(),
        "one of pace": lambda: json.dumps(
            {**whole, "pace": {**PACE, data.draw(st.sampled_from(sorted(PACE))): data.draw(values)}}
        ).encode(),
    }[kind]()
    (folder / "torn.json").write_bytes(torn)
    (folder / "nested.json").write_bytes(b"[" * 100_000)
    found = earlier_runs(job)
    assert (job, Throughput(**PACE)) in found
    for _, pace in found:
        assert 0 < pace.seconds_per_step < float("inf")
        assert pace.workers >= 1
