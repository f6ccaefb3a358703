"""Scores are those of scikit-image, the baseline is a least-squares line, and what became worse is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from orchestrator.evaluation.score_table import conclusion, markdown_report, score_table
from orchestrator.evaluation.scores import (
    ImageScore,
    as_metrics,
    as_records,
    from_records,
    score_images,
    summarise,
)
from shards.evaluation import EvalItem

CPU = torch.device("cpu")


@pytest.fixture
def items() -> list[EvalItem]:
    rng = np.random.default_rng(0)
    made = []
    for name in ("a", "b", "c"):
        clean = rng.integers(40, 200, (32, 40, 3), dtype=np.uint8)
        dark = (clean // 2 + 10).astype(np.uint8)
        noisy = np.clip(clean.astype(int) + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
        made += [EvalItem(name, "lowlight", dark, clean), EvalItem(name, "noise25", noisy, clean)]
    return made


def test_scores_are_those_of_scikit_image(items) -> None:
    (one,) = score_images(lambda x: x * 0.9, items[:1], CPU)
    clean, degraded = items[0].clean / 255, items[0].degraded / 255
    restored = degraded * 0.9
    assert one.psnr == pytest.approx(peak_signal_noise_ratio(clean, restored, data_range=1), abs=1e-4)
    assert one.input_psnr == pytest.approx(peak_signal_noise_ratio(clean, degraded, data_range=1), abs=1e-4)
    assert one.ssim == pytest.approx(
        structural_similarity(clean, restored, data_range=1, channel_axis=2), abs=1e-5
    )


def test_the_baseline_is_the_least_squares_line(items) -> None:
    dark = [i for i in items if i.degradation == "noise25"]
    (row, _) = summarise(score_images(lambda x: x, dark, CPU), ["noise25"])
    x = np.concatenate([i.degraded.ravel() for i in dark]) / 255
    y = np.concatenate([i.clean.ravel() for i in dark]) / 255
    a, b = np.polyfit(x, y, 1)
    each = [peak_signal_noise_ratio(i.clean / 255, a * (i.degraded / 255) + b, data_range=1) for i in dark]
    assert row.baseline_psnr == pytest.approx(np.mean(each), abs=1e-6)


def test_a_darkening_is_undone_by_the_baseline_but_not_by_doing_nothing(items) -> None:
    rows = summarise(score_images(lambda x: x, items, CPU), ["lowlight", "noise25"])
    assert rows[0].baseline_psnr > 45 > rows[0].psnr
    assert rows[0].gain == rows[1].gain == 0
    assert "DOES NOT BEAT" in conclusion(rows)


def test_average_is_the_unweighted_mean_of_the_degradations(items) -> None:
    rows = summarise(score_images(lambda x: x, items[:5], CPU), ["lowlight", "noise25"])
    assert [row.n for row in rows] == [3, 2, 5]
    assert rows[2].psnr == pytest.approx((rows[0].psnr + rows[1].psnr) / 2)


def test_the_interval_holds_the_gain_and_is_always_the_same(items) -> None:
    scores = [
        ImageScore(f"{i}", "rain", 20 + i, 0.5, 19.0, 0.5, (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)) for i in range(6)
    ]
    rows = summarise(scores, ["rain"])
    assert rows[0].gain_low < rows[0].gain < rows[0].gain_high
    assert summarise(scores, ["rain"]) == rows


def test_a_degradation_that_became_worse_is_shown_as_such(items) -> None:
    rows = summarise(score_images(lambda x: x * 0.5 + 0.1, items, CPU), ["lowlight", "noise25"])
    text = score_table(rows)
    assert "worse than the input" in text
    assert "Worse than the input: lowlight, noise25." in conclusion(rows)
    assert "worse than the input" in markdown_report(rows, "title", "how")
    assert len({len(line) for line in text.splitlines() if line.startswith("-")}) == 1


def test_scores_survive_being_written_down(items) -> None:
    scores = score_images(lambda x: x, items, CPU)
    assert from_records(as_records(scores)) == scores


def test_metrics_name_the_degradation(items) -> None:
    metrics = as_metrics(summarise(score_images(lambda x: x, items, CPU), ["lowlight", "noise25"]), "test")
    assert {"test/lowlight/psnr", "test/average/gain"} <= set(metrics)
