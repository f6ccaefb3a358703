"""`mirage chaos` on a real cluster: the selected faults are injected, and nothing is lost."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.resilience.fault_schedule import ChaosReport
from tests.claims import run_command
from tests.orchestrator.conftest import SMALL
from tests.slow.project import plain_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]

JOB = {
    **SMALL,
    "name": "chaos",
    "train": {**SMALL["train"], "steps": 10**6},
    "validation": {"every_steps": 10**6, "photographs": 1, "crop_pixels": 32},
    "track": {"experiment": "chaos"},
}


COMMAND = """
import pickle
from pathlib import Path
from orchestrator.resilience import ray_chaos

def chaos(*arguments, inject=ray_chaos.chaos, **options):
    report = inject(*arguments, **options)
    Path("report.pickle").write_bytes(pickle.dumps(report))
    return report

ray_chaos.chaos = chaos
from orchestrator.cli import main
main()
"""
"""`mirage`, which also keeps the report of `mirage chaos` in a file."""


KINDS = {
    "worker": "worker killed",
    "job": "job stopped",
    "raylet": "raylet stopped",
    "store": "store faulty",
}


def test_each_chosen_fault_reaches_the_run_and_nothing_is_lost(home: Path) -> None:
    job = home.parent / "chaos.yaml"
    job.write_text(yaml.safe_dump(JOB))
    chosen = ["--faults", str(len(KINDS)), "--fault-seconds", "2"]
    for word in KINDS:
        chosen += ["--only", word]
    done = run_command(
        *(sys.executable, "-c", COMMAND, "chaos", job, *chosen, "--steps", "60", "--workers", "1"),
        environment={**plain_environment(), "MIRAGE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd=home.parent,
        timeout=800,
    )
    assert done.status == 0, done.text
    report: ChaosReport = pickle.loads((home.parent / "report.pickle").read_bytes())
    assert {outcome.fault.kind for outcome in report.outcomes} == set(KINDS.values())
    assert all(outcome.seconds is not None for outcome in report.outcomes)
    assert sum(report.store_faults.values()) > 0
    assert report.proof.holds, done.text
    assert report.proof.attempts >= len(KINDS)  # a faulty store restarts nobody; each start wrote a ledger
    assert report.untracked_steps == 0
