"""A job of kind pack makes its dataset once, and its plan says what it will make."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.loader import job_from_mapping
from orchestrator.runner import plan_any, run_any


def test_a_pack_job_plans_packs_once_and_is_then_done(at_home: Path, tmp_path: Path) -> None:
    pack = {"source": "synthetic", "root": "photographs", "held_out": "coffee", "degradations": ["rain"]}
    job = job_from_mapping(
        {
            "name": "rainy",
            "kind": "pack",
            "storage": str(tmp_path),
            "data": {"manifests": "rainy", "pack": {**pack, "variants": 2}},
        }
    )
    assert "train rain" in plan_any(job)
    assert "existing   nothing" in plan_any(job)
    said: list[str] = []
    run_any(job, said.append)
    assert "train rain            6" in said[-1]
    assert "test  rain            1" in said[-1]
    digest = said[-1].split("manifest ")[1].split()[0]
    assert f"existing   manifest {digest}" in plan_any(job)
    run_any(job, said.append)
    assert any("already packed" in line for line in said)
