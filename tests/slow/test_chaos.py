"""`mirage chaos` on a real cluster: the selected faults are injected, and nothing is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.orchestrator.conftest import SMALL, home
from tests.slow.project import plain_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cluster]

__all__ = ["home"]  # a fixture

JOB = {
    **SMALL,
    "name": "chaos",
    "train": {**SMALL["train"], "steps": 10**6},
    "validation": {"every_steps": 10**6, "photographs": 1, "crop_pixels": 32},
    "track": {"experiment": "chaos"},
}


def test_a_killed_worker_and_a_faulty_store_reach_the_run_and_nothing_is_lost(home: Path) -> None:
    job = home.parent / "chaos.yaml"
    job.write_text(yaml.safe_dump(JOB))
    chosen = ["--faults", "2", "--only", "worker", "--only", "store", "--fault-seconds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "chaos", str(job), *chosen, "--steps", "60", "--workers", "1"],
        env={**plain_environment(), "MIRAGE_HOME": str(home), "OMP_NUM_THREADS": "1"},
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip().endswith("NOTHING WAS LOST")
    # New workers resumed from a checkpoint; both starts wrote a ledger.
    assert re.search(r"worker killed +1 +1 +\d+ s +\d+", done.stdout), done.stdout
    assert "positions, from 2 starts that wrote a ledger" in done.stdout
    assert re.search(r"store faulty +1 +1 +\d+ s", done.stdout), done.stdout
    assert re.search(r"failed requests to the store +[1-9]", done.stdout), done.stdout
