"""Old names of keys are read with one line that names the new one, and identities stay what they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.config import search_space
from orchestrator.config.identity import run_id, sweep_id
from orchestrator.config.loader import job_from_mapping, load_job
from orchestrator.config.renamed import KEYS, VALUES
from orchestrator.config.schema import Job
from orchestrator.config.sweep_schema import SweepJob
from orchestrator.errors import JobFileError
from shards.dataset import Dataset

DIGESTS = ["d" * 64, "e" * 64]
OLD: dict[str, Any] = {
    "name": "before",
    "recipe": "release",
    "setting": "5deg",
    "data": {"manifests": ["a", "b"], "window": 4},
    "train": {"rate_rule": "linear", "global_batch_size": 64, "recompute": "all"},
    "workers": {
        "max": 2,
        "wait_seconds": 60,
        "deadline_hours": 2,
        "collective_seconds": 30,
        "resize_seconds": 5,
    },
    "track": {"experiment": "e", "system_seconds": 5},
    "profile": {"after": 2},
    "promote": {"max_loss_db": 0.2},
}
NEW: dict[str, Any] = {
    **OLD,
    "recipe": "authors",
    "data": {"manifests": ["a", "b"], "shuffle_window": 4},
    "train": {"lr_scaling": "linear", "global_batch_size": 64, "activation_checkpointing": "all"},
    "workers": {
        "max": 2,
        "startup_timeout_seconds": 60,
        "max_runtime_hours": 2,
        "collective_timeout_seconds": 30,
        "scale_up_delay_seconds": 5,
    },
    "track": {"experiment": "e", "system_metrics_seconds": 5},
    "profile": {"skip_first": 2},
    "promote": {"max_drop_db": 0.2},
}
SWEEP = {"space": {"train.rate_rule": {"choice": ["fixed", "sqrt"]}, "model.dim": {"choice": [24, 48]}}}


def job(values: dict[str, Any]) -> Job:
    found = job_from_mapping(values)
    assert isinstance(found, Job)
    return found


def sweep(values: dict[str, Any]) -> SweepJob:
    found = job_from_mapping({**values, "kind": "sweep", "sweep": SWEEP})
    assert isinstance(found, SweepJob)
    return found


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_job_with_old_names_is_the_job_with_new_ones() -> None:
    assert job(OLD) == job(NEW)


# Recorded from the commit before the keys were renamed, and before the recipe was.
@pytest.mark.parametrize(
    ("recipe", "recorded"),
    [("release", "before-078873d935"), ("fast", "before-da1969671a"), ("paper", "before-0c7e5646af")],
)
def test_a_run_keeps_the_identity_that_it_had_under_the_old_names(recipe: str, recorded: str) -> None:
    assert run_id(job({**OLD, "recipe": recipe}), DIGESTS) == recorded
    assert run_id(job({**NEW, "recipe": recipe}), DIGESTS) == recorded


def test_a_sweep_keeps_the_identity_that_it_had_under_the_old_names() -> None:
    dataset = cast(Dataset, SimpleNamespace(digests=DIGESTS))
    assert sweep_id(sweep(OLD), dataset) == "before-8bb699bef2"
    assert sweep_id(sweep(NEW), dataset) == "before-8bb699bef2"


def test_a_sweep_may_search_a_key_under_its_old_name() -> None:
    made = search_space.candidate(sweep(NEW), {"train.rate_rule": "sqrt", "model.dim": 24})
    assert made.job is not None
    assert made.job.train.lr_scaling == "sqrt"


FILE = "name: x\nsetting: 5deg\nrecipe: release\ndata: {manifests: x}\ntrack: {experiment: x}\n"


def test_each_old_name_in_a_file_is_one_line_that_names_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "job.yaml", FILE + "workers:\n  wait_seconds: 5\n")
    load_job(path, ["train.recompute=all"])
    assert caplog.messages == [
        f"{path}:7: workers.wait_seconds is now called workers.startup_timeout_seconds. The old name still works.",
        f"{path}:3: recipe: release is now called authors. The old name still works.",
        "--set train.recompute=all: train.recompute is now called train.activation_checkpointing. "
        "The old name still works.",
    ]


def test_a_stored_job_is_read_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    job(OLD)
    assert caplog.messages == []


def test_an_override_by_the_old_name_replaces_the_new_one_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "job.yaml", FILE + "train: {activation_checkpointing: none}\n")
    loaded = load_job(path, ["train.recompute=all"])
    assert isinstance(loaded, Job)
    assert loaded.train.activation_checkpointing == "all"


def test_a_problem_with_an_old_name_points_to_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "job.yaml", FILE + "workers:\n  wait_seconds: soon\n")
    with pytest.raises(JobFileError, match=r"job\.yaml:7 +workers\.startup_timeout_seconds +is 'soon'"):
        load_job(path)


def test_one_section_with_both_names_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "job.yaml", FILE + "train: {recompute: all, activation_checkpointing: none}\n")
    with pytest.raises(JobFileError, match=r"job\.yaml:6 +train\.recompute"):
        load_job(path)


def test_every_new_name_is_in_the_schema_and_no_old_one() -> None:
    content = job(NEW).model_dump(mode="json")
    for pattern, new in KEYS.items():
        if pattern.startswith("sweep."):
            continue  # in test_search_space
        section, old = pattern.split(".")
        assert new in content[section]
        assert old not in content[section]
    for key, replacements in VALUES.items():
        for old in replacements:
            assert job({**NEW, key: old}).model_dump()[key] == replacements[old]
