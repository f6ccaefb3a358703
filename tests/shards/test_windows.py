"""The windowed order: a permutation that stays among few shards, and takes nothing from any cache."""

from __future__ import annotations

import pickle
from fractions import Fraction
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import MixtureError
from shards.mixture import Mixture, MixtureEntry
from shards.order import SampleOrder
from shards.windows import ShardWindows


@st.composite
def windowed(draw: st.DrawFn) -> SampleOrder:
    """Any mixture over any shards, repeats whole or not."""
    entries, shards = [], []
    for index in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 30))
        repeat = draw(
            st.one_of(st.integers(1, 4), st.integers(1, 3 * count).map(lambda n, c=count: Fraction(n, c)))
        )
        entries.append(MixtureEntry(f"d{index}", count, repeat))
        shards.append(np.array(draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))))
    mixture = Mixture(tuple(entries))
    return SampleOrder(
        mixture,
        draw(st.integers(0, 2**62)),
        draw(st.integers(1, mixture.samples_per_epoch)),
        draw(st.sampled_from(["drop", "carry"])),
        windows=ShardWindows(shards, draw(st.integers(1, 8))),
    )


def drawn(order: SampleOrder, start: int, stop: int) -> list[tuple[int, int]]:
    draw = order.draw(np.arange(start, stop))
    return list(zip(draw.entry.tolist(), draw.sample.tolist(), strict=True))


@settings(max_examples=60)
@given(order=windowed(), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_of_the_slots(order: SampleOrder, epoch: int):
    slots = order.windows.arrange(order, epoch).slots
    assert sorted(slots.tolist()) == list(range(order.mixture.samples_per_epoch))


@settings(max_examples=60)
@given(order=windowed(), epoch=st.integers(0, 1000))
def test_a_window_reads_no_more_shards_than_it_says(order: SampleOrder, epoch: int):
    windows = order.windows
    arrangement = windows.arrange(order, epoch)
    place = order.place(epoch, arrangement.slots)
    shard = np.array([windows.shards[e][s] for e, s in zip(place.entry, place.sample, strict=True)])
    assert arrangement.ends[-1] == len(shard)
    for (start, end), shards in zip(pairwise([0, *arrangement.ends]), arrangement.shards, strict=True):
        assert set(shard[start:end].tolist()) == set(shards)
        assert 0 < len(shards) <= windows.size


@settings(max_examples=60)
@given(order=windowed(), cuts=st.lists(st.integers(0, 150), max_size=6))
def test_the_stream_is_the_same_however_it_is_cut_and_whoever_computes_it(
    order: SampleOrder, cuts: list[int]
):
    whole = drawn(order, 0, 150)
    edges = [0, *sorted(cuts), 150]
    elsewhere = pickle.loads(pickle.dumps(order))  # a reader's copy, that is asked for the pieces backwards
    pieces = [drawn(elsewhere, a, b) for a, b in reversed(list(pairwise(edges)))]
    assert [sample for piece in reversed(pieces) for sample in piece] == whole


@settings(max_examples=30)
@given(order=windowed())
def test_each_sample_comes_as_often_as_without_a_window(order: SampleOrder):
    plain = SampleOrder(order.mixture, order.seed, 1, tail="carry")
    for epoch in (0, 3):
        slots = order.windows.arrange(order, epoch).slots
        with_window, without = order.place(epoch, slots), plain.place(epoch, np.arange(len(slots)))
        found, expected = (
            sorted(zip(d.entry.tolist(), d.sample.tolist(), strict=True)) for d in (with_window, without)
        )
        assert found == expected


def test_what_is_ahead_is_what_is_read():
    order = SampleOrder(
        Mixture((MixtureEntry("a", 40, 3), MixtureEntry("b", 20, 1))),
        *(5, 8),
        windows=ShardWindows([np.arange(40) // 5, 8 + np.arange(20) // 5], 2),
    )
    start = 3 * order.positions_per_epoch - 20
    position = start
    for end, shards in islice(order.windows.ahead(order, start), 6):
        read = order.draw(np.arange(position, end))
        needed = {int(order.windows.shards[e][s]) for e, s in zip(read.entry, read.sample, strict=True)}
        assert needed <= set(shards)
        position = end
    assert position > 3 * order.positions_per_epoch


def test_samples_that_come_often_are_spread_over_the_epoch():
    order = SampleOrder(
        Mixture((MixtureEntry("rare", 1000, 1), MixtureEntry("often", 10, 100))),
        *(0, 10),
        windows=ShardWindows([np.arange(1000) // 10, np.full(10, 100)], 10),
    )
    entry = order.draw(np.arange(2000)).entry.reshape(10, 200)
    assert ((entry.mean(axis=1) > 0.2) & (entry.mean(axis=1) < 0.8)).all()


def test_all_shards_in_one_window_is_the_ordinary_order():
    mixture = Mixture((MixtureEntry("a", 30, 2), MixtureEntry("b", 7, 1)))
    windows = ShardWindows([np.arange(30), np.arange(7)], 1000)
    assert drawn(SampleOrder(mixture, 1, 4, windows=windows), 0, 200) == drawn(
        SampleOrder(mixture, 1, 4), 0, 200
    )


def test_what_cannot_be_windowed_is_said():
    with pytest.raises(MixtureError, match="at least 1"):
        ShardWindows([np.zeros(3)], 0)
    with pytest.raises(MixtureError, match="replacement"):
        SampleOrder(
            Mixture((MixtureEntry("a", 3, 1),)),
            0,
            1,
            sampling="replacement",
            windows=ShardWindows([np.zeros(3)], 1),
        )


def test_each_window_is_told_once_up_to_the_end_of_each_epoch() -> None:
    mixture = Mixture((MixtureEntry("a", 7, 1),))
    windows = ShardWindows([np.arange(7)], 1)  # one sample in each window
    whole = SampleOrder(mixture, 0, 1, windows=windows)
    assert [end for end, _ in islice(windows.ahead(whole, 0), 16)] == list(range(1, 17))
    assert [end for end, _ in islice(windows.ahead(whole, 9), 3)] == [10, 11, 12]
    without_tail = SampleOrder(mixture, 0, 3, windows=windows)  # six positions of an epoch
    assert [end for end, _ in islice(windows.ahead(without_tail, 4), 4)] == [5, 6, 7, 8]
    pairs = ShardWindows([np.arange(7)], 2)
    ahead = pairs.ahead(SampleOrder(mixture, 0, 3, windows=pairs), 0)
    assert [end for end, _ in islice(ahead, 6)] == [2, 4, 6, 8, 10, 12]


def test_the_orders_of_two_epochs_are_kept() -> None:
    windows = ShardWindows([np.arange(7)], 1)
    order = SampleOrder(Mixture((MixtureEntry("a", 7, 1),)), 0, 1, windows=windows)
    first, second = windows.arrange(order, 0), windows.arrange(order, 1)
    assert windows.arrange(order, 0) is first
    assert windows.arrange(order, 1) is second
    windows.arrange(order, 2)
    assert windows.arrange(order, 1) is second
    assert windows.arrange(order, 0) is not first
