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
from orchestrator.restoration.worker_spec import CHUNK_SIZE
from orchestrator.runner import plan_any, run_any
from shards.store import open_store

RESULTS = ["alpha.png", "deep.png", "deep.tif", "grey.png", "trip/turned.jpg", "turned.jpg"]


def run(log: Callable[[str], None], workers: dict[str, Any] | None = None, **restore: object) -> str:
    job = job_from_mapping({"name": "r", "kind": "restore", "restore": restore, "workers": workers or {}})
    return str(run_any(job, log, in_process=True).status)


def one_thread(command: Callable[..., Any], *arguments: str) -> None:
    done = command(*arguments, "--threads", "1")
    assert done.status == 0, done.text


def test_a_job_gives_the_same_files_as_the_command_and_a_second_run_none(
    folder: Path, weights: str, restore: Callable[..., Any]
) -> None:
    logged: list[str] = []
    how = {"model": weights, "inputs": "in", "out": "by-job"}
    assert run(logged.append, **how) == "finished"
    assert logged[-1].startswith("6 restored in")
    one_thread(restore, "in", "-o", "by-command")
    for name in RESULTS:
        assert (folder.parent / "by-job" / name).read_bytes() == (
            folder.parent / "by-command" / name
        ).read_bytes()
    run(logged.append, **how)
    assert logged[-1].startswith("0 restored, 6 already restored in")
    assert len(list((folder.parent / "by-job" / FOLDER).glob("*.jsonl"))) == 1


def test_a_job_restores_from_bucket_to_bucket(folder: Path, weights: str, bucket: str) -> None:
    store = open_store(bucket)
    for name in RESULTS:
        store.write(f"raw/{name}", (folder / name).read_bytes())
    logged: list[str] = []
    how = {"model": weights, "inputs": [f"{bucket}/raw"], "out": f"{bucket}/restored"}
    run(logged.append, **how)
    assert [key for key in store.list("restored/") if FOLDER not in key] == [f"restored/{n}" for n in RESULTS]
    run(logged.append, **how)
    assert logged[-1].startswith("0 restored, 6 already restored in")


def test_batches_differ_from_single_photographs_by_one_level_at_most(folder: Path, weights: str) -> None:
    for name, batch_size in (("single", 1), ("batched", 3)):
        run(lambda line: None, model=weights, inputs="in", out=name, batch_size=batch_size)
    for name in RESULTS:
        if name.endswith(".png") and name != "deep.png":
            pair = [
                np.asarray(Image.open(folder.parent / out / name), np.int16) for out in ("single", "batched")
            ]
            assert np.abs(pair[0] - pair[1]).max() <= 1


def test_a_photograph_that_cannot_be_restored_is_logged_and_fails_the_job_at_its_end(
    folder: Path, weights: str
) -> None:
    (folder / "text.jpg").write_text("no photograph")
    logged: list[str] = []
    with pytest.raises(PhotoError, match="1 of 7 could not be restored"):
        run(logged.append, model=weights, inputs="in", out="out")
    assert "in/text.jpg: not a JPEG" in "\n".join(logged)
    assert logged[-1].startswith("6 restored, 1 failed in")


def test_a_stopped_job_continues(folder: Path, weights: str) -> None:
    for index in range(2 * CHUNK_SIZE):
        Image.fromarray(np.full((20, 20, 3), index, np.uint8)).save(folder / f"plain{index:02}.png")
    logged: list[str] = []

    how = {"model": weights, "inputs": "in", "out": "out"}
    (folder / "plain00.png").write_bytes(b"no photograph")  # its failure is logged

    def stop_while_working(line: str) -> None:
        logged.append(line)
        if "plain00.png" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(stop_while_working, **how) == "stopped"
    assert "Run the job again to continue." in logged[-1]
    (folder / "plain00.png").unlink()
    assert run(logged.append, **how) == "finished"
    assert "already restored" in logged[-1]
    assert not logged[-1].startswith("0 restored")


def test_a_plan_counts_photographs_and_writes_nothing(folder: Path, weights: str) -> None:
    job = job_from_mapping(
        {"name": "r", "kind": "restore", "restore": {"model": weights, "inputs": "in", "out": "out"}}
    )
    assert "photographs  6 in in" in plan_any(job)
    assert not (folder.parent / "out").exists()


def test_an_invalid_job_is_refused_with_all_its_problems() -> None:
    values = {"name": "r", "kind": "restore", "workers": {"min": 3, "max": 2}}
    values["restore"] = {"model": "w", "inputs": "in", "out": "out", "tile": 100}
    with pytest.raises(JobFileError) as error:
        job_from_mapping(values)
    assert "100 is not a multiple of 8" in str(error.value)
    assert "3 is more than workers.max, 2" in str(error.value)


def test_a_number_of_threads_that_no_machine_has_is_refused(folder: Path, weights: str) -> None:
    with pytest.raises(PhotoError, match=r"workers\.cpus 100,000: must be between 1 and 1024 threads"):
        run(print, {"cpus": 100_000}, model=weights, inputs="in", out="out")


def test_the_example_is_a_job() -> None:
    path = Path(__file__).parents[3] / "jobs" / "restore.yaml"
    assert load_job(path).kind == "restore"
    assert os.access(path, os.X_OK)
