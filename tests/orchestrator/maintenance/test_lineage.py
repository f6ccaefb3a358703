"""A model that was really packed, trained and registered is followed back to its photographs, and damage is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from orchestrator.config.schema import Job
from orchestrator.maintenance.lineage import trace
from orchestrator.registry import versions
from orchestrator.tracking.client import connect
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.uri import resolve_tracking_uri
from orchestrator.training.job import run_job
from tests.claims import flip_byte, mirage

MODEL = "models:/traced@candidate"


@pytest.fixture
def project(small_job: Callable[..., Job], at_home: Path) -> Path:
    """The project folder of a finished run; the first test trains it."""
    submit(small_job, at_home)
    return at_home.parent


def submit(small_job: Callable[..., Job], at_home: Path) -> None:
    torch.set_num_threads(1)
    job = small_job(name="traced", storage=str(at_home.parent / "store"), track={"register_as": "traced"})
    run_job(job, lambda line: None, in_process=True)


def test_a_finished_run_sends_the_metrics_that_an_outage_left_behind(
    project: Path, small_job: Callable[..., Job], at_home: Path
) -> None:
    uri = resolve_tracking_uri()
    run_id = versions.find(MODEL, uri).run_id
    left = Journal.create(at_home / "spool", run_id)
    left.add(3, {"late": 1.5})
    left.close()
    submit(small_job, at_home)
    (late,) = connect(uri).get_metric_history(run_id, "late")
    assert (late.step, late.value) == (3, 1.5)


def test_every_link_from_the_version_to_the_photographs_is_verified(project: Path) -> None:
    progress: list[tuple[int, int, str]] = []
    chain = trace(MODEL, resolve_tracking_uri(), deep=True, on_progress=lambda *now: progress.append(now))
    assert {done for done, total, _ in progress if total == 4} == {0, 1, 2, 3, 4}, "raw files"
    text = chain.render()
    assert chain.holds, text
    assert {link.state for link in chain.all()} == {"verified"}, text
    named = [link.what for link in chain.all()]
    for what in ("weights", "card.md", "scores.json", "code", "resolved job", "result", "4 raw files"):
        assert what in named, text
    raw = {link.what for link in chain.all() if link.what.endswith(".png")}
    assert raw == {"astronaut.png", "cat.png", "coffee.png", "rocket.png"}
    assert all(link.digest for link in chain.all() if not link.below and link.what != "run")


def test_without_deep_nothing_large_is_read(project: Path) -> None:
    chain = trace(MODEL, resolve_tracking_uri())
    assert chain.holds
    states = {link.what: link.state for link in chain.all()}
    assert states["4 raw files"] == "present"
    assert states["weights"] == "verified"


def test_each_damage_is_found_where_it_is(project: Path, at_home: Path) -> None:
    uri = resolve_tracking_uri()
    (shard,) = (project / "store" / "small" / "shards").glob("*.tar")
    weights = versions.weights_file(MODEL, uri)
    damages = {
        shard: f"shards/{shard.stem}"[:22],
        project / "photographs" / "cat.png": "cat.png",
        next((project / "store" / "small" / "sources").iterdir()): "raw files",
        next((project / "store" / "small" / "manifests").iterdir()): "dataset",
        weights: "weights",
        weights.with_name("scores.json"): "scores.json",
        weights.with_name("job.yaml"): "job.yaml",
        weights.parent.parent / "code" / "mirage" / "blocks.py": "code",
    }
    for path, where in damages.items():
        before = path.read_bytes()
        for damage in (flip_byte, Path.unlink):
            damage(path)
            broken = [link for link in trace(MODEL, uri, deep=True).all() if link.state == "broken"]
            path.write_bytes(before)
            assert any(link.what.startswith(where) for link in broken), (path, damage, broken)
    assert trace(MODEL, uri, deep=True).holds


def test_raw_files_that_moved_are_found_by_root(project: Path, tmp_path: Path) -> None:
    photographs = project / "photographs"
    elsewhere = tmp_path / "elsewhere"
    photographs.rename(elsewhere)
    try:
        assert not trace(MODEL, resolve_tracking_uri()).holds
        assert trace(MODEL, resolve_tracking_uri(), deep=True, roots=[elsewhere]).holds
    finally:
        elsewhere.rename(photographs)


def test_the_command_prints_the_tree_and_its_status_says_whether_it_holds(project: Path) -> None:
    whole = mirage("trace", MODEL, "--deep")
    assert whole.status == 0, whole.text
    assert "ok" in whole.text
    photograph = project / "photographs" / "cat.png"
    before = photograph.read_bytes()
    flip_byte(photograph)
    damaged = mirage("trace", MODEL, "--deep")
    photograph.write_bytes(before)
    assert damaged.status == 1
    assert "FAIL" in damaged.text
    assert "is another file now" in damaged.text
