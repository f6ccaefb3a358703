"""Compare the fingerprints of many photographs with each other, without comparing each with each.

Two photographs are alike when their pixels are equal, or when their hashes differ in at most 10 bits and their
thumbnails correlate. Hashes that differ in at most 10 bits differ in at most 1 or 2 bits of one of their four parts
(otherwise they would differ in 11), so only hashes whose parts are that near are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

THUMBNAIL = 16
"""Side of a thumbnail in pixels."""
FINGERPRINT = np.dtype(
    [("offset", "<i8"), ("exact", "V32"), ("hash", "<u8"), ("thumbnail", "u1", (THUMBNAIL**2,))]
)
"""Place of an image in its shard, sha256 of its pixels, perceptual hash and grey thumbnail."""
NEAR_BITS = 10
NEAR_CORRELATION = 0.97
_FLAT = 1.5  # grey levels: a thumbnail with less variation (plain sky, black) is not compared
_CANDIDATES = 1 << 17  # pairs of hashes in memory at a time
_CONFIRMED = 1 << 12  # pairs of thumbnails in memory at a time
_MANY = 1 << 22  # hashes from which three longer parts leave fewer candidates than four

_Index = NDArray[np.int64]


@dataclass(frozen=True)
class Similar:
    """Groups of alike images: each member is alike to another one of its group."""

    pairs: list[tuple[int, int, float, bool]]
    """Of each group two alike images, their correlation, and whether they are equal.

    A pair from train and test before others, then an equal pair, then the most similar one found. Groups come in the
    same order."""
    leaked: _Index
    """Test images that are alike to a training image."""
    leaks: int
    """Number of groups with a pair from train and test."""
    exact: int
    """Number of groups with an equal pair."""
    _ordered: _Index
    _bounds: _Index

    def members(self, group: int) -> _Index:
        """Return the images of a group."""
        start, end = self._bounds[group]
        return self._ordered[start:end]


def similar_images(prints: NDArray[Any], tested: NDArray[np.bool_]) -> Similar:
    """Return the groups of alike images; `tested` tells which are test images."""
    links = _Links(prints["thumbnail"], tested)
    _, label = np.unique(prints["exact"], return_inverse=True)
    order = np.lexsort((tested, label))  # of equal images those of train first
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    first = np.repeat(order[starts], np.diff(starts, append=len(order)))
    links.add_equal(first, order)
    # Equal images of a split are alike to the same images, so one of them stands for all.
    changes = np.diff(label[order] * 2 + tested[order], prepend=-1) != 0
    stand_in = np.empty(len(order), np.int64)
    stand_in[order] = np.repeat(order[changes], np.diff(np.flatnonzero(changes), append=len(order)))
    units = np.sort(order[changes])
    _search(links, units[~_is_flat(prints["thumbnail"], units)], prints["hash"])
    return links.result(stand_in)


class _Links:
    """What is known so far: which images are in one group (a union-find forest), and which test images leaked."""

    def __init__(self, thumbnails: NDArray[np.uint8], tested: NDArray[np.bool_]) -> None:
        self.tested, self.leaked = tested, np.zeros(len(tested), np.bool_)
        self.changes = 0
        self._thumbnails = thumbnails
        self._parents = np.arange(len(tested))
        self._found: list[tuple[_Index, _Index, NDArray[np.float32], NDArray[np.bool_]]] = []

    def add_equal(self, first: _Index, second: _Index) -> None:
        """Add pairs of equal images, of which each second one is new."""
        first, second = first[first != second], second[first != second]
        self._parents[second] = first
        self.leaked[second[~self.tested[first] & self.tested[second]]] = True
        ones = np.ones(len(first), np.float32)
        self._found.append((first, second, ones, ones.astype(np.bool_)))

    def add_near(self, first: _Index, second: _Index) -> None:
        """Add those pairs whose thumbnails correlate and that tell something new."""
        for start in range(0, len(first), _CONFIRMED):
            i, j = first[start : start + _CONFIRMED], second[start : start + _CONFIRMED]
            test = np.where(self.tested[i], i, j)
            new = (self._root(i) != self._root(j)) | ((self.tested[i] != self.tested[j]) & ~self.leaked[test])
            i, j = i[new], j[new]
            if len(i) == 0:
                continue
            correlations = np.einsum("ij,ij->i", _unit(self._thumbnails[i]), _unit(self._thumbnails[j]))
            alike = correlations >= NEAR_CORRELATION
            self._add(i[alike], j[alike], correlations[alike])

    def roots(self) -> _Index:
        """Return a number for each image that is the same for those of one group."""
        while not np.array_equal(above := self._parents[self._parents], self._parents):
            self._parents = above
        return self._parents

    def result(self, stand_in: _Index) -> Similar:
        """Return the groups; `stand_in` is the image that was compared in place of each."""
        i, j, correlation, exact = (np.concatenate(part) for part in zip(*self._found, strict=True))
        roots = self.roots()
        leaks = self.tested[i] != self.tested[j]
        best = np.lexsort((-correlation, ~exact, ~leaks, roots[i]))
        chosen = best[np.flatnonzero(np.diff(roots[i[best]], prepend=-1))]  # one of each group, by its root
        ordered = np.argsort(roots, kind="stable")
        ends = np.cumsum(np.bincount(roots, minlength=len(roots)))
        bounds = np.stack([ends - np.bincount(roots, minlength=len(roots)), ends], 1)[roots[i[chosen]]]
        equal = np.zeros(len(roots), np.bool_)
        equal[roots[i[exact]]] = True
        rank = np.lexsort((-correlation[chosen], ~exact[chosen], ~leaks[chosen]))
        columns = (part[chosen][rank].tolist() for part in (i, j, correlation, exact))
        return Similar(
            list(zip(*columns, strict=True)),
            np.flatnonzero(self.leaked[stand_in]),
            int(leaks[chosen].sum()),
            int(equal.sum()),
            ordered,
            bounds[rank],
        )

    def _add(self, first: _Index, second: _Index, correlations: NDArray[np.float32]) -> None:
        kept = []
        for number, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            one, other = self._find(i), self._find(j)
            self._parents[max(one, other)] = min(one, other)
            test, new = j if self.tested[j] else i, one != other
            if self.tested[i] != self.tested[j] and not self.leaked[test]:
                self.leaked[test] = new = True
            if new:
                kept.append(number)
        self.changes += len(kept)
        self._found.append((first[kept], second[kept], correlations[kept], np.zeros(len(kept), np.bool_)))

    def _find(self, image: int) -> int:
        root = image
        while self._parents[root] != root:
            root = int(self._parents[root])
        self._parents[image] = root
        return root

    def _root(self, images: _Index) -> _Index:
        while True:
            above: _Index = self._parents[images]
            if np.array_equal(above, images):
                return above
            images = above


class _Buckets:
    """Images in the order of their hashes, which begin with one of their parts; a bucket is one value of that part."""

    def __init__(self, images: _Index, hashes: NDArray[np.uint64], start: int, width: int) -> None:
        left, right = np.uint64((64 - start - width) % 64), np.uint64((start + width) % 64)
        turned = hashes << left | hashes >> right if left else hashes
        order = np.argsort(turned, kind="stable")
        self.images, self.hashes = images[order], turned[order]
        part = (self.hashes >> np.uint64(64 - width)).astype(np.int64)
        self.sizes = np.bincount(part, minlength=1 << width)
        self.ends = np.cumsum(self.sizes)
        self.starts = self.ends - self.sizes
        self.filled = np.flatnonzero(self.sizes)
        self._changes = -1

    def neighbours(self, links: _Links) -> None:
        """Compare each image with the next, and each test image with the last training image before it."""
        count = len(self.images)
        trained = np.where(links.tested[self.images], -1, np.arange(count))
        before = np.maximum.accumulate(trained)
        tests = np.flatnonzero((trained < 0) & (before >= 0))
        self._compare(links, np.arange(count - 1), np.arange(1, count))
        self._compare(links, before[tests], tests)

    def compare(self, links: _Links, flips: int) -> None:
        """Compare the images of each bucket with those of the bucket whose part differs in the bits of `flips`."""
        one = self.filled[self.filled <= self.filled ^ flips]
        one = one[self.sizes[one ^ flips] > 0]
        one = one[self._are_open(links, one, one ^ flips)]
        other, sizes = one ^ flips, self.sizes[one]
        here = _ranges(self.starts[one], sizes)
        first = here + 1 if flips == 0 else np.repeat(self.starts[other], sizes)
        for chosen, second in _expanded(first, np.repeat(self.ends[other], sizes) - first):
            self._compare(links, here[chosen], second)

    def _compare(self, links: _Links, first: _Index, second: _Index) -> None:
        near = np.bitwise_count(self.hashes[first] ^ self.hashes[second]) <= NEAR_BITS
        if near.any():
            links.add_near(self.images[first[near]], self.images[second[near]])

    def _are_open(self, links: _Links, one: _Index, other: _Index) -> NDArray[np.bool_]:
        """Return for each pair of buckets whether it may tell something new: not where all is one group."""
        if self._changes != links.changes:
            self._changes = links.changes
            roots, tested = links.roots()[self.images], links.tested[self.images]
            waiting = tested & ~links.leaked[self.images]
            places = self.starts[self.filled]
            self._root = np.full(len(self.sizes), -1)
            lowest, highest = np.minimum.reduceat(roots, places), np.maximum.reduceat(roots, places)
            self._root[self.filled] = np.where(lowest == highest, lowest, -1)
            self._waits, self._trains = np.zeros((2, len(self.sizes)), np.bool_)
            self._waits[self.filled] = np.logical_or.reduceat(waiting, places)
            self._trains[self.filled] = np.logical_or.reduceat(~tested, places)
        same = (self._root[one] == self._root[other]) & (self._root[one] >= 0)
        leak = (self._waits[one] & self._trains[other]) | (self._trains[one] & self._waits[other])
        result: NDArray[np.bool_] = ~same | leak
        return result


def _search(links: _Links, images: _Index, hashes: NDArray[np.uint64]) -> None:
    """Link the images whose hashes differ in at most `NEAR_BITS` bits and whose thumbnails correlate."""
    if len(images) < 2:
        return
    parts = 4 if len(images) < _MANY else 3
    for part in range(parts):
        start, end = 64 * part // parts, 64 * (part + 1) // parts
        radius = (
            NEAR_BITS + 1 + part
        ) // parts - 1  # one more than it, over all parts, is one more than the bits
        buckets = _Buckets(images, hashes[images], start, end - start)
        buckets.neighbours(links)
        for flips in _flips(end - start, radius):
            buckets.compare(links, flips)


def _flips(width: int, radius: int) -> Iterator[int]:
    """Yield every number of `width` bits of which at most `radius` are set."""
    for count in range(radius + 1):
        for bits in combinations(range(width), count):
            yield sum(1 << bit for bit in bits)


def _ranges(starts: _Index, sizes: _Index) -> _Index:
    """Return start, start + 1, ... of each range, one range after another."""
    before = np.cumsum(sizes) - sizes
    members: _Index = np.arange(int(sizes.sum())) + np.repeat(starts - before, sizes)
    return members


def _expanded(starts: _Index, sizes: _Index) -> Iterator[tuple[_Index, _Index]]:
    """Yield the number of a range with each of its members, a limited number at a time."""
    ends = np.cumsum(sizes)
    low = 0
    while low < len(sizes):
        limit = (ends[low - 1] if low else 0) + _CANDIDATES
        high = max(low + 1, int(np.searchsorted(ends, limit, "right")))
        part = sizes[low:high]
        yield np.repeat(np.arange(low, high), part), _ranges(starts[low:high], part)
        low = high


def _is_flat(thumbnails: NDArray[np.uint8], images: _Index) -> NDArray[np.bool_]:
    flat = np.zeros(len(images), np.bool_)
    for start in range(0, len(images), _CONFIRMED):
        part = thumbnails[images[start : start + _CONFIRMED]]
        flat[start : start + _CONFIRMED] = np.linalg.norm(_centred(part), axis=1) < _FLAT * THUMBNAIL
    return flat


def _unit(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return thumbnails with zero mean and unit length."""
    centred = _centred(thumbnails)
    unit: NDArray[np.float32] = (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _centred(thumbnails: NDArray[np.uint8]) -> NDArray[np.float64]:
    grey = thumbnails.astype(np.float64)
    centred: NDArray[np.float64] = grey - grey.mean(axis=1, keepdims=True)
    return centred
