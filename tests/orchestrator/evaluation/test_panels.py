"""Panels magnify a square with structure in the corner of each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.errors import EvaluationError
from orchestrator.evaluation.panels import Inset, choose_inset, draw_panels, with_inset
from tests.orchestrator.evaluation.conftest import MakeEvaluation


def test_the_inset_has_structure_and_is_not_covered_by_its_magnification() -> None:
    clean = np.full((200, 240, 3), 90, np.uint8)
    clean[40:70, 60:90] = np.random.default_rng(0).integers(0, 255, (30, 30, 3))
    degraded = np.clip(clean.astype(int) + 20, 0, 255).astype(np.uint8)
    inset = choose_inset(clean, degraded)
    assert abs(inset.top - 40) <= 8
    assert abs(inset.left - 60) <= 8
    clean = np.full((200, 240, 3), 90, np.uint8)
    clean[170:, 210:] = np.random.default_rng(0).integers(0, 255, (30, 30, 3))
    corner = choose_inset(clean, clean)
    assert (
        corner.top + corner.side <= 200 - 2.5 * corner.side
        or corner.left + corner.side <= 240 - 2.5 * corner.side
    )


def test_the_framed_square_is_the_magnified_one() -> None:
    picture = np.zeros((100, 120, 3), np.uint8)
    picture[10:26, 20:36] = 200
    shown = with_inset(picture, Inset(10, 20, 16))
    assert shown.shape == picture.shape
    assert (shown[70:98, 90:118] == 200).all()
    assert tuple(shown[10, 20]) == (255, 209, 0)
    assert (picture[10, 20] == 200).all()  # the input is not changed


def test_a_page_has_a_row_per_image_and_a_column_per_model(
    evaluation_job: MakeEvaluation, tmp_path: Path
) -> None:
    job = evaluation_job()
    rows = draw_panels([job, evaluation_job(seed=1)], ["rain"], [], 2, tmp_path / "panels.png")
    assert rows == ["rain cat", "rain coffee"]
    with Image.open(tmp_path / "panels.png") as page:
        assert page.width > 4 * 200
    with pytest.raises(EvaluationError, match="There are: cat, coffee"):
        draw_panels([job], [], ["dog"], 1, tmp_path / "none.png")
