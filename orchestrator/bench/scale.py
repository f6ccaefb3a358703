"""`mirage bench scale`: how the cost of an operation grows with the size of what it is for.

Every operation runs at three sizes, in fresh processes. CPU seconds and memory do not depend on what else the machine
does. The exponent of the fit tells what they mean at other sizes: 0 is flat, 1 is linear.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from orchestrator.bench import scale_operations, scale_tracking
from orchestrator.bench.errors import BenchError
from orchestrator.bench.growth import exponent, extrapolate
from orchestrator.tables import aligned
from shards.cache import ShardCache
from shards.columns import BLOCK, IMAGE, NO_IMAGE, ROW, Columns, ColumnsWriter, Rows, Shards
from shards.dataset import Dataset
from shards.manifest import Manifest, Shard, publish
from shards.store import open_store

if TYPE_CHECKING:
    from orchestrator.bench.environment import Echo, Environment

T = TypeVar("T")
EXTRAPOLATED = (1_000_000, 10_000_000, 100_000_000)
"""Sizes for which the fit is evaluated."""
PER_SHARD = 1024  # samples
SHARD_BYTES = 1 << 28
Costs = Mapping[str, float]
"""What one operation cost, by the name of the cost with its unit."""


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure every operation at every size, print one table, return the results."""
    measured: dict[str, dict[str, list[float]]] = {}
    chosen = {name: operation for name, operation in OPERATIONS.items() if options.only in name}
    if not chosen:
        raise BenchError(
            f"--only {options.only}: no operation has that name. There are: {', '.join(OPERATIONS)}."
        )
    for name, operation in chosen.items():
        for size in options.sizes:
            with tempfile.TemporaryDirectory(prefix="mirage-bench-", dir=options.work) as folder:
                for cost, value in operation(size, Path(folder)).items():
                    measured.setdefault(name, {}).setdefault(cost, []).append(value)
    rows = [
        _row(name, cost, options.sizes, values)
        for name, costs in measured.items()
        for cost, values in costs.items()
    ]
    names = [f"{size:,}" for size in options.sizes]
    meaning = [f"at {size:,}" for size in EXTRAPOLATED]
    for line in aligned(["operation", "cost", *names, "exponent", *meaning], rows, "<<>>>>>>>"):
        echo(line)
    return {"sizes": options.sizes, "costs": measured}


def _row(name: str, cost: str, sizes: Sequence[int], values: Sequence[float]) -> list[str]:
    """Return one line of the table. A fit needs a unit of which there are many: thousandths."""
    power = exponent(sizes, [1000 * value for value in values])
    meaning = [extrapolate(sizes, values, power, size) for size in EXTRAPOLATED]
    return [name, cost, *(f"{v:.3g}" for v in values), f"{power:.2f}", *(f"{v:.3g}" for v in meaning)]


def open_manifest(size: int, folder: Path) -> Costs:
    """Publish a dataset of `size` samples and open it, in the first process of a node and in another one."""
    uri = str(folder / "dataset")
    publishing, _ = in_new_process(_publish, uri, size)
    first, _ = in_new_process(_open, uri, folder / "cache")
    later, private = in_new_process(_open, uri, folder / "cache")
    return {
        "publish [CPU s]": publishing,
        "first on a node [CPU s]": first,
        "each process [CPU s]": later,
        "each process [private MB]": private,
    }


def _in_new_process(operation: Callable[..., Costs], *more: object) -> Callable[[int, Path], Costs]:
    return lambda size, folder: in_new_process(operation, size, folder, *more)


OPERATIONS: dict[str, Callable[[int, Path], Costs]] = {
    "open a manifest": open_manifest,
    "audit: different photographs": _in_new_process(scale_operations.compare_photographs),
    "audit: photographs of one scene": _in_new_process(scale_operations.compare_photographs, True),
    "check a ledger": _in_new_process(scale_operations.check_ledger),
    f"pack a pair per {scale_operations.SAMPLES_OF_A_PAIR}": _in_new_process(scale_operations.pack_again),
    f"scan a pair per {scale_operations.SAMPLES_OF_A_PAIR}": _in_new_process(scale_operations.scan_pairs),
    f"read, a shard per {scale_operations.SAMPLES_OF_A_SHARD}": _in_new_process(scale_operations.read_shards),
    f"track, a line per {scale_tracking.SAMPLES_OF_A_LINE}": _in_new_process(scale_tracking.track_lines),
    f"find, a version per {scale_tracking.SAMPLES_OF_A_VERSION}": _in_new_process(
        scale_tracking.find_version
    ),
}


def synthetic_manifest(size: int) -> Manifest:
    """Return a manifest of `size` samples: a photograph has three degraded images, and every tenth is held out."""
    columns = _columns(size)
    return Manifest("synthetic", Shards(columns), Rows(columns), {"synthetic": "CC0"})


def _columns(size: int) -> Columns:
    writer = ColumnsWriter()
    count = -(-size // PER_SHARD)
    writer.add_shards(
        Shard(f"shards/{number:064x}.tar", SHARD_BYTES, f"{number:064x}") for number in range(count)
    )
    labels = ("rain", "haze", "blur", "noise")
    kinds = [(split, label) for split in ("train", "test") for label in labels]
    first = 0
    for start in range(0, size, BLOCK):
        number = np.arange(start, min(size, start + BLOCK))
        ids = [b"scenes/%08d-%d" % (n // 4, n % 4) for n in number.tolist()]
        rows = np.zeros(len(number), ROW)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        rows["id"], rows["id_bytes"] = writer.add_text(b"".join(ids), lengths)
        rows["kind"] = number % 4 + 4 * (number // 4 % 10 == 0)
        # In the order of their first use: rain, clean, haze, blur; the row of noise shows the clean image.
        place = np.array([0, 2, 3, NO_IMAGE])[number % 4]
        base = first + (number - start) // 4 * 4
        rows["clean"] = base + 1
        rows["degraded"] = np.where(place == NO_IMAGE, NO_IMAGE, base + place)
        images = np.zeros(-(-len(number) // 4) * 4, IMAGE)
        images["shard"] = (start + np.arange(len(images))) // PER_SHARD
        images["shard"] = np.minimum(images["shard"], count - 1)
        images["offset"] = (start + np.arange(len(images))) % PER_SHARD * 200_000 + 512
        draw = np.random.default_rng(start)  # sizes and checksums are hardly compressed
        images["size"] = draw.integers(100_000, 199_000, len(images))
        images["crc32"] = draw.integers(0, 1 << 32, len(images))
        images["height"], images["width"] = 256, 256
        writer.add_images(images, ["tiles-qoi"])
        writer.add_row_block(rows, kinds, ["synthetic"])
        first += len(images)
    return writer.columns()


def in_new_process(work: Callable[..., T], *arguments: object) -> T:
    """Return what `work` returns in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *arguments).result()


def _publish(uri: str, size: int) -> tuple[float, float]:
    manifest, store = synthetic_manifest(size), open_store(uri)
    store.ensure_bucket()
    return measured(lambda: publish(store, manifest))


def _open(uri: str, cache: Path) -> tuple[float, float]:
    return measured(lambda: _use(uri, cache))


def _use(uri: str, cache: Path) -> object:
    """Open a dataset and look at some rows, as the reader of a batch does."""
    dataset = Dataset([uri], ShardCache(cache, 1 << 40))
    rows = dataset.rows("train", "rain")
    return dataset, [rows[index] for index in range(0, len(rows), max(1, len(rows) // 100))]


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return CPU seconds, and the private memory in MB that the process has gained while it keeps the result."""
    before, start = _private_bytes(), time.process_time()
    kept = work()
    seconds = time.process_time() - start
    gained = _private_bytes() - before
    del kept
    return seconds, max(0, gained) / 1e6


def _private_bytes() -> int:
    """Return the memory that only this process has. Pages of files that it maps are shared, also when it is alone."""
    (line,) = (
        line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Private_Dirty" in line
    )
    return int(line.split()[1]) << 10
