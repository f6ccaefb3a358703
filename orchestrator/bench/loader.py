"""`mirage bench loader`: training samples per second of one core, ours and the release's, from the same images.

The release makes samples by `AnyIRTrainDataset.__getitem__` and torch's collation. Ours come from packed shards as
readers deliver them (uint8), and in a second measurement with conversion to float and noise on the CPU, which a GPU
does in training. Data with cut JPEG files is measured beside data that keeps them whole. Crops of ours and the release
are compared bit for bit before anything is timed. A second table has clean photographs that pipelines degrade as
they are read.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from orchestrator.bench import external_repos, timing
from orchestrator.bench.degradations import PIPELINES
from orchestrator.bench.environment import Echo, Environment
from orchestrator.bench.errors import BenchError
from orchestrator.bench.networks import RELEASE
from orchestrator.bench.raw_datasets import (
    DATASETS,
    PHOTOGRAPHS_AS_JPEG,
    RawDataset,
    RawSource,
    create_files,
    photographs,
)
from orchestrator.bench.s3 import local_bucket
from orchestrator.tables import aligned
from shards.augment import centre_window, draw_crop, draw_orientation, keyed_rng
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.degradations.parse import parse_pipelines
from shards.degradations.pipeline import Pipeline
from shards.mixture import Mixture, weighted_mixture
from shards.pack import pack
from shards.sample import NOISE, SIGMA
from shards.store import Store, open_store
from shards.stream import TrainStream

CROP = 128
BATCH = 32
COMPARED = 64
"""Samples of each dataset compared bit for bit."""

_3DEG = {"noise15": 15_432, "noise25": 15_432, "noise50": 15_432, "rain": 24_000, "haze": 72_135}
MIXTURES: dict[str, Mapping[str, int]] = {
    "3-degradation mixture": _3DEG,
    "5-degradation mixture": {**_3DEG, "blur": 10_515, "lowlight": 9_700},
}
"""Samples of each degradation in an epoch of the release."""

_CODES = {"noise15": 0, "noise25": 1, "noise50": 2, "rain": 3, "haze": 4, "blur": 5, "lowlight": 6}
_LISTS = {"noise": "noisy/denoise.txt", "rain": "rainy/rainTrain.txt", "haze": "hazy/hazy_outside.txt"}


@dataclass(frozen=True)
class ReleaseDataset:
    """The release's dataset class over our raw files."""

    dataset: Any
    globals: tuple[dict[str, Any], ...]
    """Globals of the modules whose `random` draws windows and orientations."""
    indices: Mapping[int, list[int]]
    """The release's code of a degradation → indices in the dataset."""


def run(options: argparse.Namespace, environment: Environment, echo: Echo) -> dict[str, Any]:
    """Measure, print one table, return the results."""
    images = photographs(options.photos)
    with tempfile.TemporaryDirectory(prefix="mirage-bench-", dir=options.work) as folder:
        root = Path(folder)
        for raw in (*DATASETS, *PHOTOGRAPHS_AS_JPEG):
            create_files(root / raw.name, raw, images, options.images, options.seed)
        with local_bucket(root / "s3") if options.s3 else nullcontext() as bucket:
            rows = [_dataset(root, raw, bucket, options, echo) for raw in (*DATASETS, *PHOTOGRAPHS_AS_JPEG)]
            rows += [_mixture(root, name, bucket, options, echo) for name in MIXTURES]
            degraded = [
                _degraded(root, raw, options)
                for raw in (*DATASETS, *PHOTOGRAPHS_AS_JPEG)
                if raw.degradation == NOISE
            ]
    _print_table(rows, options, echo)
    echo("\nuint8 samples per second of one core (CPU time), degraded by a pipeline while they are read")
    head = tuple(degraded[0])
    cells = [tuple(each[key] if key == "name" else f"{each[key]:.0f}" for key in head) for each in degraded]
    echo("\n".join(aligned(("", *head[1:]), cells, "<" + ">" * (len(head) - 1))))
    return {"photographs": len(images), "images_per_set": options.images, "rows": rows, "pipelines": degraded}


def _degraded(root: Path, raw: RawDataset, options: argparse.Namespace) -> dict[str, Any]:
    """Return the samples per second of packed clean photographs: as they are, and degraded by each pipeline."""
    store = open_store(str(root / f"packed-{raw.name}"))
    pipelines = parse_pipelines({f"p{n}": steps for n, steps in enumerate(PIPELINES.values())})
    names = {"no pipeline": "noise25", **dict(zip(PIPELINES, pipelines, strict=True))}
    runs: dict[str, Callable[[], object]] = {}
    for title, degradation in names.items():
        stream = _stream(store, root / raw.name, {degradation: 1}, options.seed, pipelines=pipelines)
        runs[title] = partial(next, stream.steps())
    seconds = timing.interleaved(runs, options.repeats, timing.cpu_seconds)
    return {"name": raw.name, **{title: BATCH / statistics.median(each) for title, each in seconds.items()}}


def _dataset(
    root: Path, raw: RawDataset, bucket: str | None, options: argparse.Namespace, echo: Echo
) -> dict[str, Any]:
    degradation = "noise25" if raw.degradation == "noise" else raw.degradation
    size = f"{raw.width} x {raw.height} {raw.suffix.upper()}"
    return _measure(raw.name, size, root / raw.name, (raw,), {degradation: 1}, bucket, options, echo)


def _mixture(
    root: Path, name: str, bucket: str | None, options: argparse.Namespace, echo: Echo
) -> dict[str, Any]:
    """Measure several datasets in one folder. BSD400 and WED are the clean images, in equal parts."""
    shares = MIXTURES[name]
    sets = tuple(raw for raw in DATASETS if raw.degradation in shares or raw.degradation == "noise")
    everything = root / name.replace(" ", "-")
    for raw in sets:
        for path in (root / raw.name).rglob("*"):
            if path.is_file() and "lists" not in path.parts:
                target = everything / path.relative_to(root / raw.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(path, target)
    return _measure(name, "", everything, sets, shares, bucket, options, echo)


def _measure(
    name: str,
    size: str,
    root: Path,
    sets: tuple[RawDataset, ...],
    shares: Mapping[str, int],
    bucket: str | None,
    options: argparse.Namespace,
    echo: Echo,
) -> dict[str, Any]:
    source = RawSource(root, sets, options.images)
    local = root.parent / f"packed-{root.name}"
    stores: dict[str, Store] = {"local": open_store(str(local))}
    if bucket is not None:
        stores["s3"] = open_store(f"{bucket}/{root.name.lower()}")
    for store in stores.values():
        pack(source, store, name="bench", encoding=options.encoding, jpeg=options.jpeg)
    release = _release_dataset(options.release, root, sets, shares)
    ours = _stream(stores["local"], root, shares, options.seed)
    whole = None
    if options.jpeg == "crop" and any(raw.suffix == "jpg" for raw in sets):
        kept = open_store(f"{local}-kept")
        pack(source, kept, name="bench", encoding=options.encoding, jpeg="keep")
        whole = _stream(kept, root, shares, options.seed).steps()
    same = _compare(release, ours, root)
    echo(f"{name}: {same} crops bit-equal")

    rng = np.random.default_rng(options.seed)
    codes, chances = [_CODES[d] for d in shares], np.array(list(shares.values()), float)
    batches = ours.steps()

    def release_batch() -> object:
        chosen = rng.choice(codes, size=BATCH, p=chances / chances.sum())
        return default_collate(
            [release.dataset[int(rng.choice(release.indices[int(code)]))] for code in chosen]
        )

    def repeated(batch: Callable[[], object], times: int) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                batch()

        return run

    few, many = options.batches, options.batches * 8
    runs = {
        "release": (repeated(release_batch, few), few),
        "ours": (repeated(lambda: next(batches), many), many),
        **({} if whole is None else {"ours_jpeg_kept": (repeated(lambda: next(whole), few), few)}),
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
    for kind in list(runs)[1:]:
        ratio = timing.ratio(per_sample["release"], per_sample[kind])
        row[f"{kind}_per_second"] = 1 / statistics.median(per_sample[kind])
        row[f"{kind}_ratio"] = [ratio.median, ratio.low, ratio.high]
    if whole is not None:
        ratio = timing.ratio(per_sample["ours_jpeg_kept"], per_sample["ours"])
        row["cut_ratio"] = [ratio.median, ratio.low, ratio.high]
    row["bytes_ratio"] = _bytes(local / "shards") / sum(_bytes(root / top) for top in _top_folders(sets))
    return row


def _stream(
    store: Store,
    root: Path,
    shares: Mapping[str, int],
    seed: int,
    cache: str = "cache",
    pipelines: Mapping[str, Pipeline] | None = None,
) -> TrainStream:
    """Return our stream from a store; an epoch has as many samples as the data."""
    dataset = Dataset([store.uri], ShardCache(root.parent / cache, 1 << 40))
    counts = {d: len(dataset.rows("train", NOISE if d in (pipelines or {}) else d)) for d in shares}
    mixture: Mixture = weighted_mixture(counts, shares, max(BATCH, sum(counts.values())))
    return TrainStream(
        dataset, mixture, seed=seed, crop_pixels=CROP, global_batch_size=BATCH, pipelines=pipelines
    )


def _epoch(
    store: Store, root: Path, shares: Mapping[str, int], options: argparse.Namespace, kind: str
) -> Callable[[], None]:
    """Return a function that reads one epoch with an empty cache, without the time to open the dataset."""
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


def _release_dataset(
    release: Path, root: Path, sets: tuple[RawDataset, ...], shares: Mapping[str, int]
) -> ReleaseDataset:
    """Return the release's dataset over our files, and write the lists of files that it reads."""
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
    return ReleaseDataset(dataset, (vars(module), module.random_augmentation.__globals__), indices)


_FOLDERS = {
    "denoise": "Denoise",
    "derain": "Derain",
    "dehaze": "Dehaze",
    "gopro": "Deblur",
    "enhance": "Enhance",
}


class _FixedRandom:
    """Replaces the `random` module of the release and returns what our stream has drawn."""

    def __init__(self, answers: list[int]) -> None:
        self.answers = answers

    def randint(self, low: int, high: int) -> int:
        """Return the next answer, which must be in the range."""
        answer = self.answers.pop(0)
        assert low <= answer <= high, "ours draws from the range of the release"
        return answer


def _compare(release: ReleaseDataset, ours: TrainStream, root: Path) -> int:
    """Compare samples bit for bit, each made by its own code; return how many. Raises BenchError if one differs."""
    places = {
        (int(s["de_type"]), _path(s, root)): index for index, s in enumerate(release.dataset.sample_ids)
    }
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
            degraded, clean = _release_sample(release, place, offset, mode, noisy=degradation in SIGMA)
            pairs = [(batch.clean[index], clean)]
            if degradation not in SIGMA:  # noise is drawn differently
                pairs.append((batch.degraded[index], degraded))
            for mine, other in pairs:
                if not torch.equal(mine, (other * 255).round().to(torch.uint8)):
                    raise BenchError(f"{id_}: our crop differs from the release's. Nothing was measured.")
            compared += 1
    return compared


def _release_sample(
    release: ReleaseDataset, place: int, offset: tuple[int, int], mode: int, *, noisy: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the release's sample with our window and orientation."""
    answers = _FixedRandom([mode] if noisy else [*offset, mode])
    top, left = offset
    cropping = release.dataset.crop_transform
    for names in release.globals:
        names["random"] = answers
    release.dataset.crop_transform = lambda image: image[top : top + CROP, left : left + CROP]
    try:
        _, degraded, clean = release.dataset[place]
    finally:
        for names in release.globals:
            names["random"] = random
        release.dataset.crop_transform = cropping
    return degraded, clean


def _path(sample: Mapping[str, Any], root: Path) -> str:
    """Return our id of a sample of the release: the path of its degraded file, or of its clean one."""
    name = str(sample["clean_id"])
    folder = {5: "Deblur/blur/", 6: "Enhance/low/"}.get(int(sample["de_type"]), "")
    return folder + name if folder else Path(name).relative_to(root).as_posix()


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _top_folders(sets: tuple[RawDataset, ...]) -> set[str]:
    return {(raw.degraded or raw.clean).partition("/")[0] for raw in sets}


def _print_table(rows: list[dict[str, Any]], options: argparse.Namespace, echo: Echo) -> None:
    kinds = [
        "ours",
        "ours_jpeg_kept",
        "ours_float",
        "ours_local_cold",
        *(["ours_s3_cold"] if options.s3 else []),
    ]
    cells = [
        (
            row["name"],
            f"{row['release_per_second']:.1f}",
            *(_cell(row, kind) for kind in kinds),
            "{:.1f}x ({:.1f}-{:.1f})".format(*row["cut_ratio"]) if "cut_ratio" in row else "",
            f"{row['bytes_ratio']:.2f}",
        )
        for row in rows
    ]
    head = ("", "release", *(kind.replace("_", " ") for kind in kinds), "cut / kept", "bytes")
    echo(
        "\nsamples per second of one core (CPU time), times the release; in parentheses the quartiles of "
        f"{options.repeats} pairs"
    )
    echo("\n".join(aligned(head, cells, "<" + ">" * (len(head) - 1))))


def _cell(row: Mapping[str, Any], kind: str) -> str:
    if f"{kind}_ratio" not in row:
        return ""
    median, low, high = row[f"{kind}_ratio"]
    return f"{row[f'{kind}_per_second']:.0f}/s {median:.1f}x ({low:.1f}-{high:.1f})"
