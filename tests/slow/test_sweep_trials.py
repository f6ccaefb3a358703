"""Sweeps on a real Ray Tune over two nodes: killed, stopped, failing, and without a node.

Trials follow a formula, in the last tests they train.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.cluster.local.ports import free_port
from orchestrator.errors import SweepError
from orchestrator.events import LogMessage
from orchestrator.registry.resolve import find_model
from orchestrator.sweeps.event_log import read_events
from orchestrator.sweeps.event_schema import Ended, Exploited, Observed, Started, SweepEvent
from orchestrator.sweeps.trial_table import TrialTable, table_of
from shards.store import LocalStore
from tests.claims import ROOT, wait_until
from tests.orchestrator.conftest import SMALL
from tests.orchestrator.sweeps import simulated
from tests.orchestrator.sweeps.conftest import make_sweep
from tests.orchestrator.sweeps.formula import StubTracking, run_formula
from tests.orchestrator.sweeps.simulated import rows
from tests.slow.driving import RAY_ENVIRONMENT
from tests.slow.project import QUICK_RAY, plain_environment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.cluster,
]

__all__ = ["make_sweep"]  # a fixture

GRID = {"search": {"method": "grid"}, "trials": 3}
TPE = {"search": {"method": "tpe", "seed": 3, "startup_trials": 2}, "trials": 5}
ASHA = {"scheduler": {"name": "asha", "first_steps": 10}}
HYPERBAND = {"search": {"seed": 3}, "trials": 6, "scheduler": {"name": "hyperband", "first_steps": 10}}
PBT = {
    "space": {
        "loss.spd_weight": {"log_range": [0.001, 0.1]},
        "train.learning_rate": {"log_range": [1e-4, 1e-2]},
    },
    "search": {"seed": 1},
    "trials": 3,
    "scheduler": {"name": "pbt", "first_steps": 30},
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without CPUs and two nodes of one, and this process connected to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RAY_ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("MIRAGE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("PYTHONPATH", str(ROOT))
        import ray
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        from orchestrator.sweeps.ray_tuner import prepare_environment

        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # an earlier test may have imported Ray
        Path("/tmp/ray").mkdir(exist_ok=True)
        health = {"health_check_period_ms": 1000, "health_check_failure_threshold": 15}
        head = {"num_cpus": 0, "node_ip_address": "127.0.0.1", "object_store_memory": 10**8}
        head["dashboard_port"] = free_port()
        made = Cluster(initialize_head=True, head_node_args={**head, "_system_config": health})
        for _ in range(2):
            add_node(made)
        prepare_environment()
        passed = {key: os.environ[key] for key in ("MIRAGE_HOME", "PYTHONPATH", "RAY_CHDIR_TO_TRIAL_DIR")}
        ray.init(made.address, log_to_driver=False, runtime_env={"env_vars": passed})
        yield made
        ray.shutdown()
        made.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1", object_store_memory=10**8, wait=True)


@pytest.fixture(autouse=True)
def two_nodes(cluster) -> None:
    """Replace a node that was lost: on a busy machine Ray gives up one that does not answer in time."""
    import ray

    while ray.cluster_resources().get("CPU", 0) < 2:
        add_node(cluster)


def environment_of(cluster: Any, home: str | Path) -> dict[str, str]:
    """Return the environment of a driver on the cluster."""
    own = {"RAY_ADDRESS": cluster.address, "MIRAGE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return {**plain_environment(), **RAY_ENVIRONMENT, **QUICK_RAY, "OMP_NUM_THREADS": "1", **own}


def kill_after_events(driver: subprocess.Popen[Any], sweep: Path, count: int) -> None:
    """Kill a driver as `kill -9` does, once the event log in `sweep` has `count` events."""
    wait_until(
        lambda: driver.poll() is not None or len(read_events(LocalStore(sweep))) >= count,
        f"{count} events",
        120,
    )
    assert driver.poll() is None, "it ended before it was killed"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    if driver.stdout is not None:
        driver.stdout.close()


def steps_run(folder: Path) -> Counter[str]:
    return Counter((folder / "steps.log").read_text().splitlines())


def events(folder: Path) -> list[SweepEvent]:
    return read_events(LocalStore(folder / "log"))


@pytest.mark.parametrize("settings", [HYPERBAND, PBT], ids=["hyperband", "pbt"])
def test_trials_that_wait_for_each_other_take_turns_on_two_cpus(
    cluster, make_sweep, tmp_path, settings
) -> None:
    job = make_sweep(**settings)
    table, complete, results = run_formula(job, tmp_path, 2)
    assert complete
    assert rows(table) == rows(simulated.run(job))
    best = table.best()
    assert best is not None
    assert results.get_best_result("val/psnr", "max").metrics["val/psnr"] == best.psnr


def test_a_driver_that_is_killed_again_and_again_leaves_the_same_table(cluster, make_sweep, tmp_path) -> None:
    job = make_sweep(**TPE | ASHA)
    content = tmp_path / "job.json"
    content.write_text(json.dumps(job.model_dump(mode="json")))
    module = "tests.orchestrator.sweeps.formula"
    for kill_after in (7, 16, None):
        driver = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, str(content), str(tmp_path), "1", "0.1"],
            env=environment_of(cluster, os.environ["MIRAGE_HOME"]),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        if kill_after is None:
            assert driver.wait(300) == 0
        else:
            kill_after_events(driver, tmp_path / "log", kill_after)
    assert rows(table_of(events(tmp_path))) == rows(simulated.run(job))
    ended = Counter(event.number for event in events(tmp_path) if isinstance(event, Ended))
    assert set(ended.values()) == {1}
    assert sum(steps_run(tmp_path).values()) <= len(steps_run(tmp_path)) + 2  # one validation for each kill


def test_a_stopped_sweep_leaves_checkpoints_and_continues(cluster, make_sweep, tmp_path) -> None:
    job, stop = make_sweep(**GRID), threading.Event()

    def stop_soon() -> None:
        wait_until(lambda: sum(isinstance(e, Observed) for e in events(tmp_path)) >= 3, "some are observed")
        stop.set()

    tracking = StubTracking(job)
    threading.Thread(target=stop_soon, daemon=True).start()
    table, complete, _ = run_formula(job, tmp_path, 2, stop=stop, pause=0.3, tracking=tracking)
    assert not complete
    running = [row for row in table.trials if row.step and not row.ended]
    assert running
    for row in running:
        assert json.loads((tmp_path / f"{row.number}-0.json").read_text()) >= row.step
        assert (row.number, LogMessage(f"validated at {row.step}")) in tracking.events
    table, complete, _ = run_formula(job, tmp_path, 1)
    assert complete
    assert rows(table) == rows(simulated.run(job))
    assert set(steps_run(tmp_path).values()) == {1}


def test_a_lost_node_costs_its_trial_one_validation_at_most(cluster, make_sweep, tmp_path) -> None:
    import ray

    job, lost = make_sweep(**GRID), []

    def lose_a_node() -> None:
        wait_until(
            lambda: len({e.number for e in events(tmp_path) if isinstance(e, Observed)}) == 2, "both run"
        )
        lost.append(cluster.list_all_nodes()[-1])
        cluster.remove_node(lost[0], allow_graceful=False)
        wait_until(
            lambda: any(isinstance(e, Ended) for e in events(tmp_path)),
            "the other trial ends without it",
            120,
        )
        add_node(cluster)

    losing = threading.Thread(target=lose_a_node)
    losing.start()
    table, complete, _ = run_formula(job, tmp_path, 2, pause=0.3)
    losing.join()
    assert complete
    assert lost
    gone = lost[0].node_id
    wait_until(
        lambda: all(node["NodeID"] != gone for node in ray.nodes() if node["Alive"]),
        "Ray notices that the node is gone",
        120,
    )
    assert rows(table) == rows(simulated.run(job))
    assert sorted(row.attempts for row in table.trials) == [1, 1, 2]
    repeated = [step for step, count in steps_run(tmp_path).items() if count > 1]
    assert len(repeated) <= 1


def test_a_trial_that_fails_is_a_row_and_a_bug_ends_the_sweep(cluster, make_sweep, tmp_path) -> None:
    job = make_sweep(**GRID)
    table, complete, results = run_formula(job, tmp_path / "fails", 1, fails={1: 20})
    assert complete
    assert [(row.status, row.ending) for row in table.trials][1] == ("failed", "the run has diverged")
    assert [row.status for row in table.trials] == ["finished", "failed", "finished"]
    assert results.num_errors == 1
    with pytest.raises(SweepError, match=r"trial 1: KeyError: 'bug' Submit the sweep again"):
        run_formula(job, tmp_path / "bug", 1, fails={1: 20}, error=KeyError("bug"))
    statuses = [row.status for row in table_of(events(tmp_path / "bug")).trials]
    assert statuses == ["finished", "running"]


def test_a_sweep_that_gets_no_resources_ends_and_says_what_is_missing(cluster, make_sweep, tmp_path) -> None:
    job = make_sweep({"workers": {"min": 1, "max": 1, "cpus": 8}}, stall_minutes=0.05, **GRID)
    with pytest.raises(
        SweepError, match=r"trial 0 made no progress for sweep.stall_minutes.*the cluster has \d CPU"
    ):
        run_formula(job, tmp_path, 1)


def test_validations_are_in_tensorboard_files_on_request(cluster, make_sweep, tmp_path) -> None:
    job = make_sweep(tensorboard=True, **{**GRID, "trials": 1})
    run_formula(job, tmp_path, 1)
    folder = Path(os.environ["MIRAGE_HOME"], "tune", tmp_path.name, "trial-00000")
    assert any(folder.glob("events.out.tfevents.*"))
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["step"] for result in results[-9:]] == list(range(10, 100, 10))


# --- real training ---------------------------------------------------------------------------------------------

TRAINED: Mapping[str, Any] = {
    **SMALL,
    "name": "swept",
    "kind": "sweep",
    "train": {**SMALL["train"], "steps": 9},  # type: ignore[dict-item]
    "checkpoint": {"every_steps": 3},
    "workers": {"min": 1, "max": 1, "cpus": 1},
}
LEARNING = {
    "space": {"loss.spd_weight": {"log_range": [0.01, 0.1]}, "model.dim": {"choice": [6, 8, 12]}},
    "search": {"method": "tpe", "startup_trials": 2},
    "constraints": ["parameters <= 0.35M"],
    "scheduler": {"name": "asha", "first_steps": 3},
    "trials": 3,
    "max_concurrent": 1,
    "winner": {"then": "continue"},
}
POPULATION = {
    "space": {
        "loss.spd_weight": {"log_range": [0.01, 0.1]},
        "train.learning_rate": {"log_range": [1e-4, 1e-2]},
    },
    "scheduler": {"name": "pbt", "first_steps": 3},
    "trials": 3,
}


class Trained:
    """A sweep of real training, whose driver runs in its own process as `ray job submit` would start it."""

    def __init__(
        self, cluster: Any, home: Path, storage: Path, sweep: Mapping[str, Any], **sections: Any
    ) -> None:
        storage.mkdir()
        self.cluster, self.home, self.storage = cluster, home, storage
        self.job = storage / "job.yaml"
        self.job.write_text(json.dumps({**TRAINED, "storage": str(storage), "sweep": sweep, **sections}))

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator", "run", str(self.job), *words],
            env=environment_of(self.cluster, self.home),
            cwd=self.home.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, *words: str) -> str:
        driver = self.start(*words)
        text, _ = driver.communicate(timeout=400)
        assert driver.returncode == 0, text
        return text

    @property
    def folder(self) -> Path:
        return next((self.storage / "sweeps").glob("swept-*"), self.storage / "sweeps")

    def events(self) -> list[SweepEvent]:
        return read_events(LocalStore(self.folder))

    def table(self) -> TrialTable:
        return table_of(self.events())


def test_a_killed_sweep_of_training_ends_with_the_same_table_and_a_registered_winner(
    cluster, home, tmp_path, monkeypatch
) -> None:
    whole = Trained(cluster, home, tmp_path / "whole", LEARNING)
    whole.finish("--set", "sweep.winner={then: none}")
    killed = Trained(cluster, home, tmp_path / "killed", LEARNING)
    driver = killed.start()
    wait_until(lambda: (killed.folder / "events").is_dir(), "the sweep starts", 120)
    starts = [i for i, e in enumerate(whole.events()) if isinstance(e, Started)]
    kill_after_events(driver, killed.folder, starts[1] + 1)
    assert any(not row.ended for row in killed.table().trials)
    text = killed.finish()
    assert rows(killed.table()) == rows(whole.table())
    best = killed.table().best()
    assert best is not None

    monkeypatch.setenv("MIRAGE_HOME", str(home))
    from orchestrator.maintenance.lineage import trace
    from orchestrator.registry import versions
    from orchestrator.tracking import runs
    from orchestrator.tracking.client import connect
    from orchestrator.tracking.uri import resolve_tracking_uri

    uri = resolve_tracking_uri()
    client = connect(uri)
    parent = runs.find_run(uri, "mirage.sweep_id", killed.folder.name).id
    experiment = client.get_experiment_by_name("tests").experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(children) == len(killed.table().trials)
    for child in children:
        assert "sweep.model.dim" in child.data.params
        costs = {"sweep/psnr", "sweep/parameters", "sweep/macs_224", "sweep/device_seconds"}
        assert {"val/psnr", "loss/total", *costs} <= set(child.data.metrics)
    files = {file.path for file in client.list_artifacts(parent)}
    assert {"report.md", "report.html", "job.yaml"} <= files
    assert client.get_run(parent).info.status == "FINISHED"

    assert "alias candidate" in text
    version = versions.describe("models:/small@candidate", uri)
    assert version.tags["mirage.sweep"] == killed.folder.name
    assert version.tags["mirage.run_id"] == best.run
    chain = trace("models:/small@candidate", uri)
    assert chain.holds, chain.render()
    assert f"sweep {killed.folder.name}" in chain.render()
    assert best.run in (home / "sweeps" / killed.folder.name / "report.html").read_text()


def test_a_population_trains_copies_weights_and_changes_values(cluster, home, tmp_path) -> None:
    sweep = Trained(cluster, home, tmp_path / "store", POPULATION)
    text = sweep.finish()
    table = sweep.table()
    assert [(row.status, row.step) for row in table.trials] == 3 * [("finished", 9)]
    copies = [event for event in sweep.events() if isinstance(event, Exploited)]
    assert copies
    for event in copies:
        origin, row = table.trials[event.origin], table.trials[event.number]
        assert event.values != origin.values or origin.generation
        assert f"trial {row.number}    copies trial {origin.number} at step {event.step}" in text
        assert row.observed[event.step]["val/psnr"] in {
            metrics["val/psnr"] for metrics in origin.observed.values()
        }
    last = copies[-1]
    run = sweep.storage / "runs" / table.trials[last.number].run
    stored = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert int(stored[0].split("-")[0]) == last.step


def test_trials_of_several_workers_search_an_argument_of_a_users_network(
    cluster, home, tmp_path, monkeypatch
) -> None:
    (tmp_path / "swept_network.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self, width):\n"
        "        super().__init__(nn.Conv2d(3, width, 3, padding=1), nn.GELU(), nn.Conv2d(width, 3, 3, padding=1))\n"
    )
    content = {
        "space": {"model.arguments.width": {"choice": [8, 4]}},
        "search": {"method": "grid"},
        "trials": 2,
        "scheduler": {"name": "asha", "first_steps": 3},
        "winner": {"then": "continue"},
    }
    sweep = Trained(
        cluster,
        home,
        tmp_path / "store",
        content,
        model={"class": "swept_network:Net", "path": str(tmp_path)},
        workers={"min": 2, "max": 2, "cpus": 1},
        track={**TRAINED["track"], "register_as": "swept-network"},
    )
    text = sweep.finish()
    assert "2 workers train" in text
    table = sweep.table()
    assert [row.values["model.arguments.width"] for row in table.trials] == [8, 4]
    assert [row.ended and row.status != "failed" for row in table.trials] == [True, True]
    assert (table.trials[0].status, table.trials[0].step) == ("finished", 9)
    assert table.trials[0].devices == 2

    best = table.best()
    assert best is not None
    monkeypatch.setenv("MIRAGE_HOME", str(home))
    found = find_model("models:/swept-network@candidate")
    code = found.code()
    assert code is not None
    assert code.arguments == {"width": best.values["model.arguments.width"]}
    degraded = torch.rand(3, 33, 21)
    restored = replace(found, trusted=frozenset({code.digest})).load(torch.device("cpu")).restore(degraded)
    assert restored.shape == degraded.shape
    assert not torch.equal(restored, degraded)
