"""The ledger: what was consumed is written down, and holes, doubles and contradictions are found."""

from __future__ import annotations

import json

import pytest
import torch

from shards.errors import LedgerError, StoreError
from shards.ledger import SampleLedger, next_attempt, read_ledger
from shards.store import LocalStore, Store
from shards.stream import Batch

STEP = 4
"""Images of a step."""


def batch(first: int, count: int, shift: int = 0, skipped: tuple = ()) -> Batch:
    """Some workers' share: sample `i<position>` at every position."""
    positions = torch.arange(first, first + count)
    none = torch.zeros(count)
    ids = [f"i{int(p) + shift}" for p in positions]
    return Batch(none, none, none, positions, ["rain"] * count, ids, (0, STEP), list(skipped))


def attempt(store: Store, first_step: int, last_step: int, world: int = 1, flush: bool = True, **of) -> None:
    number = next_attempt(store)
    ledgers = [SampleLedger(store, number, rank, world) for rank in range(world)]
    for step in range(first_step, last_step):
        for rank, ledger in enumerate(ledgers):
            ledger.record(step, batch(step * STEP + rank * STEP // world, STEP // world, **of))
    if flush:
        for ledger in ledgers:
            ledger.flush()


def test_every_position_is_found_once_across_kills_and_resizes(each_store: Store):
    attempt(each_store, 0, 5, world=2)
    attempt(each_store, 3, 8)  # two steps are repeated, as after a crash
    attempt(each_store, 8, 9, world=4)
    found = read_ledger(each_store, positions=9 * STEP)
    assert found.samples == {n: ("rain", f"i{n}") for n in range(9 * STEP)}
    assert (found.attempts, found.repeated) == (3, 2 * STEP)
    assert "0 to 35: each exactly once, over 3 attempts" in found.render()


def test_a_hole_is_found(each_store: Store):
    attempt(each_store, 0, 3)
    attempt(each_store, 4, 6)
    with pytest.raises(LedgerError, match="24 positions, and 12 is missing"):
        read_ledger(each_store, positions=24)


def test_a_hole_that_nobody_filled_later_is_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2)
    attempt(store, 3, 4)
    attempt(store, 4, 5)
    with pytest.raises(LedgerError, match="position 8 is missing"):
        read_ledger(store)


def test_more_positions_than_the_run_consumed_are_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 3)
    with pytest.raises(LedgerError, match="consumed 8 positions, and 11 should not be there"):
        read_ledger(store, positions=8)


def test_steps_under_way_are_left_aside_until_the_run_has_ended(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2, world=2)
    SampleLedger(store, 1, 1, 2).flush()
    late = SampleLedger(store, 1, 1, 2)  # worker 1 has written its part of step 2, worker 0 not yet
    late.record(2, batch(10, 2))
    late.flush()
    assert sorted(read_ledger(store).samples) == list(range(8))


def test_what_is_consumed_twice_in_one_attempt_is_found(tmp_path):
    store = LocalStore(tmp_path)
    ledger = SampleLedger(store, 0)
    ledger.record(0, batch(0, 4))
    ledger.record(1, batch(3, 4))
    ledger.flush()
    with pytest.raises(LedgerError, match="position 3 was consumed twice"):
        read_ledger(store)


def test_a_contradiction_between_attempts_is_found(tmp_path):
    store = LocalStore(tmp_path)
    attempt(store, 0, 2)
    attempt(store, 1, 3, shift=1)
    with pytest.raises(LedgerError, match=r"position 4 is \('rain', 'i5'\), was \('rain', 'i4'\)"):
        read_ledger(store)


def test_what_was_left_out_is_told(tmp_path):
    store = LocalStore(tmp_path)
    ledger = SampleLedger(store, 0)
    ledger.record(0, batch(0, 4, skipped=((2, "rain", "broken", "its shard is truncated"),)))
    ledger.flush()
    found = read_ledger(store, 4)
    assert found.skipped == {2: ("rain", "broken", "its shard is truncated")}
    assert (
        "damaged samples that were replaced: 1\n          2  rain  broken: its shard is truncated"
        in found.render()
    )


def test_a_report_lists_twenty_damaged_samples_and_says_that_there_are_more(tmp_path):
    for count in (20, 21):
        store = LocalStore(tmp_path / str(count))
        ledger = SampleLedger(store, 0)
        skipped = tuple((n, "rain", f"broken{n}", "it is truncated") for n in range(count))
        ledger.record(0, batch(0, count, skipped=skipped))
        ledger.flush()
        text = read_ledger(store, count).render()
        assert text.count("it is truncated") == 20
        assert text.endswith("…") == (count > 20)


def test_pieces_are_written_once_and_a_run_without_any_is_said(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(LedgerError, match="ledger: true"):
        read_ledger(store)
    attempt(store, 0, 1)
    again = SampleLedger(store, 0)
    again.record(0, batch(0, 4, shift=9))
    with pytest.raises(StoreError, match="already holds other bytes"):
        again.flush()
    (key,) = store.list()
    assert json.loads(store.read(key)) == {
        "step": 0,
        "samples": [[n, "rain", f"i{n}"] for n in range(4)],
        "skipped": [],
    }


def test_a_line_that_is_none_is_named(tmp_path):
    store = LocalStore(tmp_path)
    store.write("ledger/0000/000000000-worker-0-of-1.jsonl", b"<html>\n")
    with pytest.raises(LedgerError, match=r"worker-0-of-1\.jsonl, line 1"):
        read_ledger(store)


@pytest.mark.parametrize(
    "line",
    [
        *(
            b"\xff\xfe",
            b"[" * 50_000,
            b"null",
            b"[]",
            b'"x"',
            b"9" * 5000,
            b"{}",
            b'{"samples": 5, "skipped": []}',
        ),
        *(
            b'{"samples": [[%s, "rain", "a"]], "skipped": []}' % p
            for p in (b"-1", b"true", b"1.5", b"1e999", b'"1"')
        ),
        *(
            b'{"samples": [%s], "skipped": []}' % s
            for s in (b"[0]", b'[0, "rain"]', b"[0, 1, 2]", b"5", b"{}", b"null")
        ),
        *(
            b'{"samples": [], "skipped": [%s]}' % s
            for s in (b'[0, "rain", "a"]', b"[0, 1, 2, 3]", b"[]", b"null")
        ),
    ],
)
def test_a_hostile_line_is_one_error_with_its_number(tmp_path, line: bytes):
    store = LocalStore(tmp_path)
    store.write("ledger/0000/000000000-worker-0-of-1.jsonl", line + b"\n")
    with pytest.raises(LedgerError, match="line 1: not a line of a ledger"):
        read_ledger(store)


def test_names_may_hold_any_sign_of_unicode(tmp_path):
    store = LocalStore(tmp_path)
    odd = "a\u2028b\x85c\x1dd\nä😀"
    share = batch(0, STEP)
    share.ids[0] = odd
    ledger = SampleLedger(store, 0)
    ledger.record(0, share)
    ledger.flush()
    assert read_ledger(store, STEP).samples[0] == ("rain", odd)
