"""Descriptions of packed datasets for people: counts, sizes, terms and contact sheets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.imaging.contact_sheet import image_grid
from shards.audit import DuplicateGroup
from shards.dataset import Dataset
from shards.manifest import Manifest, ManifestRow, Member
from shards.sample import CDD11
from shards.sources.families.cdd11 import PUBLISHED_PSNR

_PER_ROW = 3
"""Number of samples of each degradation on a contact sheet."""


def describe(uri: str, manifest: Manifest) -> str:
    """Return a description of a manifest as text."""
    facts = manifest.provenance
    stored = sum(shard.size for shard in manifest.shards)
    lines = [
        f"{manifest.name}   {uri}",
        f"manifest   {manifest.digest}, format {manifest.version}",
        f"shards     {len(manifest.shards):,}, {_bytes(stored)}",
        "",
        f"  {'split':<6} {'degradation':<14} {'samples':>9} {'clean':>8}  {'sizes':<24} {'input PSNR':>10}",
    ]
    for split, counts in manifest.counts().items():
        for degradation, count in counts.items():
            rows = [r for r in manifest.rows if (r.split, r.degradation) == (split, degradation)]
            psnr = facts.get("input_psnr", {}).get(split, {}).get(degradation)
            shown = f"{psnr:.2f} dB" if psnr is not None else ""
            cleans = len({row.clean for row in rows})
            lines.append(
                f"  {split:<6} {degradation:<14} {count:>9,} {cleans:>8,}  {_sizes(rows):<24} {shown:>10}"
            )
    if facts.get("source") == "cdd11" and "test" in manifest.counts():
        known = ", ".join(f"{CDD11[folder]} {psnr:.2f}" for folder, psnr in PUBLISHED_PSNR.items())
        lines.append(f"  published input PSNR of the test split, in dB: {known}")
    lines += ["", f"stored as  {_encodings(manifest)}"]
    lines += [f"from       {facts['from']}"] if "from" in facts else []
    lines += [f"laid out   {part}: {layout}" for part, layout in facts.get("layouts", {}).items()]
    licences = Counter(manifest.licences.values())
    lines += [f"licence    {text} ({_sources(manifest, text)})" for text in licences]
    lines += [f"terms      {facts.get('terms', 'not stated')}"]
    for missing in facts.get("missing", []):
        examples = "; ".join(missing["examples"][:3])
        lines.append(f"left out   {missing['what']}{' ' + examples if examples else ''}")
    return "\n".join(lines)


def contact_sheet(dataset: Dataset) -> Image.Image:
    """Return a contact sheet with a few samples of every split and degradation, degraded beside clean."""
    (manifest,) = dataset.manifests
    rows, labels = [], []
    for split, counts in manifest.counts().items():
        for degradation in counts:
            held = [row for row in manifest.rows if (row.split, row.degradation) == (split, degradation)]
            chosen = [held[i * len(held) // _PER_ROW] for i in range(min(_PER_ROW, len(held)))]
            images = [image for row in chosen for image in _side_by_side(dataset, row)]
            blank = np.full_like(images[0], 255)
            rows.append([*images, *[blank] * (2 * _PER_ROW - len(images))])
            labels.append(f"{split} {degradation}")
    return image_grid(rows, ["degraded", "clean"] * _PER_ROW, labels)


def duplicate_sheet(dataset: Dataset, duplicates: Sequence[DuplicateGroup]) -> Image.Image:
    """Return a contact sheet of the two most telling images of each group of equal photographs."""
    rows, labels, captions = [], [], []
    for number, group in enumerate(duplicates, 1):
        pair = group.first, group.second
        rows.append([dataset.clean_for_display(dataset.row_of(p.uri, p.row)) for p in pair])
        labels.append(f"{number}")
        captions.append([f"{p.row.id} ({p.split})"[:40] for p in pair])
    return image_grid(rows, ["one", "other"], labels, captions)


def _side_by_side(dataset: Dataset, row: ManifestRow) -> list[NDArray[np.uint8]]:
    degraded, clean = dataset.read_for_display(row)
    return [np.full_like(clean, 255) if degraded is None else degraded, clean]


def _sizes(rows: Sequence[ManifestRow]) -> str:
    sizes = Counter((row.clean.width, row.clean.height) for row in rows)
    if len(sizes) <= 2:
        return ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
    widths, heights = [w for w, _ in sizes], [h for _, h in sizes]
    return f"{min(widths)}..{max(widths)} x {min(heights)}..{max(heights)}"


def _encodings(manifest: Manifest) -> str:
    members: set[Member] = {m for row in manifest.rows for m in (row.clean, row.degraded) if m is not None}
    counted = Counter(member.encoding for member in members)
    return ", ".join(f"{encoding} ({count:,} images)" for encoding, count in sorted(counted.items()))


def _sources(manifest: Manifest, licence: str) -> str:
    names = sorted(name for name, text in manifest.licences.items() if text == licence)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
