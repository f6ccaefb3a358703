"""Operations of `mirage bench scale` on packed and raw data: audit, ledger, packing, finding shards."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import time
import tracemalloc
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from orchestrator.data.datasets import PackCallbacks, pack_dataset
from shards import tiles
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.ledger import read_ledger
from shards.manifest import Manifest, ManifestRow, Member, Shard, publish
from shards.scan import scan_source
from shards.similar import FINGERPRINT, similar_images
from shards.sources.pairs import PairsSource
from shards.store import LocalStore

BATCH = 32
"""Samples of a step in the ledger."""
SAMPLES_OF_A_PAIR = 100
"""Size for each pair of files that is packed: packing costs more than the other operations."""
SAMPLES_OF_A_SHARD = 100
"""Size for each shard among which one is looked for."""
_READS = 3000
_IGNORE = PackCallbacks(*[lambda *_: None] * 3)


def compare_photographs(size: int, folder: Path, alike: bool = False) -> Mapping[str, float]:
    """Find what is alike among the fingerprints of `size` photographs: all different, or all of one scene."""
    rng = np.random.default_rng(0)
    prints = np.zeros(size, FINGERPRINT)
    prints["exact"] = rng.integers(0, 256, (size, 32), np.uint8).view("V32")[:, 0]
    if alike:
        scene, hashes = rng.integers(0, 256, 256), np.full(size, rng.integers(1 << 63), np.uint64)
        prints["thumbnail"] = np.clip(scene + rng.integers(-6, 7, (size, 256)), 0, 255)
        for _ in range(5):
            hashes ^= np.uint64(1) << rng.integers(1, 64, size).astype(np.uint64)
        prints["hash"] = hashes
    else:
        prints["hash"] = rng.integers(0, 1 << 63, size, np.uint64) << np.uint64(1)
        prints["thumbnail"] = rng.integers(0, 256, (size, 256), np.uint8)
    return _spent(lambda: similar_images(prints, rng.random(size) < 0.1))


def check_ledger(size: int, folder: Path) -> Mapping[str, float]:
    """Check the ledger of a run of two workers that consumed `size` samples."""
    store, steps = LocalStore(folder), size // BATCH
    for first in range(0, steps, 500):
        for rank in (0, 1):
            lines = (_ledger_line(step, rank) for step in range(first, min(steps, first + 500)))
            store.write(f"ledger/0000/{first:09d}-worker-{rank}-of-2.jsonl", "".join(lines).encode())
    return _spent(lambda: read_ledger(store, steps * BATCH))


def _ledger_line(step: int, rank: int) -> str:
    half = BATCH // 2
    first = step * BATCH + rank * half
    samples = [[n, "rain", f"photograph-{n % 70_000:06d}"] for n in range(first, first + half)]
    return json.dumps({"step": step, "samples": samples, "skipped": []}, separators=(",", ":")) + "\n"


def pack_again(size: int, folder: Path) -> Mapping[str, float]:
    """Pack pairs of small PNG files, one pair for each SAMPLES_OF_A_PAIR of `size`, and pack what is there already."""
    os.environ["MIRAGE_HOME"], os.environ["MIRAGE_CACHE"] = str(folder / "home"), str(folder / "cache")
    pairs, rng = max(1, size // SAMPLES_OF_A_PAIR), np.random.default_rng(0)
    grain = Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).resize((160, 160))
    for kind in ("degraded", "clean"):
        (folder / "raw" / kind).mkdir(parents=True)
    for number in range(pairs):
        pixels = np.roll(np.asarray(grain), (number % 160, number // 160), (0, 1))
        for kind, image in (("degraded", pixels // 2), ("clean", pixels)):
            Image.fromarray(image).save(folder / "raw" / kind / f"{number}.png", compress_level=1)
    time.sleep(2.1)  # a file that changed less than two seconds ago is read again
    spec = {
        "source": "pairs",
        "root": str(folder / "raw"),
        "degraded": "degraded/{key}.png",
        "clean": "clean/{key}.png",
        "degradation": "rain",
        "shard_mib": 8,
    }
    out = str(folder / "packed")
    first = _spent(lambda: pack_dataset(spec, out, _IGNORE, 1))["CPU s"]
    again = _spent(lambda: pack_dataset(spec, out, _IGNORE, 1))["CPU s"]
    return {"first pass [CPU s]": first, "what is there [CPU s]": again}


def scan_pairs(size: int, folder: Path) -> Mapping[str, float]:
    """Find, scan and hash pairs of files, one pair for each SAMPLES_OF_A_PAIR of `size`; return the most memory."""
    pairs, image = max(1, size // SAMPLES_OF_A_PAIR), folder / "image.png"
    Image.new("RGB", (8, 8)).save(image)
    for kind in ("degraded", "clean"):
        (folder / "raw" / kind).mkdir(parents=True)
        for number in range(pairs):
            (folder / "raw" / kind / f"{number:08d}.png").hardlink_to(image)
    tracemalloc.start()
    source = PairsSource(folder / "raw", "degraded/{key}.png", "clean/{key}.png", "rain")
    held = scan_source(source, "fast"), source.listings
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del held
    return {"most memory [kB a pair]": most / 1000 / pairs}


def read_shards(size: int, folder: Path) -> Mapping[str, float]:
    """Read random samples again from shards of one tiny image, one shard for each SAMPLES_OF_A_SHARD of `size`."""
    store, _ = small_shards(folder / "data", max(1, size // SAMPLES_OF_A_SHARD))
    dataset = Dataset([store.uri], ShardCache(folder / "cache", 1 << 30))
    found, draw = dataset.rows("train", "noise15"), random.Random(0)
    chosen = [found[draw.randrange(len(found))] for _ in range(_READS)]
    for row in chosen:  # what the first use of a shard costs is spent once for each shard
        dataset.read(row)
    start = time.process_time()
    for row in chosen:
        dataset.read(row)
    return {"a sample [CPU ms]": 1000 * (time.process_time() - start) / _READS}


def small_shards(folder: Path, count: int) -> tuple[LocalStore, Manifest]:
    """Publish a dataset of `count` shards with one tiny image each."""
    store = LocalStore(folder)
    store.ensure_bucket()
    (folder / "shards").mkdir()
    image = tiles.encode(np.zeros((16, 16, 3), np.uint8))
    shards, rows = [], []
    for number in range(count):
        data = image + number.to_bytes(8, "big")
        shard = Shard(f"shards/{number}.tar", len(data), hashlib.sha256(data).hexdigest())
        store.path(shard.key).write_bytes(data)
        member = Member(number, 0, len(image), zlib.crc32(image), "tiles-qoi", 16, 16)
        shards.append(shard)
        rows.append(ManifestRow(f"{number}", "train", "noise", None, member, "s"))
    manifest = Manifest("small", tuple(shards), tuple(rows), {"s": "none"})
    publish(store, manifest)
    return store, manifest


def _spent(work: Callable[[], object]) -> dict[str, float]:
    """Return the CPU seconds, children included, and the memory that this process gained at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins at what the process holds now
    before, start = _memory("VmRSS"), _cpu_seconds()
    work()
    return {"CPU s": _cpu_seconds() - start, "peak [MB]": (_memory("VmHWM") - before) / 1e6}


def _cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def _memory(name: str) -> int:
    """Return a line of this process's status in bytes: VmRSS is the memory that it holds, VmHWM the most it held."""
    (line,) = (each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) << 10
