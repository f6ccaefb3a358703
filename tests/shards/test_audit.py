"""The audit finds the same photograph wherever it comes again, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from shards import audit as audit_module
from shards.audit import audit
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.pack import pack
from shards.photographs import PHOTOGRAPHS, read_photograph
from shards.processes import ProcessPool
from shards.sources import FolderSource, PairsSource, PublishedOptions, PublishedSource
from shards.sources.leaks import OTS_SCENES_OF_SOTS
from shards.store import LocalStore
from tests.shards.raw import harmed, save


def scenes(count: int) -> list[np.ndarray]:
    """Cuts that show different things: of every photograph in turn, those with something on them."""
    found: list[np.ndarray] = []
    whole = [
        read_photograph(p)
        for p in PHOTOGRAPHS
        if p.name not in ("motorcycle_right", "moon", "gravel", "grass")
    ]
    step = 0
    while len(found) < count:
        for image in whole:
            top, left = 64 * (step // 4), 72 * (step % 4)
            piece = image[top : top + 64, left : left + 72]
            if piece.shape == (64, 72, 3) and piece.std() > 25:
                found.append(piece)
        step += 1
    return found[:count]


def test_the_76_leaked_images_of_sots_are_found(tmp_path: Path):
    """75 scenes of the official list are test scenes; 0330 has two hazy test images, so 76 of them are leaked."""
    own, foreign = ("1100", "1101", "1102"), ("0001", "0002", "0003", "0005")
    names = [*OTS_SCENES_OF_SOTS, *own, *foreign]
    pictures = dict(zip(names, scenes(len(names)), strict=True))
    raw = tmp_path / "raw"
    for name in (*OTS_SCENES_OF_SOTS, *own):
        save(raw / "ots" / "original" / f"{name}.jpg", pictures[name])  # JPEG here, PNG there
        for haze in ("0.8_0.04", "1_0.2"):
            save(raw / "ots" / "synthetic" / "part1" / f"{name}_{haze}.jpg", harmed(pictures[name]))
    hazy = [(name, "0.9_0.12") for name in (*OTS_SCENES_OF_SOTS, *foreign)] + [("0330", "0.8_0.16")]
    for name, haze in hazy:
        save(raw / "sots" / "gt" / f"{name}.png", pictures[name])
        save(raw / "sots" / "hazy" / f"{name}_{haze}.jpg", harmed(pictures[name]))
    stores = [LocalStore(tmp_path / name) for name in ("ots", "sots")]
    ots = PublishedSource("reside-ots", raw / "ots", PublishedOptions(expected={"OTS": 2 * 78}))
    sots = PublishedSource("sots-outdoor", raw / "sots", PublishedOptions(expected={"SOTS outdoor": 80}))
    for source, store in zip((ots, sots), stores, strict=True):
        pack(source, store, name="x")

    cache = ShardCache(tmp_path / "cache", 1 << 30)
    duplicates = audit(Dataset([store.uri for store in stores], cache), cache, runner=ProcessPool(2))
    assert all(group.leaks for group in duplicates)
    assert len(duplicates) == duplicates.leaks == 75
    found = {(group.first.row.id[:4], group.second.row.id[:4]) for group in duplicates}
    assert found == {(scene, scene) for scene in OTS_SCENES_OF_SOTS}
    assert duplicates.leaked_test_samples() == {stores[1].uri: 76}
    assert sum(group.first.samples for group in duplicates) == 2 * 75

    clean = PublishedSource(
        "reside-ots", raw / "ots", PublishedOptions(expected={"OTS": 2 * 78}, exclude_leaked=True)
    )
    pack(clean, LocalStore(tmp_path / "clean"), name="x")
    both = Dataset([str(tmp_path / "clean"), stores[1].uri], cache)
    assert len(audit(both, cache)) == 0


@pytest.mark.parametrize(
    ("change", "exact"),
    [
        (lambda image: image, True),
        (lambda image: image.resize((100, 90), Image.Resampling.BICUBIC), False),
        (lambda image: ImageEnhance.Brightness(image).enhance(0.8), False),
        (lambda image: ImageEnhance.Contrast(image).enhance(1.2), False),
        (lambda image: image.convert("L"), False),
        (lambda image: image.crop((2, 1, image.width - 1, image.height - 2)), False),
    ],
    ids=["copied", "resized", "darker", "contrast", "grey", "trimmed"],
)
def test_a_copy_is_found_whatever_was_done_to_it(tmp_path: Path, change, exact: bool):
    pictures = scenes(30)
    for number, picture in enumerate(pictures):
        save(tmp_path / "raw" / f"{number:02}.png", picture)
    change(Image.fromarray(pictures[7])).save(tmp_path / "raw" / "copy.png")
    pack(FolderSource(tmp_path / "raw", ["noise25"]), LocalStore(tmp_path / "s"), name="x")
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    (pair,) = audit(Dataset([str(tmp_path / "s")], cache), cache)
    assert {pair.first.row.id, pair.second.row.id} == {"07", "copy"}
    assert (pair.exact, pair.leaks) == (exact, False)


def test_plain_surfaces_are_not_taken_for_each_other(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(6):
        plain = 100 + 10 * number + rng.integers(-3, 4, (64, 72, 3))
        save(tmp_path / "raw" / f"{number}.png", plain.astype(np.uint8))
    pack(FolderSource(tmp_path / "raw", ["noise25"]), LocalStore(tmp_path / "s"), name="x")
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    assert audit(Dataset([str(tmp_path / "s")], cache), cache).photographs == 0


def test_files_of_16_bits_and_with_alpha_are_compared_too(tmp_path: Path):
    import imagecodecs

    one, two = scenes(2)
    for place in ("in", "gt"):
        (tmp_path / "raw" / place).mkdir(parents=True)
        deep = imagecodecs.png_encode(one.astype(np.uint16) * 257)
        (tmp_path / "raw" / place / "deep.png").write_bytes(deep)
        Image.fromarray(one).save(tmp_path / "raw" / place / "eight.png")
        Image.fromarray(np.dstack([two, two[..., :1]])).save(tmp_path / "raw" / place / "alpha.png")
    source = PairsSource(tmp_path / "raw", "in/{key}.png", "gt/{key}.png", "haze")
    pack(source, LocalStore(tmp_path / "s"), name="x", encoding="original")
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    (pair,) = audit(Dataset([str(tmp_path / "s")], cache), cache)
    assert {pair.first.row.id, pair.second.row.id} == {"in/deep", "in/eight"}
    assert pair.exact


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(errno.EPERM, "not permitted")


def test_photographs_that_did_not_change_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, picture in enumerate(scenes(8)):
        save(tmp_path / "raw" / f"{number}.png", picture)
        save(tmp_path / "raw" / f"{number}-copy.png", picture)
    source = FolderSource(tmp_path / "raw", ["noise25"], held_out=["0"])
    pack(source, LocalStore(tmp_path / "s"), name="x", shard_bytes=50_000)
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    first = list(audit(Dataset([str(tmp_path / "s")], cache), cache))
    assert len(first) == 8
    (kept, *others) = sorted((tmp_path / "cache").glob("fingerprints-*/*.npy"))
    assert others
    read: list[str] = []
    decoded = Dataset.clean_for_display
    monkeypatch.setattr(
        Dataset, "clean_for_display", lambda self, row: read.append(row.id) or decoded(self, row)
    )
    assert list(audit(Dataset([str(tmp_path / "s")], cache), cache)) == first
    assert read == []
    with monkeypatch.context() as patched:  # the folder is of another user, or another audit deletes in it
        patched.setattr(os, "utime", refuse)
        patched.setattr(Path, "unlink", refuse)
        patched.setattr(audit_module, "_KEPT_SECONDS", -1)
        audit_module._forget_unused(kept.parent)
        assert len(audit_module._load(kept)) > 0
    kept.write_bytes(kept.read_bytes()[:-7])  # as after a full disk
    assert list(audit(Dataset([str(tmp_path / "s")], cache), cache)) == first
    assert 0 < len(read) < 16


def test_a_large_group_is_told_by_its_size_and_some_names(tmp_path: Path):
    for number in range(40):
        save(tmp_path / "raw" / f"{number:02}.png", scenes(1)[0])
    source = FolderSource(tmp_path / "raw", ["noise25"], held_out=["07", "31"])
    pack(source, LocalStore(tmp_path / "s"), name="x")
    cache = ShardCache(tmp_path / "cache", 1 << 30)
    duplicates = audit(Dataset([str(tmp_path / "s")], cache), cache)
    (group,) = duplicates
    assert (group.size, group.leaks, group.exact, len(group.others)) == (40, True, True, 5)
    assert duplicates.leaked_test_samples() == {str(tmp_path / "s"): 2}
