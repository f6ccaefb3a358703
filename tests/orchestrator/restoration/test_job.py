"""A job of kind `restore`, in this process: the same results as the command, each once."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.config.loader import job_from_mapping, load_job
from orchestrator.errors import JobFileError, PhotoError
from orchestrator.restoration.result_index import FOLDER
from orchestrator.restoration.worker_spec import LOT
from orchestrator.runner import plan_any, run_any
from shards.store import open_store

RESULTS = ["alpha.png", "deep.png", "deep.tif", "grey.png", "trip/turned.jpg", "turned.jpg"]


def run(say: Callable[[str], None], crew: dict[str, Any] | None = None, **restore: object) -> str:
    job = job_from_mapping({"name": "r", "kind": "restore", "restore": restore, "workers": crew or {}})
    return str(run_any(job, say, in_process=True).status)


def one_thread(command: Callable[..., Any], *arguments: str) -> None:
    done = command(*arguments, "--threads", "1")
    assert done.status == 0, done.text


def test_a_job_makes_what_the_command_makes_and_a_second_one_nothing(
    folder: Path, weights: str, restore: Callable[..., Any]
) -> None:
    said: list[str] = []
    how = {"model": weights, "inputs": "in", "out": "by-job"}
    assert run(said.append, **how) == "finished"
    assert said[-1].startswith("6 restored in")
    one_thread(restore, "in", "-o", "by-command")
    for name in RESULTS:
        assert (folder.parent / "by-job" / name).read_bytes() == (
            folder.parent / "by-command" / name
        ).read_bytes()
    run(said.append, **how)
    assert said[-1].startswith("0 restored, 6 done already in")
    assert len(list((folder.parent / "by-job" / FOLDER).glob("*.jsonl"))) == 1


def test_a_job_goes_from_a_bucket_to_a_bucket(folder: Path, weights: str, bucket: str) -> None:
    store = open_store(bucket)
    for name in RESULTS:
        store.write(f"raw/{name}", (folder / name).read_bytes())
    said: list[str] = []
    how = {"model": weights, "inputs": [f"{bucket}/raw"], "out": f"{bucket}/restored"}
    run(said.append, **how)
    assert [key for key in store.list("restored/") if FOLDER not in key] == [f"restored/{n}" for n in RESULTS]
    run(said.append, **how)
    assert said[-1].startswith("0 restored, 6 done already in")


def test_batches_of_one_size_are_one_level_off_at_most(folder: Path, weights: str) -> None:
    for name, batch_size in (("single", 1), ("batched", 3)):
        run(lambda line: None, model=weights, inputs="in", out=name, batch_size=batch_size)
    for name in RESULTS:
        if name.endswith(".png") and name != "deep.png":
            pair = [
                np.asarray(Image.open(folder.parent / out / name), np.int16) for out in ("single", "batched")
            ]
            assert np.abs(pair[0] - pair[1]).max() <= 1


def test_what_cannot_be_restored_is_named_and_fails_the_job_at_its_end(folder: Path, weights: str) -> None:
    (folder / "text.jpg").write_text("no photograph")
    said: list[str] = []
    with pytest.raises(PhotoError, match="1 of 7 could not be restored"):
        run(said.append, model=weights, inputs="in", out="out")
    assert "in/text.jpg: not a JPEG" in "\n".join(said)
    assert said[-1].startswith("6 restored, 1 failed in")


def test_a_stopped_job_goes_on(folder: Path, weights: str) -> None:
    for index in range(2 * LOT):
        Image.fromarray(np.full((20, 20, 3), index, np.uint8)).save(folder / f"plain{index:02}.png")
    said: list[str] = []

    how = {"model": weights, "inputs": "in", "out": "out"}
    (folder / "plain00.png").write_bytes(b"no photograph")  # says a line while it works

    def stop_while_working(line: str) -> None:
        said.append(line)
        if "plain00.png" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(stop_while_working, **how) == "stopped"
    assert "Submit the job again to go on." in said[-1]
    (folder / "plain00.png").unlink()
    assert run(said.append, **how) == "finished"
    assert "done already" in said[-1]
    assert not said[-1].startswith("0 restored")


def test_a_plan_counts_and_writes_nothing(folder: Path, weights: str) -> None:
    job = job_from_mapping(
        {"name": "r", "kind": "restore", "restore": {"model": weights, "inputs": "in", "out": "out"}}
    )
    assert "photographs  6 in in" in plan_any(job)
    assert not (folder.parent / "out").exists()


def test_a_wrong_job_is_refused_with_all_its_problems() -> None:
    values = {"name": "r", "kind": "restore", "workers": {"min": 3, "max": 2}}
    values["restore"] = {"model": "w", "inputs": "in", "out": "out", "tile": 100}
    with pytest.raises(JobFileError) as refusal:
        job_from_mapping(values)
    assert "100 is not a multiple of 8" in str(refusal.value)
    assert "3 is more than workers.max, 2" in str(refusal.value)


def test_the_example_is_a_job() -> None:
    path = Path(__file__).parents[3] / "jobs" / "restore.yaml"
    assert load_job(path).kind == "restore"
    assert os.access(path, os.X_OK)
