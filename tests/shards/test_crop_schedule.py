"""Progressive crops: step and position name the same place, in every stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.crop_schedule import CropSchedule, TrainingStage
from shards.errors import MixtureError

stage_lists = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=5).map(
    lambda pairs: CropSchedule(
        tuple(
            TrainingStage(sum(n for n, _ in pairs[:i]), 8 * (i + 1), batch)
            for i, (_, batch) in enumerate(pairs)
        )
    )
)


@given(stages=stage_lists, steps=st.integers(1, 300))
def test_positions_run_on_without_a_gap(stages: CropSchedule, steps: int):
    position = 0
    for step in range(steps):
        assert stages.position_at(step) == position
        stage = stages.at_step(step)
        assert stages.at_position(position) == stages.at_position(position + stage.batch - 1) == stage
        position += stage.batch


def test_histoformer_s_stages_say_how_many_samples_they_are():
    starts = [0, 92_000, 176_000, 232_000, 268_000]
    sizes = [(128, 32), (160, 20), (256, 8), (320, 4), (362, 4)]
    stages = CropSchedule(tuple(TrainingStage(a, *b) for a, b in zip(starts, sizes, strict=True)))
    assert stages.at_step(91_999).pixels == 128
    assert stages.at_step(92_000).pixels == 160
    assert stages.position_at(300_000) == 92_000 * 32 + 84_000 * 20 + 56_000 * 8 + 36_000 * 4 + 32_000 * 4


@pytest.mark.parametrize(
    "stages",
    [
        (),
        (TrainingStage(5, 64, 4),),
        (TrainingStage(0, 64, 4), TrainingStage(9, 8, 4), TrainingStage(9, 16, 4)),
        (TrainingStage(0, 0, 4),),
    ],
)
def test_impossible_stages_are_said(stages: tuple[TrainingStage, ...]):
    with pytest.raises(MixtureError, match="stage"):
        CropSchedule(stages)
