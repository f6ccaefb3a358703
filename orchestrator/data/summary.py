"""Descriptions of packed datasets for people: counts, sizes, terms and contact sheets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mirage.metrics import psnr
from orchestrator.imaging.contact_sheet import image_grid
from orchestrator.imaging.convert import to_float
from shards.audit import DuplicateGroup
from shards.columns import Rows
from shards.dataset import Dataset
from shards.evaluation import noisy_example
from shards.manifest import Manifest, ManifestRow
from shards.sample import CDD11, NOISE, SIGMA
from shards.sources.families.cdd11 import PUBLISHED_PSNR

_PER_ROW = 3
"""Number of samples of each degradation on a contact sheet."""
_ID_CHARACTERS = 32
_IDS = 8
"""Number of held-out ids in a description."""


def describe(uri: str, manifest: Manifest) -> str:
    """Return a description of a manifest as text."""
    facts = manifest.provenance
    stored = sum(shard.size for shard in manifest.shards)
    lines = [
        f"{manifest.name}   {uri}",
        f"manifest   {manifest.digest}, format {manifest.version}",
        f"shards     {len(manifest.shards):,}, {_bytes(stored)}",
        "",
        f"  {'split':<6} {'degradation':<14} {'samples':>9} {'clean':>8}  {'sizes':<24} {'input PSNR':>15}",
    ]
    for split, counts in manifest.counts().items():
        for degradation, count in counts.items():
            rows = manifest.columns.select(split, degradation)
            psnr = facts.get("input_psnr", {}).get(split, {}).get(degradation)
            noise = "added when read" if degradation == NOISE else ""
            shown = f"{psnr:.2f} dB" if psnr is not None else noise
            cleans = len(np.unique(np.concatenate([block["clean"] for block in rows.blocks()])))
            lines.append(
                f"  {split:<6} {degradation:<14} {count:>9,} {cleans:>8,}  {_sizes(rows):<24} {shown:>15}"
            )
    if facts.get("source") == "cdd11" and "test" in manifest.counts():
        known = ", ".join(f"{CDD11[folder]} {psnr:.2f}" for folder, psnr in PUBLISHED_PSNR.items())
        lines.append(f"  published input PSNR of the test split, in dB: {known}")
    if any(NOISE in counts for counts in manifest.counts().values()):
        levels = ", ".join(
            f"{20 * math.log10(255 / sigma):.1f} dB at {name}" for name, sigma in SIGMA.items()
        )
        lines.append(f"  noise is added when a sample is read, at any level: input PSNR about {levels}")
    lines += ["", f"stored as  {_encodings(manifest)}"]
    lines += [f"held out   {_held_out(manifest)}"] if "test" in manifest.counts() else []
    lines += [f"from       {facts['from']}"] if "from" in facts else []
    lines += [f"laid out   {part}: {layout}" for part, layout in facts.get("layouts", {}).items()]
    licences = Counter(manifest.licences.values())
    lines += [f"licence    {text} ({_sources(manifest, text)})" for text in licences]
    lines += [f"terms      {facts.get('terms', 'not stated')}"]
    for missing in facts.get("missing", []):
        examples = "; ".join(missing["examples"][:3])
        lines.append(f"left out   {missing['what']}{' ' + examples if examples else ''}")
    return "\n".join(lines)


def sample_ids(manifest: Manifest) -> Iterator[str]:
    """Yield a line for each sample: split, degradation and id."""
    for split, counts in manifest.counts().items():
        for degradation in counts:
            for id_ in manifest.columns.select(split, degradation).ids():
                yield f"{split:<6} {degradation:<14} {id_}"


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Return a contact sheet with a few samples of every split and degradation, degraded beside clean.

    Noise, which is added when a sample is read, has another level in each example.
    """
    (manifest,) = dataset.manifests
    rows, labels, captions = [], [], []
    for split, counts in manifest.counts().items():
        for degradation in counts:
            held = manifest.columns.select(split, degradation)
            chosen = [held[i * len(held) // _PER_ROW] for i in range(min(_PER_ROW, len(held)))]
            pairs = [_example(dataset, row, number) for number, row in enumerate(chosen)]
            blank = np.full_like(pairs[0].clean, 255)
            missing = 2 * (_PER_ROW - len(pairs))
            rows.append(
                [image for pair in pairs for image in (pair.degraded, pair.clean)] + [blank] * missing
            )
            captions.append([text for pair in pairs for text in (pair.caption, pair.id)] + [""] * missing)
            labels.append(f"{split} {degradation}")
    return image_grid(rows, ["degraded", "clean"] * _PER_ROW, labels, captions)


def duplicate_sheet(dataset: Dataset, duplicates: Sequence[DuplicateGroup]) -> Image.Image:
    """Return a contact sheet of the two most telling images of each group of equal photographs."""
    rows, labels, captions = [], [], []
    for number, group in enumerate(duplicates, 1):
        pair = group.first, group.second
        rows.append([dataset.clean_for_display(dataset.row_of(p.uri, p.row)) for p in pair])
        labels.append(f"{number}")
        captions.append([f"{p.row.id} ({p.split})"[:40] for p in pair])
    return image_grid(rows, ["one", "other"], labels, captions)


class _Example(NamedTuple):
    degraded: NDArray[np.uint8]
    clean: NDArray[np.uint8]
    caption: str
    id: str


def _example(dataset: Dataset, row: ManifestRow, number: int) -> _Example:
    """Return a pair of images; where noise is added when the sample is read, with a level that `number` chooses."""
    degraded, clean = dataset.read_for_display(row)
    level = ""
    if degraded is None:
        level = list(SIGMA)[number % len(SIGMA)]
        degraded = noisy_example(clean, row.id, SIGMA[level], seed=0)
    cpu = torch.device("cpu")
    decibels = f"{float(psnr(to_float(degraded, cpu), to_float(clean, cpu))):.1f} dB"
    return _Example(degraded, clean, f"{level}, {decibels}" if level else decibels, row.id[-_ID_CHARACTERS:])


def _held_out(manifest: Manifest) -> str:
    ids = sorted(
        {id_ for kind in manifest.counts()["test"] for id_ in manifest.columns.select("test", kind).ids()}
    )
    more = len(ids) - _IDS
    return ", ".join(ids[:_IDS]) + (f" and {more:,} more: --ids" if more > 0 else "")


def _sizes(rows: Rows) -> str:
    found = np.concatenate([np.unique(images[["width", "height"]]) for images in rows.clean_images()])
    sizes = np.unique(found).tolist()
    if len(sizes) <= 2:
        return ", ".join(f"{width} x {height}" for width, height in sizes)
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    return f"{min(widths)}..{max(widths)} x {min(heights)}..{max(heights)}"


def _encodings(manifest: Manifest) -> str:
    columns = manifest.columns
    counts = np.bincount(columns.images["encoding"], minlength=len(columns.encodings)).tolist()
    counted = sorted(zip(columns.encodings, counts, strict=True))
    return ", ".join(f"{encoding} ({count:,} images)" for encoding, count in counted)


def _sources(manifest: Manifest, licence: str) -> str:
    names = sorted(name for name, text in manifest.licences.items() if text == licence)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
