"""Pipelines in the stream and in evaluation: the same pixels for any workers, readers and interruptions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.dataset import Dataset
from shards.degradations.parse import parse_pipelines
from shards.degradations.pipeline import evaluation_key, training_key
from shards.errors import ManifestError, MixtureError
from shards.evaluation import EvaluationSet
from shards.stream import TrainStream
from tests.tiny_operators import PIPELINES

pytestmark = pytest.mark.usefixtures("tiny_operators")
MIXTURE = [("noise15", 1), ("phone-night", 2), ("rain", 1), ("noise35", 1)]
BATCH = 6
UNHURRIED = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


def stream_of(dataset: Dataset, seed: int = 5, **changes) -> TrainStream:
    pipelines = parse_pipelines(PIPELINES)
    return TrainStream(
        dataset, MIXTURE, seed=seed, crop_pixels=16, global_batch_size=BATCH, pipelines=pipelines, **changes
    )


def run(stream: TrainStream, world: int, start: int, stop: int) -> dict[int, tuple]:
    """What stands at each position."""
    found: dict[int, tuple] = {}
    for rank in range(world):
        for batch in stream.steps(start, world, rank, stop):
            for index, position in enumerate(batch.positions.tolist()):
                assert position not in found
                pixels = (batch.degraded[index].numpy().tobytes(), batch.clean[index].numpy().tobytes())
                found[position] = (
                    batch.degradations[index],
                    batch.ids[index],
                    float(batch.sigma[index]),
                    *pixels,
                )
    return found


@UNHURRIED
@given(
    seed=st.integers(0, 2**62),
    parts=st.lists(st.tuples(st.integers(1, BATCH), st.integers(1, 3)), min_size=1, max_size=3),
)
def test_every_position_has_the_same_pixels_for_any_workers_and_interruptions(dataset: Dataset, seed, parts):
    steps = sum(length for _, length in parts)
    reference = run(stream_of(dataset, seed), 1, 0, steps * BATCH)
    resumed: dict[int, tuple] = {}
    for world, length in parts:
        start = len(resumed)
        resumed |= run(stream_of(dataset, seed), world, start, start + length * BATCH)
    assert resumed == reference
    assert len(reference) == steps * BATCH


def test_readers_give_the_same_pixels(dataset: Dataset):
    assert run(stream_of(dataset, readers=2), 1, BATCH, 4 * BATCH) == run(
        stream_of(dataset), 2, BATCH, 4 * BATCH
    )


def test_a_pipeline_degrades_the_oriented_clean_crop_and_draws_no_noise_besides(dataset: Dataset):
    stream = stream_of(dataset)
    found = run(stream, 1, 0, 8 * BATCH)
    names = {name for name, *_ in found.values()}
    assert names == {name for name, _ in MIXTURE}
    for position, (name, _, sigma, degraded, clean) in found.items():
        if name in PIPELINES:
            crop = np.frombuffer(clean, np.uint8).reshape(3, 16, 16).transpose(1, 2, 0)
            expected = stream.pipelines[name].degrade(crop, training_key(5, position))
            assert (degraded, sigma) == (expected.transpose(2, 0, 1).tobytes(), 0.0)
        elif name == "noise15":
            assert (degraded, sigma) == (clean, 15.0)


def test_a_margin_leaves_the_clean_crop_and_lets_pipelines_see_around_it(dataset: Dataset):
    """The degraded crop is the middle of a larger one, in its orientation; packed pairs do not change."""
    plain, wide = (run(stream_of(dataset, margin=margin), 1, 0, 8 * BATCH) for margin in (0, 5))
    stream = stream_of(dataset)
    changed = 0
    for position, (name, id_, _, degraded, clean) in wide.items():
        assert clean == plain[position][4]
        if name not in PIPELINES:
            assert degraded == plain[position][3]
            continue
        row = next(row for row in dataset.rows("train", "noise") if row.id == id_)
        _, around, inner = stream.crop(position, row, 16, 5)
        assert inner.of(around).transpose(2, 0, 1).tobytes() == clean
        assert 16 <= around.shape[0] <= 26
        expected = inner.of(stream.pipelines[name].degrade(around, training_key(5, position)))
        assert expected.transpose(2, 0, 1).tobytes() == degraded
        changed += around.shape != (16, 16, 3)
    assert changed > 5


def test_packed_pairs_and_noise_levels_stay_as_they_are_beside_pipelines(dataset: Dataset):
    """The same entries without pipelines give the same bits."""
    mixture = [("noise15", 1), ("noise25", 2), ("rain", 1), ("noise50", 1)]
    plain = TrainStream(dataset, mixture, seed=5, crop_pixels=16, global_batch_size=BATCH)
    before, after = run(plain, 1, 0, 5 * BATCH), run(stream_of(dataset), 1, 0, 5 * BATCH)
    fixed = {position: one for position, one in after.items() if one[0] in ("noise15", "rain")}
    assert {position: before[position] for position in fixed} == fixed


def test_evaluation_degrades_by_seed_and_id(dataset: Dataset):
    pipelines = parse_pipelines(PIPELINES)
    held_out = EvaluationSet(
        dataset, ("rain", "phone-night", "noise35", "noise25"), pipeline_seed=2, seed=9, pipelines=pipelines
    )
    backwards = EvaluationSet(
        dataset, ("noise35", "phone-night"), pipeline_seed=2, seed=9, pipelines=pipelines
    )
    items = {(item.degradation, item.id): item for item in held_out}
    assert len(items) == len(held_out) == 8
    for item in backwards.items(1, 2):
        assert np.array_equal(item.degraded, items[item.degradation, item.id].degraded)
        expected = pipelines[item.degradation].degrade(item.clean, evaluation_key(2, item.id))
        assert np.array_equal(item.degraded, expected)
    other = EvaluationSet(dataset, ("phone-night",), pipeline_seed=3, seed=9, pipelines=pipelines)
    assert {item.pipeline for item in other}.isdisjoint({item.pipeline for item in held_out})
    assert all(not np.array_equal(a.degraded, items["phone-night", a.id].degraded) for a in other)


def test_a_cut_item_is_degraded_after_it_was_cut_and_noise_before(dataset: Dataset):
    pipelines = parse_pipelines(PIPELINES)
    held_out = EvaluationSet(dataset, ("phone-night", "noise25", "rain"), seed=2, pipelines=pipelines)

    def corner(image):
        return image[:24, :16]

    for index in range(len(held_out)):
        whole, cut = held_out[index], held_out.item(index, corner)
        assert np.array_equal(cut.clean, corner(whole.clean))
        expected = corner(whole.degraded)
        if whole.degradation in PIPELINES:
            expected = pipelines[whole.degradation].degrade(cut.clean, evaluation_key(0, whole.id))
        assert np.array_equal(cut.degraded, expected)


def test_a_name_that_is_no_pipeline_is_looked_for_in_the_data(dataset: Dataset):
    with pytest.raises(MixtureError, match="no training samples of 'blind'"):
        TrainStream(dataset, [("blind", 1)], seed=0, crop_pixels=16, global_batch_size=2)
    with pytest.raises(ManifestError, match="no test samples of 'blind'"):
        EvaluationSet(dataset, ("blind",), seed=0)
