"""The card of a registered model says which pipelines degraded its photographs."""

from __future__ import annotations

import pytest

from orchestrator.config.pipelines import pipelines_of
from orchestrator.data.datasets import evaluated_pipelines
from orchestrator.evaluation import score_table
from orchestrator.evaluation.model_card import model_card
from orchestrator.evaluation.scores import ImageScore, summarise
from shards.dataset import Dataset
from tests.tiny_operators import PIPELINES


@pytest.mark.usefixtures("tiny_operators")
def test_the_card_has_the_steps_and_digests_of_pipelines(small_job, small_data: Dataset) -> None:
    changes = {
        "setting": "own",
        "data": {"mixture": {"noise35": 1}},
        "evaluate": {"degradations": ["noise35"]},
    }
    job = small_job(degradations=PIPELINES, example=None, **changes)
    rows = summarise([ImageScore("a", "noise35", 30, 0.9, 20, 0.5, (1.0,) * 6)], ["noise35"])
    how = score_table.legend("rgb", "fast", "raw", 1, evaluated_pipelines(job))
    card = model_card(job, small_data, rows, how, "run", "code")
    known = pipelines_of(job)
    assert (
        f"Degraded by pipelines (digest of pipeline and seed): noise35 {known['noise35'].evaluation_digest(0)[:12]}."
        in card
    )
    assert f"phone-night sha256 {known['phone-night'].digest[:16]}" in card
    assert "    - tiny_noise:\n        sigma: 35" in card
    plain = small_job()
    assert "pipeline" not in model_card(
        plain, small_data, rows, score_table.legend("rgb", "fast", "raw", 1), "", ""
    )
