"""Comparing few candidates finds what comparing each with each finds."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import similar
from shards.similar import FINGERPRINT, NEAR_BITS, NEAR_CORRELATION, similar_images


def alike(prints: np.ndarray) -> dict[tuple[int, int], float]:
    """Every pair of alike images, as comparing each with each finds them, with the correlation."""
    grey = prints["thumbnail"].astype(np.float64)
    grey -= grey.mean(axis=1, keepdims=True)
    length = np.sqrt((grey**2).sum(axis=1))
    flat = length < 1.5 * 16
    unit = (grey / np.where(flat, 1, length)[:, None]).astype(np.float32)
    unit[flat] = 0
    found = {}
    for i, j in combinations(range(len(prints)), 2):
        correlation = float(np.einsum("i,i->", unit[i], unit[j]))
        if prints["exact"][i].tobytes() == prints["exact"][j].tobytes():
            found[i, j] = 1.0
        elif (int(prints["hash"][i]) ^ int(prints["hash"][j])).bit_count() <= NEAR_BITS and (
            correlation >= NEAR_CORRELATION
        ):
            found[i, j] = correlation
    return found


def groups(pairs: dict[tuple[int, int], float], count: int) -> set[frozenset[int]]:
    """The connected parts of a graph."""
    part = {n: frozenset([n]) for n in range(count)}
    for i, j in pairs:
        joined = part[i] | part[j]
        part.update(dict.fromkeys(joined, joined))
    return {members for members in part.values() if len(members) > 1}


def photographs(seed: int, scenes: int, count: int, bits: int, noise: int) -> np.ndarray:
    """Prints of copies of a few scenes, some of them equal, some plain, with hashes that differ in some bits."""
    rng = np.random.default_rng(seed)
    prints = np.zeros(count, FINGERPRINT)
    of = rng.integers(0, scenes, count)
    hashes = rng.integers(0, 2**63, scenes, dtype=np.uint64) << np.uint64(1)
    looks = rng.integers(0, 256, (scenes, 256))
    looks[0] = 128  # plain
    prints["hash"] = hashes[of]
    for _ in range(bits):
        prints["hash"] ^= np.uint64(1) << rng.integers(1, 64, count).astype(np.uint64)
    changes = rng.integers(-noise, noise + 1, (count, 256))
    prints["thumbnail"] = np.clip(looks[of] + changes, 0, 255)
    prints["exact"] = rng.integers(0, 256, (count, 32), np.uint8).view("V32")[:, 0]
    for copy in range(1, count, 3):
        if rng.random() < 0.5:
            prints[copy] = prints[copy - 1]
    return prints


@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("many", [1 << 22, 0], ids=["four parts", "three parts"])
@given(
    seed=st.integers(0, 2**32),
    scenes=st.integers(1, 12),
    count=st.integers(2, 60),
    bits=st.integers(0, 8),
    noise=st.sampled_from([0, 5, 20, 30]),
    share=st.sampled_from([0, 0.1, 0.5, 1]),
)
def test_groups_and_leaks_are_those_of_all_pairs(many, seed, scenes, count, bits, noise, share):
    prints = photographs(seed, scenes, count, bits, noise)
    tested = np.random.default_rng(seed).random(count) < share
    expected = alike(prints)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similar, "_MANY", many)
        patch.setattr(similar, "_CANDIDATES", 64)
        patch.setattr(similar, "_CONFIRMED", 8)
        if many == 0:  # three parts have thousands of neighbours each
            patch.setattr(similar, "NEAR_BITS", 4)
            expected = {
                pair: c
                for pair, c in expected.items()
                if prints["exact"][pair[0]].tobytes() == prints["exact"][pair[1]].tobytes()
                or (int(prints["hash"][pair[0]]) ^ int(prints["hash"][pair[1]])).bit_count() <= 4
            }
        found = similar_images(prints, tested)
    members = [frozenset(found.members(n).tolist()) for n in range(len(found.pairs))]
    assert len(set(members)) == len(members)
    assert set(members) == groups(expected, count)
    leaks = {pair for pair in expected if tested[pair[0]] != tested[pair[1]]}
    assert set(found.leaked.tolist()) == {n for pair in leaks for n in pair if tested[n]}
    told = [(min(i, j), max(i, j)) for i, j, *_ in found.pairs]
    for (i, j), (*_, correlation, exact), of in zip(told, found.pairs, members, strict=True):
        assert {i, j} <= of
        assert correlation == pytest.approx(expected[i, j], abs=1e-5)
        assert exact == (prints["exact"][i].tobytes() == prints["exact"][j].tobytes())
    leaking = {of for of in members if any(set(pair) <= of for pair in leaks)}
    assert {of for of, pair in zip(members, told, strict=True) if pair in leaks} == leaking
    assert found.leaks == len(leaking)
    equal = {
        pair for pair in expected if prints["exact"][pair[0]].tobytes() == prints["exact"][pair[1]].tobytes()
    }
    assert found.exact == sum(any(set(pair) <= of for pair in equal) for of in members)


@given(st.integers(0, 2**64 - 1), st.sets(st.integers(0, 63), max_size=NEAR_BITS), st.sampled_from([3, 4]))
def test_no_pair_of_near_hashes_is_missed(one: int, bits: set[int], parts: int):
    other = one ^ sum(1 << bit for bit in bits)
    radii = [(NEAR_BITS + 1 + part) // parts - 1 for part in range(parts)]
    assert sum(radius + 1 for radius in radii) == NEAR_BITS + 1
    differ = [
        (
            (one ^ other) >> 64 * part // parts & (1 << 64 * (part + 1) // parts - 64 * part // parts) - 1
        ).bit_count()
        for part in range(parts)
    ]
    assert any(found <= radius for found, radius in zip(differ, radii, strict=True))


def test_nothing_and_one_photograph_have_no_twin():
    for count in (0, 1):
        found = similar_images(np.zeros(count, FINGERPRINT), np.zeros(count, np.bool_))
        assert (found.pairs, found.leaks, found.exact, len(found.leaked)) == ([], 0, 0, 0)
