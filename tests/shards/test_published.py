"""Published datasets, laid out as each repository has them: recognised by looking, or the report says what is amiss."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import scipy.io
from PIL import Image

from orchestrator.config.schema import KnownDegradation, PackSource
from shards.errors import ManifestError, PackError
from shards.manifest import Manifest, load_manifest
from shards.pack import pack
from shards.sample import CDD11, DEGRADATIONS
from shards.sources import PUBLISHED, PublishedOptions, PublishedSource
from shards.sources.leaks import OTS_SCENES_OF_SOTS, OUTDOOR_RAIN_TEST1
from shards.store import LocalStore
from tests.shards.raw import cut, harmed, lay_clean, lay_pairs, save

Pairs = list[tuple[str, str]]


def packed(
    name: str, root: Path, tmp_path: Path, options: PublishedOptions | None = None, **how: object
) -> Manifest:
    return pack(PublishedSource(name, root, options), LocalStore(tmp_path / "store"), name=name, **how)


def report(name: str, root: Path, tmp_path: Path, options: PublishedOptions | None = None) -> str:
    with pytest.raises(PackError) as told:
        packed(name, root, tmp_path, options)
    with pytest.raises(ManifestError):
        load_manifest(LocalStore(tmp_path / "store"))
    return str(told.value)


def numbers(pattern: str, count: int, first: int = 1) -> list[str]:
    return [pattern.format(n) for n in range(first, first + count)]


def both(degraded: str, clean: str, count: int, first: int = 1) -> Pairs:
    return list(zip(numbers(degraded, count, first), numbers(clean, count, first), strict=True))


HAZE = ("0.8_0.04", "0.85_0.2", "1_0.16")
SCENES = ("0025", "0030", "0039")
OTS = [(f"{s}_{v}", s) for s in SCENES for v in HAZE]
TYPES = tuple(CDD11)


def cdd(root: str, name: str) -> Pairs:
    """Two photographs in CDD-11's twelve folders."""
    files = [name.format(1), name.format(9)]
    return [(f"{root}/{kind}/{file}", f"{root}/clear/{file}") for kind in TYPES for file in files]


# (dataset, part that is expected to hold so many, its pairs on disk)
LAYOUTS: list[tuple[str, str, Pairs]] = [
    ("rain100l", "RainTrainL", both("Train/Derain/rainy/rain-{}.png", "Train/Derain/gt/norain-{}.png", 4)),
    ("rain100l", "RainTrainL", both("RainTrainL/rain-{}.png", "RainTrainL/norain-{}.png", 4)),
    ("rain100l", "RainTrainL", both("x/rainy/rain-{}.png", "x/norain/norain-{}.png", 4)),
    ("rain100l", "Rain100L", both("rainy/rain-{:03}.png", "norain/norain-{:03}.png", 4)),
    ("rain100l", "Rain100L", both("rain-{:03}.png", "norain-{:03}.png", 4)),
    ("rain100l", "Rain100L", both("derain/Rain100L/input/{}.png", "derain/Rain100L/target/{}.png", 4)),
    ("rain100l", "Rain100L", both("input/rain-{:03}.png", "target/norain-{:03}.png", 4)),
    ("rain100l", "Rain100L", both("rainy/rain-{:03}.png", "norain/rain-{:03}.png", 4)),
    ("rain100l", "Rain100L", both("deraining/Rain100L/rainy/{}.png", "deraining/Rain100L/gt/{}.png", 4)),
    ("reside-ots", "OTS", [(f"Dehaze/synthetic/part1/{d}.jpg", f"Dehaze/original/{c}.jpg") for d, c in OTS]),
    ("reside-ots", "OTS", [(f"synthetic/part2/{d}.jpg", f"original/{c}.png") for d, c in OTS]),
    ("reside-ots", "OTS", [(f"RESIDE/part3/{d}.jpg", f"RESIDE/clear/{c}.jpg") for d, c in OTS]),
    ("reside-ots", "OTS", [(f"O/haze/OTS/{d}.jpg", f"O/clear/clear_images/{c}.jpg") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"SOTS/outdoor/hazy/{d}.jpg", f"SOTS/outdoor/gt/{c}.png") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"dehaze/input/{d}.jpg", f"dehaze/target/{c}.png") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"hazy/{d}.png", f"clear/{c}.png") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"hazy/{d}.jpg", f"GT/{c}.png") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"SOTS/IN/{d}.jpg", f"SOTS/GT/{c}.png") for d, c in OTS]),
    ("sots-outdoor", "SOTS outdoor", [(f"hazy/{d}.png", f"gt/{c}_gt.png") for d, c in OTS]),
    ("gopro", "GoPro train", both("GOPRO/train/G_01/blur/{:06}.png", "GOPRO/train/G_01/sharp/{:06}.png", 3)),
    ("gopro", "GoPro train", both("Deblur/blur/G_01_{:06}.png", "Deblur/sharp/G_01_{:06}.png", 3)),
    ("gopro", "GoPro train", both("crop/train/input_crops/G-{}.png", "crop/train/target_crops/G-{}.png", 3)),
    ("gopro", "GoPro test", both("GOPRO/test/G_02/blur/{:06}.png", "GOPRO/test/G_02/sharp/{:06}.png", 3)),
    ("gopro", "GoPro test", both("test/deblur/gopro/input/G_{:06}.png", "test/deblur/gopro/target/G_{:06}.png", 3)),
    ("lol-v1", "our485", both("our485/low/{}.png", "our485/high/{}.png", 4)),
    ("lol-v1", "our485", both("Train/Enhance/low/{}.png", "Train/Enhance/gt/{}.png", 4)),
    ("lol-v1", "our485", both("LOLv1/Train/input/{}.png", "LOLv1/Train/target/{}.png", 4)),
    ("lol-v1", "eval15", both("eval15/low/{}.png", "eval15/high/{}.png", 4)),
    ("lol-v1", "eval15", both("enhance/lol/input/{}.png", "enhance/lol/target/{}.png", 4)),
    ("cdd11", "CDD-11_train", cdd("CDD-11_train", "{:05}.png")),
    ("cdd11", "CDD-11_train", cdd("cdd11/train", "{:06}.png")),
    ("cdd11", "CDD-11_test", [(f"test/input/{t}_{n:05}.png", f"test/clear/{n:05}.png") for t in TYPES for n in (1, 9)]),
    ("snow100k-s", "Snow100K-S", both("synthetic/beautiful_smile_{:05}.jpg", "gt/beautiful_smile_{:05}.jpg", 4)),
    ("snow100k-l", "Snow100K-L", both("L/input/city_{:05}.jpg", "L/gt/city_{:05}.jpg", 4)),
    ("outdoor-rain-test1", "Outdoor-Rain Test1", both("input/im_{:04}_s80_a04.png", "gt/im_{:04}_s80_a04.png", 4, 301)),
    ("outdoor-rain-test1", "Outdoor-Rain Test1", [(f"in/im_0301_s80_a0{a}.png", "gt/im_0301.png") for a in (4, 5)]),
    ("raindrop-a", "test_a", both("test_a/data/{}_rain.png", "test_a/gt/{}_clean.png", 4, 0)),
    ("raindrop-b", "test_b", both("test_b/data/{}_rain.jpg", "test_b/gt/{}_clean.jpg", 4, 0)),
    ("raindrop-a", "test_a", both("input/{}_rain.png", "gt/{}_rain.png", 4, 0)),
    ("uieb", "UIEB", both("raw-890/{}_img_.png", "reference-890/{}_img_.png", 4)),
    ("uieb", "UIEB", both("raw-890/raw-890/{}_img_.png", "reference-890/reference-890/{}_img_.png", 4)),
    ("toled", "TOLED", both("TOLED/input/{}.png", "TOLED/target/{}.png", 4)),
    ("poled", "POLED", both("input/{}.png", "target/{}.png", 4)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "pairs"), LAYOUTS, ids=[f"{n}:{p[0][0]}" for n, _, p in LAYOUTS])
def test_every_published_layout_is_recognised_and_paired_at_any_depth(
    name: str, part: str, pairs: Pairs, tmp_path: Path
):
    root = tmp_path / "kaggle" / "input" / "rainy" / "synthetic"  # words of the layouts, above them
    lay_pairs(root, pairs)
    split = next(p.split for p in PUBLISHED[name].parts if p.name == part)
    source = PublishedSource(name, root.parent, PublishedOptions(split=split, expected={part: len(pairs)}))
    assert source.problems == ()
    found = [(p.degraded and p.degraded.name, p.clean.name) for p in source]
    assert sorted(found) == sorted((str(root / d), str(root / c)) for d, c in pairs)
    assert len({(p.degradation, p.id) for p in source}) == len(pairs)
    assert {p.split for p in source} == {split}
    assert {p.degradation for p in source} <= set(DEGRADATIONS)


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("bsd68", numbers("bsd68/{}.jpg", 5, 3096), {"CBSD68": 5}),
        ("bsd68", numbers("cBSD68/original_png/{:04}.png", 5, 0), {"CBSD68": 5}),
        ("urban100", numbers("urban100/img_{:03}.png", 5), {"Urban100": 5}),
        ("urban100", numbers("HR/img_{:03}_SRF_4_HR.png", 5), {"Urban100": 5}),
        ("kodak24", numbers("kodim{:02}.png", 5), {"Kodak24": 5}),
        *(
            ("bsd400-wed", [*numbers(bsd, 4, 100075), *numbers(wed, 6)], {"BSD400": 4, "WED": 6})
            for bsd, wed in (
                ("Train/Denoise/a{}.jpg", "Train/Denoise/{:05}.bmp"),
                ("Denoise/{}.jpg", "Denoise/{:05}.bmp"),
                ("denoising/BSD400/{}.jpg", "denoising/WaterlooED/{:05}.bmp"),
            )
        ),
    ],
)
def test_clean_sets_are_recognised(name: str, files: list[str], expected: dict[str, int], tmp_path: Path):
    lay_clean(tmp_path / "raw", files)
    source = PublishedSource(name, tmp_path / "raw", PublishedOptions(expected=expected))
    assert source.problems == ()
    assert Counter(pair.source for pair in source) == expected
    assert {pair.degradation for pair in source} == {"noise"}
    assert [pair.degraded for pair in source] == [None] * len(files)


def test_both_splits_are_told_apart_by_their_counts(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, [*both("a/low/{}.png", "a/high/{}.png", 6), *both("b/low/{}.png", "b/high/{}.png", 2)])
    manifest = packed("lol-v1", root, tmp_path, PublishedOptions(expected={"our485": 6, "eval15": 2}))
    assert manifest.counts() == {"train": {"lowlight": 6}, "test": {"lowlight": 2}}
    root.joinpath("b").rename(root / "0")  # the order of the folders has no say
    other = PublishedSource("lol-v1", root, PublishedOptions(expected={"our485": 6, "eval15": 2}))
    assert [(p.split, p.id) for p in other] == [(row.split, row.id) for row in manifest.rows]


def test_a_job_can_name_every_dataset_and_every_degradation():
    assert set(get_args(PackSource)) == {"photographs", "clean", "synthetic", "pairs", *PUBLISHED}
    assert get_args(KnownDegradation) == DEGRADATIONS


def test_what_belongs_to_no_layout_is_ignored(tmp_path: Path):
    root = tmp_path / "RainTrainL"
    lay_pairs(root, both("rain-{}.png", "norain-{}.png", 3))
    lay_clean(root, [*numbers("rainstreak-{}.png", 3), *numbers("rainregion-{}.png", 3)])
    manifest = packed("rain100l", root, tmp_path, PublishedOptions("train", expected={"RainTrainL": 3}))
    assert [row.id for row in manifest.rows] == ["rain-1", "rain-2", "rain-3"]


def test_gopro_uses_blur_and_not_blur_gamma(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("train/S/blur/{}.png", "train/S/sharp/{}.png", 2))
    lay_clean(root, numbers("train/S/blur_gamma/{}.png", 2))
    source = PublishedSource("gopro", root, PublishedOptions("train", expected={"GoPro train": 2}))
    assert [Path(p.degraded.name).parent.name for p in source if p.degraded] == ["blur", "blur"]
    assert [p.id for p in source] == ["S_1", "S_2"]


def test_gopro_is_cut_into_restormers_eight_crops(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("train/S/blur/{}.png", "train/S/sharp/{}.png", 1), (720, 1280))
    manifest = packed(
        "gopro", root, tmp_path, PublishedOptions("train", crops=True, expected={"GoPro train": 1})
    )
    assert [row.id for row in manifest.rows] == [f"S_1-{k}" for k in range(1, 9)]
    assert {(row.clean.height, row.clean.width) for row in manifest.rows} == {(512, 512)}
    pairs = list(
        PublishedSource("gopro", root, PublishedOptions("train", crops=True, expected={"GoPro train": 1}))
    )
    whole = np.asarray(Image.open(root / "train/S/sharp/1.png"))
    np.testing.assert_array_equal(pairs[6].clean.pixels(), whole[208:720, 512:1024])
    np.testing.assert_array_equal(pairs[7].clean.pixels(), whole[208:720, 768:1280])


def test_frames_of_another_size_are_not_cut_into_gopros_crops(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("train/S/blur/{}.png", "train/S/sharp/{}.png", 1), (1080, 1920))
    options = PublishedOptions("train", crops=True, expected={"GoPro train": 1})
    with pytest.raises(PackError, match="1920 x 1080 pixels; windows are cut from 1280 x 720"):
        packed("gopro", root, tmp_path, options)


def test_cdd11_labels_groups_and_stores_each_clean_image_once(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, [(f"train/{t}/{n}.png", f"train/clear/{n}.png") for t in TYPES for n in (1, 2)])
    expected = {"CDD-11_train": 22}
    manifest = packed("cdd11", root, tmp_path, PublishedOptions("train", expected=expected))
    assert manifest.counts()["train"] == {name: 2 for name in sorted(CDD11.values())}
    assert len({row.clean for row in manifest.rows}) == 2
    for group, kinds in (("single", 4), ("double", 5), ("triple", 2), ("all", 11)):
        chosen = PublishedSource("cdd11", root, PublishedOptions("train", group=group, expected=expected))
        assert len(chosen.training_counts()) == kinds
        assert chosen.problems == ()


def test_allweather_knows_its_three_sets_and_refuses_test_scenes(tmp_path: Path):
    names = ["im_0001_s80_a04.png", "im_0002_s80_a04.png", "city_00001.jpg", "12_rain.png"]
    root = tmp_path / "raw"
    lay_pairs(root, [(f"allweather/input/{n}", f"allweather/gt/{n}") for n in names])
    source = PublishedSource("allweather", root, PublishedOptions(expected={"AllWeather": 4}))
    assert source.problems == ()
    assert source.training_counts() == {"haze_rain": 2, "snow": 1, "raindrop": 1}
    assert Counter(p.source for p in source) == {"Outdoor-Rain": 2, "Snow100K": 1, "RainDrop": 1}

    lay_pairs(
        root, [(f"allweather/input/{s}_a.png", f"allweather/gt/{s}_a.png") for s in OUTDOOR_RAIN_TEST1[:2]]
    )
    text = report("allweather", root, tmp_path, PublishedOptions(expected={"AllWeather": 6}))
    assert "im_0301_a.png" in text
    assert "--exclude-leaked" in text
    without = PublishedSource(
        "allweather", root, PublishedOptions(exclude_leaked=True, expected={"AllWeather": 6})
    )
    assert without.problems == ()
    assert len(without) == 4


def test_a_repacked_allweather_has_the_published_count_without_its_test_scenes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    known = PUBLISHED["allweather"]
    (part,) = known.parts
    labels = tuple(replace(label, pairs=n) for label, n in zip(part.labels, (1, 1, 1), strict=True))
    monkeypatch.setitem(
        PUBLISHED, "allweather", replace(known, parts=(replace(part, pairs=3, labels=labels),))
    )
    names = [
        "im_0001_s80_a04.png",
        "im_0301_s80_a04.png",
        "im_0350_s90_a05.png",
        "city_00001.jpg",
        "12_rain.png",
    ]
    lay_pairs(tmp_path / "raw", [(f"input/{n}", f"gt/{n}") for n in names])
    refused = PublishedSource("allweather", tmp_path / "raw")
    assert any("5 pairs; the set has 3" in problem.what for problem in refused.problems)
    without = PublishedSource("allweather", tmp_path / "raw", PublishedOptions(exclude_leaked=True))
    assert without.problems == ()
    assert len(without) == 3


BOTH_SPLITS: list[tuple[str, Pairs, Pairs]] = [
    (
        "gopro",
        [(f"L/train/G{s}/blur/{n:06}.png", f"L/train/G{s}/sharp/{n:06}.png") for s in "ab" for n in (1, 2)],
        [(f"L/test/G{s}/blur/{n:06}.png", f"L/test/G{s}/sharp/{n:06}.png") for s in "cd" for n in (1, 2, 3)],
    ),
    (
        "gopro",
        both("Train/Deblur/blur/Ga_{:06}.png", "Train/Deblur/sharp/Ga_{:06}.png", 4),
        both("test/deblur/gopro/input/Gc_{:06}.png", "test/deblur/gopro/target/Gc_{:06}.png", 6),
    ),
    *(
        (
            "cdd11",
            [(degraded.format("train"), clean.format("train")) for degraded, clean in pairs],
            [(degraded.format("test"), clean.format("test")) for degraded, clean in pairs[::2]],
        )
        for pairs in (
            [(f"{{}}/input/{t}_{n}.png", f"{{}}/clear/{n}.png") for t in TYPES for n in (1, 2)],
            [(f"CDD-11_{{}}/{t}/{n}.png", f"CDD-11_{{}}/clear/{n}.png") for t in TYPES for n in (1, 2)],
            [(f"cdd11/{{}}/{t}/{n}.png", f"cdd11/{{}}/clear/{n}.png") for t in TYPES for n in (1, 2)],
        )
    ),
]


@pytest.mark.parametrize(("name", "train", "test"), BOTH_SPLITS)
def test_two_splits_below_one_root_take_their_own_files(tmp_path: Path, name: str, train: Pairs, test: Pairs):
    lay_pairs(tmp_path / "raw", [*train, *test])
    expected = {part.name: len(train if part.split == "train" else test) for part in PUBLISHED[name].parts}
    source = PublishedSource(name, tmp_path / "raw", PublishedOptions(expected=expected))
    assert source.problems == ()
    for split, pairs in (("train", train), ("test", test)):
        taken = {(str(p.degraded.path), str(p.clean.path)) for p in source if p.split == split}
        assert taken == {(str(tmp_path / "raw" / d), str(tmp_path / "raw" / c)) for d, c in pairs}


def matlab(root: Path, split: str = "test", count: int = 3) -> np.ndarray:
    clean = np.stack([cut(n) for n in range(count)])
    for kind, array in (("display", harmed(clean)), ("gt", clean)):
        scipy.io.savemat(
            root / f"toled_{split}_{kind}.mat", {f"{split}_{kind}": array}, do_compression=kind == "gt"
        )
    return clean


def test_matlab_arrays_and_png_files_give_the_same_pairs(tmp_path: Path):
    root = tmp_path / "raw"
    root.mkdir()
    clean = matlab(root)
    expected = {"TOLED": 3}
    arrays = list(PublishedSource("toled", root, PublishedOptions(expected=expected)))
    assert [p.id for p in arrays] == ["0000", "0001", "0002"]
    for number, pair in enumerate(arrays):
        assert pair.degraded is not None
        assert pair.clean.size() == (40, 48)
        np.testing.assert_array_equal(pair.clean.pixels(), clean[number])
        np.testing.assert_array_equal(pair.degraded.pixels(), harmed(clean[number]))
    assert packed("toled", root, tmp_path, PublishedOptions(expected=expected)).counts() == {
        "test": {"toled": 3}
    }


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "not a readable MATLAB file"),
        (lambda path: path.write_bytes(b"<html>quota exceeded</html>"), "not a readable MATLAB file"),
        (lambda path: scipy.io.savemat(path, {"other": np.zeros(3)}), "'test_gt'.*the file has: other"),
    ],
)
def test_a_matlab_file_that_is_not_what_it_should_be_is_named(tmp_path: Path, spoil, says: str):
    matlab(tmp_path)
    spoil(tmp_path / "toled_test_gt.mat")
    with pytest.raises(PackError, match=f"toled_test_gt.mat.*{says}"):
        packed("toled", tmp_path, tmp_path, PublishedOptions(expected={"TOLED": 3}))


# --- what is amiss ---------------------------------------------------------------------------------------------


def test_a_count_that_is_not_the_published_one_is_told_and_nothing_is_published(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("rainy/rain-{}.png", "gt/norain-{}.png", 7))
    (root / "gt" / "norain-3.png").unlink()
    text = report("rain100l", root, tmp_path, PublishedOptions("train"))
    assert "RainTrainL (train, in ., laid out as: AirNet" in text
    assert "has 6 pairs; the set has 200" in text
    assert "rainy/rain-3.png (looked for gt/norain-3.png)" in text
    assert "--allow-partial" in text
    manifest = packed("rain100l", root, tmp_path, PublishedOptions("train"), allow_partial=True)
    assert len(manifest.rows) == 6
    assert any("the set has 200" in record["what"] for record in manifest.provenance["missing"])
    assert any("rain-3" in name for record in manifest.provenance["missing"] for name in record["examples"])


def test_a_part_that_is_not_there_is_told_with_what_was_looked_for(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("rainy/rain-{}.png", "gt/norain-{}.png", 3))
    text = report("rain100l", root, tmp_path, PublishedOptions(expected={"RainTrainL": 3}))
    assert "Rain100L (test) was not found" in text
    assert "input/{key}.png with target/{key}.png" in text
    assert "There are 6 files: gt/norain-1.png" in text
    assert "--split" in text


def test_sots_indoor_is_not_taken_for_outdoor(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, [(f"indoor/hazy/1400_{k}.png", "indoor/gt/1400.png") for k in range(1, 4)])
    assert "is of SOTS indoor" in report("sots-outdoor", root, tmp_path)


def test_reside_v0_is_known_by_its_size_and_served_by_the_official_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "raw"
    lay_pairs(
        root, [(f"OTS_ALPHA/haze/OTS/{d}.jpg", f"OTS_ALPHA/clear/clear_images/{c}.jpg") for d, c in OTS]
    )
    text = report("reside-ots", root, tmp_path)
    assert "has 9 pairs; the set has 72,135" in text
    assert "has 3 clean images in use; the set has 2,061" in text
    part = PUBLISHED["reside-ots"].parts[0]
    monkeypatch.setattr(PublishedSource, "_expected", lambda self, part: 72135)
    object.__setattr__(part, "wrong_counts", {9: part.wrong_counts[313950]})
    try:
        assert "RESIDE-v0" in report("reside-ots", root, tmp_path)
    finally:
        object.__setattr__(part, "wrong_counts", {313950: part.wrong_counts[9]})

    official = tmp_path / "hazy_outside.txt"
    official.write_text("".join(f"synthetic/part1/{s}_{v}.jpg\n" for s in SCENES[:2] for v in HAZE))
    listed = PublishedSource("reside-ots", root, PublishedOptions(listing=official))
    assert listed.problems == ()
    assert len(listed) == 6
    assert listed.provenance["list"]["known_as"].startswith("not an official list")
    official.write_text(official.read_text() + "synthetic/part1/9999_1_0.2.jpg\n")
    assert "1 of 7 files of the list are not there: 9999_1_0.2" in report(
        "reside-ots", root, tmp_path, PublishedOptions(listing=official)
    )


def test_without_a_list_the_missing_hazy_files_of_ots_are_derived(tmp_path: Path):
    root = tmp_path / "raw"
    grid = [
        (a, b)
        for a in ("0.8", "0.85", "0.9", "0.95", "1")
        for b in ("0.04", "0.06", "0.08", "0.1", "0.12", "0.16", "0.2")
    ]
    lay_pairs(root, [(f"synthetic/part1/0025_{a}_{b}.jpg", "original/0025.jpg") for a, b in grid])
    (root / "synthetic/part1/0025_0.95_0.12.jpg").unlink()
    text = report("reside-ots", root, tmp_path)
    assert "0025_0.95_0.12" in text
    assert "part1 has 34 of 18,200" in text


def test_leaked_scenes_of_ots_stay_unless_one_asks(tmp_path: Path):
    root = tmp_path / "raw"
    scenes = [*OTS_SCENES_OF_SOTS[:2], "0026"]
    lay_pairs(root, [(f"synthetic/part1/{s}_1_0.2.jpg", f"original/{s}.jpg") for s in scenes])
    expected = {"OTS": 3}
    assert len(PublishedSource("reside-ots", root, PublishedOptions(expected=expected))) == 3
    without = PublishedSource("reside-ots", root, PublishedOptions(expected=expected, exclude_leaked=True))
    assert [p.id for p in without] == ["0026_1_0.2"]
    assert without.provenance["exclude_leaked"] is True
    assert len(OTS_SCENES_OF_SOTS) == 75


def test_images_of_another_size_than_the_datasets_are_told(tmp_path: Path):
    root = tmp_path / "raw"
    lay_pairs(root, both("eval15/low/{}.png", "eval15/high/{}.png", 15), (400, 600))
    assert len(packed("lol-v1", root, tmp_path, PublishedOptions("test")).rows) == 15
    shutil.rmtree(tmp_path / "store")
    save(root / "eval15/low/7.png", cut(1, 200, 300))
    save(root / "eval15/high/7.png", cut(1, 200, 300))
    text = report("lol-v1", root, tmp_path, PublishedOptions("test"))
    assert "low/7.png (300 x 200, not 600 x 400)" in text or "high/7.png (300 x 200, not 600 x 400)" in text


def test_folders_that_fit_equally_well_are_named(tmp_path: Path):
    for copy in ("a", "b"):
        lay_pairs(tmp_path / "raw", both(f"{copy}/low/{{}}.png", f"{copy}/high/{{}}.png", 3))
    with pytest.raises(PackError, match=r"2 folders .* fit equally well: a/, b/.*--root"):
        PublishedSource("lol-v1", tmp_path / "raw", PublishedOptions("test", expected={"eval15": 3}))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: PublishedSource("rain100h", root), "'rain100h' is unknown"),
        (lambda root: PublishedSource("uieb", root, PublishedOptions("train")), "has no train split"),
        (
            lambda root: PublishedSource("uieb", root, PublishedOptions(group="single")),
            "cdd11 alone has groups",
        ),
        (
            lambda root: PublishedSource("uieb", root, PublishedOptions(crops=True)),
            "crops are made of gopro alone",
        ),
        (
            lambda root: PublishedSource("uieb", root, PublishedOptions(expected={"UEIB": 1})),
            "no part 'UEIB'",
        ),
        (lambda root: PublishedSource("uieb", root), "no image files"),
        (lambda root: PublishedSource("uieb", root / "none"), "no such folder"),
    ],
)
def test_what_cannot_be_asked_is_said_at_once(tmp_path: Path, make, says: str):
    with pytest.raises(PackError, match=says):
        make(tmp_path)
