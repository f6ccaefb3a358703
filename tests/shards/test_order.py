"""The order of samples: PROTOCOL section 2.1 and the promise that a position means one sample for ever."""

from __future__ import annotations

import hashlib
import math
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import MixtureError
from shards.mixture import Mixture, MixtureEntry, weighted_mixture
from shards.order import SampleOrder, share
from shards.permutation import permutation

NOISE = tuple(MixtureEntry(f"noise{sigma}", 5144, 3) for sigma in (15, 25, 50))
THREE = Mixture((*NOISE, MixtureEntry("rain", 200, 120), MixtureEntry("haze", 72135, 1)))
FIVE = Mixture((*THREE.entries, MixtureEntry("blur", 2103, 5), MixtureEntry("lowlight", 485, 20)))

seeds = st.integers(0, 2**62)
mixtures = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=5).map(
    lambda pairs: Mixture(
        tuple(MixtureEntry(f"d{i}", count, repeat) for i, (count, repeat) in enumerate(pairs))
    )
)


@st.composite
def orders(draw: st.DrawFn) -> SampleOrder:
    mixture = draw(mixtures)
    return SampleOrder(
        mixture,
        draw(seeds),
        draw(st.integers(1, mixture.samples_per_epoch)),
        draw(st.sampled_from(["drop", "carry"])),
    )


def drawn(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    draw = order.draw(np.arange(start, stop))
    return list(zip(draw.entry.tolist(), draw.sample.tolist(), strict=True))


def test_published_mixtures_have_their_published_sizes():
    assert THREE.samples_per_epoch == 142_431
    assert FIVE.samples_per_epoch == 162_646
    assert SampleOrder(THREE, 0, 32).steps_per_epoch == 4_450
    assert SampleOrder(FIVE, 0, 32).steps_per_epoch == 5_082


@given(size=st.integers(1, 3000), seed=seeds, epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation(size: int, seed: int, epoch: int):
    assert sorted(permutation(size, seed, epoch)) == list(range(size))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = {tuple(permutation(50, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_every_place_is_equally_likely():
    # Chi-square over where each of 7 samples lands in 1400 epochs: 6 degrees of freedom, 99.99 % at 27.9.
    epochs = np.stack([permutation(7, 1, epoch) for epoch in range(1400)])
    for sample in range(7):
        landed = (epochs == sample).sum(axis=0)
        assert ((landed - 200) ** 2 / 200).sum() < 27.9


def test_the_order_is_what_the_document_says():
    """docs/shards.md, "The order of samples", followed in plain integers: old checkpoints rest on it."""
    size, seed, epoch, wrap = 1000, 12345, 7, 2**64
    digest = hashlib.blake2b(
        struct.pack("<qq", seed, epoch) + b"permutation", digest_size=48, person=b"sample order"
    ).digest()
    half = max(1, math.ceil((size - 1).bit_length() / 2))

    def mix(value: int, key: int) -> int:
        value = (value + key) * 0x9E3779B97F4A7C15 % wrap
        value ^= value >> 29
        value = value * 0xBF58476D1CE4E5B9 % wrap
        return value ^ value >> 32

    def place(value: int) -> int:
        while True:
            left, right = value >> half, value % 2**half
            for key in struct.unpack("<6Q", digest):
                left, right = right, left ^ mix(right, key) % 2**half
            value = left << half | right
            if value < size:
                return value

    order = SampleOrder(Mixture((MixtureEntry("a", 300, 2), MixtureEntry("b", 400, 1))), seed, 10)
    for offset in range(size):
        value = place(offset)
        expected = (0, value % 300) if value < 600 else (1, value - 600)
        assert drawn(order, epoch * size + offset, epoch * size + offset + 1) == [expected]


def test_neighbours_are_unrelated():
    order = permutation(72_135, 5, 0).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(order, np.arange(72_135))[0, 1]) < 0.02


@given(mixture=mixtures, seed=seeds)
def test_a_carried_epoch_shows_each_sample_as_often_as_its_repeat(mixture: Mixture, seed: int):
    order = SampleOrder(mixture, seed, 1, tail="carry")
    for epoch in (0, 3):
        first = epoch * mixture.samples_per_epoch
        seen = drawn(order, first, first + mixture.samples_per_epoch)
        for index, entry in enumerate(mixture.entries):
            for sample in range(entry.count):
                assert seen.count((index, sample)) == entry.repeat


@given(order=orders())
def test_a_dropped_tail_leaves_out_less_than_a_batch_and_repeats_nothing(order: SampleOrder):
    per_epoch = order.positions_per_epoch
    seen = drawn(order, 0, per_epoch)
    for index, entry in enumerate(order.mixture.entries):
        assert all(seen.count((index, sample)) <= entry.repeat for sample in range(entry.count))
    assert order.mixture.samples_per_epoch - len(seen) < order.global_batch_size


@given(order=orders(), cuts=st.lists(st.integers(0, 150), max_size=6))
def test_the_stream_is_the_same_however_it_is_cut(order: SampleOrder, cuts: list[int]):
    whole = drawn(order, 0, 150)
    edges = [0, *sorted(cuts), 150]
    assert [s for a, b in pairwise(edges) for s in drawn(order, a, b)] == whole


@settings(max_examples=50)
@given(data=st.data(), batch=st.integers(1, 48), steps=st.integers(1, 5))
def test_sample_order_survives_any_change_of_the_world(data: st.DataObject, batch: int, steps: int):
    """Workers come and go at every step: the positions consumed are the same, each exactly once."""
    consumed: list[int] = []
    for step in range(steps):
        world = data.draw(st.integers(1, batch))
        for rank in range(world):
            start, count = share(batch, world, rank)
            consumed.extend(range(step * batch + start, step * batch + start + count))
    assert consumed == list(range(steps * batch))


@given(batch=st.integers(1, 200), data=st.data())
def test_shares_differ_by_one_at_most(batch: int, data: st.DataObject):
    world = data.draw(st.integers(1, batch))
    counts = [share(batch, world, rank)[1] for rank in range(world)]
    assert sum(counts) == batch
    assert max(counts) - min(counts) <= 1


def test_32_over_3_workers_is_11_11_10():
    assert [share(32, 3, rank) for rank in range(3)] == [(0, 11), (11, 11), (22, 10)]


def test_replacement_draws_in_proportion_and_may_repeat():
    order = SampleOrder(
        Mixture((MixtureEntry("a", 10, 1), MixtureEntry("b", 10, 3))), 0, 4, sampling="replacement"
    )
    draw = order.draw(np.arange(40_000))
    assert abs((draw.entry == 1).mean() - 0.75) < 0.01
    one_epoch = drawn(order, 0, 40)
    assert len(set(one_epoch)) < 20


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixture(()), "empty"),
        (lambda: MixtureEntry("rain", 0, 1), "'rain'.*count 0"),
        (lambda: SampleOrder(Mixture((MixtureEntry("rain", 3, 1),)), 0, 4), "3 samples.*batch_size 4"),
        (lambda: share(2, 3, 0), "worker 0 of 3"),
    ],
)
def test_what_cannot_be_ordered_is_said(make, says: str):
    with pytest.raises(MixtureError, match=says):
        make()


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    data=st.data(),
    length=st.integers(150, 400),
    seed=seeds,
)
def test_weights_share_an_epoch_to_within_one_sample(
    counts: list[int], data: st.DataObject, length: int, seed: int
):
    weights = data.draw(st.lists(st.floats(0.2, 5), min_size=len(counts), max_size=len(counts)))
    names = [f"d{i}" for i in range(len(counts))]
    mixture = weighted_mixture(
        dict(zip(names, counts, strict=True)), dict(zip(names, weights, strict=True)), length
    )
    assert mixture.samples_per_epoch == length
    for entry, weight in zip(mixture.entries, weights, strict=True):
        assert abs(entry.per_epoch - length * weight / sum(weights)) < 1.0001
    order = SampleOrder(mixture, seed, 1, tail="carry")
    epochs = 4
    seen = drawn(order, 0, epochs * length)
    for index, entry in enumerate(mixture.entries):
        times = [seen.count((index, sample)) for sample in range(entry.count)]
        assert max(times) - min(times) <= 1, "over the epochs, every sample comes as often as the others"


@given(order=orders(), cuts=st.lists(st.integers(0, 150), max_size=6), data=st.data())
def test_a_weighted_stream_is_the_same_however_it_is_cut(
    order: SampleOrder, cuts: list[int], data: st.DataObject
):
    names = {entry.degradation: entry.count for entry in order.mixture.entries}
    weights = {name: data.draw(st.floats(0.5, 2)) for name in names}
    for sampling in ("permutation", "replacement"):
        mixed = SampleOrder(weighted_mixture(names, weights, 50), order.seed, 7, order.tail, sampling)
        edges = [0, *sorted(cuts), 150]
        assert [s for a, b in pairwise(edges) for s in drawn(mixed, a, b)] == drawn(mixed, 0, 150)


def test_cdd11_draws_a_type_uniformly_and_then_one_of_its_images():
    """The release: `random.choice` of the 11 types, `random.choice` of the images, length images x 4."""
    cdd11 = Mixture(tuple(MixtureEntry(f"type{i}", 1183, 4) for i in range(11)))
    order = SampleOrder(cdd11, 3, 32, sampling="replacement")
    assert (cdd11.samples_per_epoch, order.steps_per_epoch) == (52_052, 1_626)
    draw = order.draw(np.arange(order.positions_per_epoch))
    types = np.bincount(draw.entry, minlength=11)
    expected = len(draw.entry) / 11
    assert ((types - expected) ** 2 / expected).sum() < 37.0  # 10 degrees of freedom, 99.99 %
    images = np.bincount(draw.entry * 1183 + draw.sample, minlength=11 * 1183)
    assert 0.0170 < (images == 0).mean() < 0.0200, "with replacement: a share of exp(-4) is not drawn at all"


def test_a_stand_in_is_another_sample_of_the_entry_and_the_same_for_all():
    order = SampleOrder(FIVE, 1, 32)
    found = [order.substitute(77, attempt, 3) for attempt in range(20)]
    assert found == [SampleOrder(FIVE, 1, 8).substitute(77, attempt, 3) for attempt in range(20)]
    assert len(set(found)) > 15
    assert all(0 <= sample < 200 for sample in found)


def test_weights_that_cannot_be_are_said():
    with pytest.raises(MixtureError, match="Give each degradation one weight"):
        weighted_mixture({"a": 3}, {"b": 1.0}, 10)
    with pytest.raises(MixtureError, match="above 0"):
        weighted_mixture({"a": 3}, {"a": 0.0}, 10)
    with pytest.raises(MixtureError, match=r"'b'.*less than one"):
        weighted_mixture({"a": 3, "b": 3}, {"a": 1.0, "b": 1e-9}, 10)


def test_the_order_of_before_is_the_order_of_now():
    """Pinned when windows and weights came: checkpoints of before rest on it."""
    for tail, sampling, expected in (
        ("drop", "permutation", "a41c9be2d23ebcfd"),
        ("carry", "permutation", "738d844b8dc1d35a"),
        ("drop", "replacement", "b46f781f457c4a2c"),
    ):
        draw = SampleOrder(FIVE, 11, 32, tail, sampling).draw(np.arange(162_000, 164_000))
        assert hashlib.sha256(np.stack(draw).astype("<i8").tobytes()).hexdigest()[:16] == expected


def test_the_permutations_of_few_samples_stay_the_same() -> None:
    assert [permutation(size, 1, 2).tolist() for size in range(1, 7)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 3, 2],
        [1, 3, 2, 4, 0],
        [1, 5, 2, 4, 0, 3],
    ]
