"""`mirage bench loader`: samples per second of one core, beside the release's own dataset class, on the same images.

Both sides make training samples from the same files: the release by `AnyIRTrainDataset.__getitem__` and torch's
collation, ours from packed shards as readers deliver them (uint8) and with conversion to float and noise on the CPU
besides, which a GPU does in training. Before anything is timed, crops of both are compared bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from orchestrator.bench import external_repos, timing
from orchestrator.bench.environment import Setting
from orchestrator.bench.errors import BenchError
from orchestrator.bench.networks import RELEASE
from orchestrator.bench.raw_datasets import SETS, RawSet, RawSource, lay_out, photographs
from orchestrator.bench.s3 import s3_server
from shards.augment import centre_window, draw_crop, draw_orientation, keyed_rng
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.mixture import Mixture, weighted_mixture
from shards.pack import pack
from shards.sample import SIGMA
from shards.store import Store, open_store
from shards.stream import TrainStream

Say = Callable[[str], object]

CROP = 128
BATCH = 32
COMPARED = 64
"""Samples of each dataset that are compared bit for bit."""

_3DEG = {"noise15": 15_432, "noise25": 15_432, "noise50": 15_432, "rain": 24_000, "haze": 72_135}
MIXTURES: dict[str, Mapping[str, int]] = {
    "3-degradation mixture": _3DEG,
    "5-degradation mixture": {**_3DEG, "blur": 10_515, "lowlight": 9_700},
}
"""Samples of each degradation in an epoch of the release."""

_CODES = {"noise15": 0, "noise25": 1, "noise50": 2, "rain": 3, "haze": 4, "blur": 5, "lowlight": 6}
_LISTS = {"noise": "noisy/denoise.txt", "rain": "rainy/rainTrain.txt", "haze": "hazy/hazy_outside.txt"}


@dataclass(frozen=True)
class Theirs:
    """The release's dataset over some raw sets, and where its modules draw from."""

    dataset: Any
    globals: tuple[dict[str, Any], ...]
    """Of the modules whose `random` decides windows and orientations."""
    indices: Mapping[int, list[int]]
    """Their code of a degradation -> places in the dataset"""


def run(options: argparse.Namespace, setting: Setting, say: Say) -> dict[str, Any]:
    """Measure, print one table, return the figures."""
    images = photographs(options.photos)
    with tempfile.TemporaryDirectory(prefix="mirage-bench-", dir=options.work) as folder:
        root = Path(folder)
        for raw in SETS:
            lay_out(root / raw.name, raw, images, options.images, options.seed)
        with s3_server(root / "s3") if options.s3 else _nowhere() as remote:
            rows = [_one(root, raw, remote, options, say) for raw in SETS]
            rows += [_mixture(root, name, remote, options, say) for name in MIXTURES]
    _say_table(rows, options, say)
    return {"photographs": len(images), "images_per_set": options.images, "rows": rows}


# --- subjects ------------------------------------------------------------------------------------------------


def _one(
    root: Path, raw: RawSet, remote: str | None, options: argparse.Namespace, say: Say
) -> dict[str, Any]:
    degradation = "noise25" if raw.degradation == "noise" else raw.degradation
    size = f"{raw.width} x {raw.height} {raw.suffix.upper()}"
    return _measured(raw.name, size, root / raw.name, (raw,), {degradation: 1}, remote, options, say)


def _mixture(
    root: Path, name: str, remote: str | None, options: argparse.Namespace, say: Say
) -> dict[str, Any]:
    """All datasets in one folder. BSD400 and WED together are the clean images, in equal parts here."""
    shares = MIXTURES[name]
    sets = tuple(raw for raw in SETS if raw.degradation in shares or raw.degradation == "noise")
    everything = root / name.replace(" ", "-")
    for raw in sets:
        for path in (root / raw.name).rglob("*"):
            if path.is_file() and "lists" not in path.parts:
                target = everything / path.relative_to(root / raw.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
    return _measured(name, "", everything, sets, shares, remote, options, say)


def _measured(
    name: str,
    size: str,
    root: Path,
    sets: tuple[RawSet, ...],
    shares: Mapping[str, int],
    remote: str | None,
    options: argparse.Namespace,
    say: Say,
) -> dict[str, Any]:
    source = RawSource(root, sets, options.images)
    local = root.parent / f"packed-{root.name}"
    stores: dict[str, Store] = {"local": open_store(str(local))}
    if remote is not None:
        stores["s3"] = open_store(f"{remote}/{root.name.lower()}")
    for store in stores.values():
        pack(source, store, name="bench", encoding=options.encoding, keep_jpeg=options.jpeg == "keep")
    theirs = _theirs(options.release, root, sets, shares)
    ours = _stream(stores["local"], root, shares, options.seed)
    same = _compare(theirs, ours, root)
    say(f"{name}: {same} crops bit-equal")

    draw = np.random.default_rng(options.seed)
    codes, chances = [_CODES[d] for d in shares], np.array(list(shares.values()), float)
    batches = ours.steps()

    def their_batch() -> object:
        chosen = draw.choice(codes, size=BATCH, p=chances / chances.sum())
        return default_collate(
            [theirs.dataset[int(draw.choice(theirs.indices[int(code)]))] for code in chosen]
        )

    def repeated(batch: Callable[[], object], times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                batch()

        return run

    few, many = options.batches, options.batches * 8
    runs = {
        "release": (repeated(their_batch, few), few),
        "ours": (repeated(lambda: next(batches), many), many),
        "ours_float": (repeated(lambda: next(batches).to_float("cpu", options.seed), few), few),
        **{
            f"ours_{kind}_cold": (_epoch(store, root, shares, options, kind), 0)
            for kind, store in stores.items()
        },
    }
    seconds = timing.interleaved({n: r for n, (r, _) in runs.items()}, options.repeats, timing.cpu_seconds)
    epoch = ours.order.steps_per_epoch * ours.order.global_batch_size
    samples = {n: times * BATCH or epoch for n, (_, times) in runs.items()}
    per_sample = {n: [s / samples[n] for s in found] for n, found in seconds.items()}
    row: dict[str, Any] = {"name": name, "images": size, "bit_equal": same, "epoch_samples": epoch}
    row["release_per_second"] = 1 / statistics.median(per_sample["release"])
    for subject in list(runs)[1:]:
        ratio = timing.ratio(per_sample["release"], per_sample[subject])
        row[f"{subject}_per_second"] = 1 / statistics.median(per_sample[subject])
        row[f"{subject}_ratio"] = [ratio.median, ratio.low, ratio.high]
    row["bytes_ratio"] = _bytes(local / "shards") / sum(_bytes(root / top) for top in _tops(sets))
    return row


def _stream(
    store: Store, root: Path, shares: Mapping[str, int], seed: int, cache: str = "cache"
) -> TrainStream:
    """Ours, reading from a store; an epoch has as many samples as the data."""
    dataset = Dataset([store.uri], ShardCache(root.parent / cache, 1 << 40))
    counts = {d: len(dataset.rows("train", d)) for d in shares}
    mixture: Mixture = weighted_mixture(counts, shares, max(BATCH, sum(counts.values())))
    return TrainStream(dataset, mixture, seed=seed, crop_pixels=CROP, global_batch_size=BATCH)


def _epoch(
    store: Store, root: Path, shares: Mapping[str, int], options: argparse.Namespace, kind: str
) -> Callable[[], None]:
    """Read one epoch with an empty cache: fetching and verifying are part of it, opening the dataset is not."""
    opened = iter(
        [
            _stream(store, root, shares, options.seed, f"cold-{kind}-{root.name}-{number}")
            for number in range(options.repeats + 1)
        ]
    )

    def run() -> None:
        stream = next(opened)
        for _ in stream.steps(0, 1, 0, stream.order.positions_per_epoch):
            pass

    return run


def _theirs(release: Path, root: Path, sets: tuple[RawSet, ...], shares: Mapping[str, int]) -> Theirs:
    """Their class over our files, told by lists of the form that it reads."""
    lists = root / "lists"
    for raw in sets:
        if raw.degradation in _LISTS:
            file = lists / _LISTS[raw.degradation]
            file.parent.mkdir(parents=True, exist_ok=True)
            below = (raw.degraded or raw.clean).partition("/")[0]
            names = sorted(
                path.relative_to(root / below).as_posix()
                for path in (root / below).rglob(f"*.{raw.suffix}")
                if raw.degradation == "noise" or path.parent.name in ("rainy", "synthetic")
            )
            with file.open("a") as opened:
                opened.writelines(f"{name}\n" for name in names)
    tasks = [raw.task for raw in sets]
    if any(d in SIGMA for d in shares):
        tasks += ["denoise_15", "denoise_25", "denoise_50"]
    arguments = argparse.Namespace(
        patch_size=CROP,
        data_file_dir=f"{lists}/",
        de_type=list(dict.fromkeys(tasks)),
        **{f"{key}_dir": f"{root / folder}/" for key, folder in _FOLDERS.items()},
    )
    module = external_repos.load(release, "utils.dataset_utils", repository=RELEASE)
    with redirect_stdout(StringIO()):
        dataset = module.AnyIRTrainDataset(arguments)
    indices: dict[int, list[int]] = {}
    for index, sample in enumerate(dataset.sample_ids):
        indices.setdefault(sample["de_type"], []).append(index)
    return Theirs(dataset, (vars(module), module.random_augmentation.__globals__), indices)


_FOLDERS = {
    "denoise": "Denoise",
    "derain": "Derain",
    "dehaze": "Dehaze",
    "gopro": "Deblur",
    "enhance": "Enhance",
}


# --- proof ---------------------------------------------------------------------------------------------------


class _Told:
    """Stands in for the `random` module of the release and answers what our stream has drawn."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers

    def randint(self, low: int, high: int) -> int:
        """The next answer, which must be possible."""
        answer = self.answers.pop(0)
        assert low <= answer <= high, "ours draws what the release cannot"
        return answer


def _compare(theirs: Theirs, ours: TrainStream, root: Path) -> int:
    """Compare samples bit for bit, each by the other's own code; return how many. BenchError when one differs."""
    places = {(int(s["de_type"]), _path(s, root)): index for index, s in enumerate(theirs.dataset.sample_ids)}
    compared = 0
    for batch in ours.steps(0, 1, 0, COMPARED):
        for index, position in enumerate(batch.positions.tolist()):
            degradation, id_ = batch.degradations[index], batch.ids[index]
            row = next(r for r in ours.dataset.rows("train", degradation) if r.id == id_)
            rng = keyed_rng(ours.seed, position)
            within = centre_window(row.clean.height, row.clean.width)
            window, mode = draw_crop(rng, within, CROP), draw_orientation(rng, "release")
            offset = (window.top - within.top, window.left - within.left)
            place = places[_CODES[degradation], id_]
            degraded, clean = _told(theirs, place, offset, mode, noisy=degradation in SIGMA)
            pairs = [(batch.clean[index], clean)]
            if degradation not in SIGMA:  # noise is a draw of its own on either side
                pairs.append((batch.degraded[index], degraded))
            for mine, other in pairs:
                if not torch.equal(mine, (other * 255).round().to(torch.uint8)):
                    raise BenchError(f"{id_}: our crop differs from the release's. Nothing was measured.")
            compared += 1
    return compared


def _told(
    theirs: Theirs, place: int, offset: tuple[int, int], mode: int, *, noisy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Their sample with our window and orientation."""
    answers = _Told([mode] if noisy else [*offset, mode])
    top, left = offset
    cropping = theirs.dataset.crop_transform
    for names in theirs.globals:
        names["random"] = answers
    theirs.dataset.crop_transform = lambda image: image[top : top + CROP, left : left + CROP]
    try:
        _, degraded, clean = theirs.dataset[place]
    finally:
        for names in theirs.globals:
            names["random"] = random
        theirs.dataset.crop_transform = cropping
    return degraded, clean


def _path(sample: Mapping[str, Any], root: Path) -> str:
    """Our id of one of their samples: the path of its degraded file, or of its clean one."""
    name = str(sample["clean_id"])
    folder = {5: "Deblur/blur/", 6: "Enhance/low/"}.get(int(sample["de_type"]), "")
    return folder + name if folder else Path(name).relative_to(root).as_posix()


# --- around --------------------------------------------------------------------------------------------------


@contextmanager
def _nowhere() -> Iterator[None]:
    yield None


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _tops(sets: tuple[RawSet, ...]) -> set[str]:
    return {(raw.degraded or raw.clean).partition("/")[0] for raw in sets}


def _say_table(rows: list[dict[str, Any]], options: argparse.Namespace, say: Say) -> None:
    kinds = ["ours", "ours_float", "ours_local_cold", *(["ours_s3_cold"] if options.s3 else [])]
    say(
        f"\nsamples per second of one core (CPU time), times the release; in parentheses the quartiles of "
        f"{options.repeats} pairs"
    )
    say(
        f"{'':<22}{'release':>8}"
        + "".join(f"{kind.replace('_', ' '):>28}" for kind in kinds)
        + f"{'bytes':>7}"
    )
    for row in rows:
        cells = []
        for kind in kinds:
            median, low, high = row[f"{kind}_ratio"]
            cells.append(f"{row[f'{kind}_per_second']:.0f}/s {median:.1f}x ({low:.1f}-{high:.1f})")
        say(
            f"{row['name']:<22}{row['release_per_second']:>8.1f}"
            + "".join(f"{cell:>28}" for cell in cells)
            + f"{row['bytes_ratio']:>7.2f}"
        )
