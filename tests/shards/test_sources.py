"""Sources: what is read from disk is right, or the first misses are named."""

from __future__ import annotations

import re
import shutil
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from shards import photographs as photographs_module
from shards.errors import ManifestError, PackError
from shards.images import halve, read_image
from shards.manifest import Manifest, load_manifest
from shards.pack import pack
from shards.photographs import PHOTOGRAPHS, DemoPhotograph, read_photograph
from shards.progress import ProgressCallback
from shards.sources import FolderSource, PairsSource, PhotographSource, Source
from shards.sources.official_list import OfficialList
from shards.store import LocalStore, open_store


def test_every_photograph_is_there_and_large_enough_to_crop():
    for photograph in PHOTOGRAPHS:
        pixels = read_photograph(photograph)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert min(pixels.shape[:2]) >= 288, photograph.name
        assert photograph.licence


def test_four_colour_photographs_are_held_out_and_no_scene_is_on_both_sides():
    held_out = [photograph for photograph in PHOTOGRAPHS if photograph.split == "test"]
    assert len(held_out) >= 4
    for photograph in held_out:
        pixels = read_photograph(photograph).astype(int)
        assert abs(pixels[..., 0] - pixels[..., 2]).mean() > 5, f"{photograph.name} is grey"
    scenes = {photograph.name.split("_left")[0].split("_right")[0]: set() for photograph in PHOTOGRAPHS}
    for photograph in PHOTOGRAPHS:
        scenes[photograph.name.split("_left")[0].split("_right")[0]].add(photograph.split)
    assert all(len(splits) == 1 for splits in scenes.values())


def test_a_wheel_that_is_not_installed_is_named_with_its_remedy():
    absent = DemoPhotograph("x", "no_such_package", "x.png", "train", "CC0")
    with pytest.raises(PackError, match=r"no_such_package.*pip install"):
        photographs_module.read_photograph(absent)


def test_photograph_pairs_are_counted_before_they_are_made():
    source = PhotographSource(["noise25", "noise50", "rain"], seed=0, variants=3)
    train = sum(photograph.split == "train" for photograph in PHOTOGRAPHS)
    assert source.training_counts() == {"noise": train, "rain": 3 * train}
    assert len(source) == 4 * train + 2 * (len(PHOTOGRAPHS) - train)


def test_a_folder_gives_what_it_announces(source: FolderSource):
    pairs = list(source)
    assert len(pairs) == len(source) == 3 * (1 + 2 * 2) + 2 * (1 + 2)
    train = [pair.degradation for pair in pairs if pair.split == "train"]
    assert {name: train.count(name) for name in set(train)} == source.training_counts()
    assert {pair.id for pair in pairs if pair.split == "test"} == {"coffee", "chelsea"}
    for pair in pairs:
        assert (pair.degraded is None) == (pair.degradation == "noise")
    for one, other in pairwise(pairs):
        if one.id.split("-")[0] == other.id.split("-")[0]:
            assert one.clean == other.clean


def test_variants_differ(source: FolderSource):
    first, second = (
        pair.degraded for pair in source if pair.id.startswith("brick-") and pair.degradation == "rain"
    )
    assert first is not None
    assert second is not None
    assert (first.pixels() != second.pixels()).any()


@pytest.fixture
def root(photographs: Path, tmp_path: Path) -> Path:
    """Two folders of five photographs each."""
    shutil.copytree(photographs, tmp_path / "raw" / "clean")
    shutil.copytree(photographs, tmp_path / "raw" / "rainy")
    return tmp_path / "raw"


def of(root: Path, **options: Any) -> PairsSource:
    return PairsSource(root, "rainy/{key}.(png|bmp)", "clean/{key}.png", "rain", **options)


def packing(source: Source, tmp_path: Path, **options: object) -> Manifest:
    return pack(source, open_store(str(tmp_path / "store")), name="mine", **options)


def test_pairs_are_matched_by_what_both_patterns_capture(root: Path):
    Image.open(root / "rainy" / "china.png").save(root / "rainy" / "china.bmp")
    (root / "rainy" / "china.png").unlink()
    pairs = list(of(root, held_out_share=0.4))
    assert [pair.id for pair in pairs] == [
        f"rainy/{n}" for n in ("brick", "chelsea", "china", "coffee", "flower")
    ]
    assert sum(pair.split == "test" for pair in pairs) == 2
    assert of(root, held_out_share=0.4).training_counts() == {"rain": 3}
    for pair in pairs:
        assert pair.degraded is not None
        np.testing.assert_array_equal(pair.clean.pixels(), pair.degraded.pixels())


def test_one_clean_file_may_serve_several_degraded_ones_and_is_never_on_both_sides(
    root: Path, tmp_path: Path
):
    for name in ("china", "coffee"):
        shutil.copy(root / "rainy" / f"{name}.png", root / "rainy" / f"{name}_2.png")
        (root / "rainy" / f"{name}.png").rename(root / "rainy" / f"{name}_1.png")
    for name in ("brick", "chelsea", "flower"):
        (root / "rainy" / f"{name}.png").rename(root / "rainy" / f"{name}_1.png")
    source = PairsSource(root, "rainy/{key}_{draw:d}.png", "clean/{key}.png", "rain", held_out_share=0.5)
    manifest = packing(source, tmp_path)
    assert len(manifest.rows) == 7
    assert len({row.clean for row in manifest.rows}) == 5
    sides = {row.clean: set() for row in manifest.rows}
    for row in manifest.rows:
        sides[row.clean].add(row.split)
    assert all(len(splits) == 1 for splits in sides.values())


def divided(photographs: Path, tmp_path: Path, *words: str, clean_too: bool = True) -> PairsSource:
    """Return pairs in one folder for each of `words`; photograph i is in folder i modulo their number."""
    root = tmp_path / "divided"
    for number, file in enumerate(sorted(photographs.iterdir())):
        word = words[number % len(words)]
        for side, folder in (("in", word), ("gt", word if clean_too else "")):
            (root / folder / side).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / folder / side / file.name)
    clean = "{split}/gt/{key}.png" if clean_too else "gt/{key}.png"
    return PairsSource(root, "{split}/in/{key}.png", clean, "phone")


@pytest.mark.parametrize(
    "words", [("train", "test"), ("Training", "VAL"), ("train", "dev"), ("train", "valid")]
)
@pytest.mark.parametrize("clean_too", [True, False])
def test_the_field_split_divides_pairs_as_their_folders_do(
    photographs: Path, tmp_path: Path, words: tuple[str, str], clean_too: bool
):
    source = divided(photographs, tmp_path, *words, clean_too=clean_too)
    assert {pair.id.partition("/")[0]: pair.split for pair in source} == {words[0]: "train", words[1]: "test"}
    assert source.training_counts() == {"phone": 3}
    manifest = packing(source, tmp_path)
    assert manifest.counts() == {"train": {"phone": 3}, "test": {"phone": 2}}
    assert manifest.provenance["held_out"] == "{split}"
    assert packing(source, tmp_path).digest == manifest.digest


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("train", "testset"), r"\{split\} is testset, which names no split.*train, training, test"),
        (("train", "test", "val"), r"\{split\} is test, val: several sets.*\{split:train\|test\}"),
        (("a1", "b2"), r"a1, b2, which names no split"),
    ],
)
def test_folders_that_do_not_divide_into_two_are_listed(photographs: Path, tmp_path: Path, words, says: str):
    with pytest.raises(PackError, match=says):
        divided(photographs, tmp_path, *words)


def test_a_clean_file_of_both_splits_is_refused(photographs: Path, tmp_path: Path):
    root = divided(photographs, tmp_path, "train", "test", clean_too=False)._root
    shutil.copy(root / "train" / "in" / "brick.png", root / "test" / "in" / "brick.png")
    with pytest.raises(PackError, match=r"gt/brick.png is the clean file of pairs for training and of"):
        PairsSource(root, "{split}/in/{key}.png", "gt/{key}.png", "phone")


def test_some_folders_can_be_taken_out_of_several(photographs: Path, tmp_path: Path):
    with pytest.raises(PackError):
        divided(photographs, tmp_path, "train", "test", "val")
    pattern = "{split:train|val}/in/{key}.png"
    source = PairsSource(tmp_path / "divided", pattern, "{split}/gt/{key}.png", "phone")
    assert {pair.id.partition("/")[0] for pair in source} == {"train", "val"}


def test_the_split_may_stand_in_the_pattern_of_the_clean_files_alone(photographs: Path, tmp_path: Path):
    root = divided(photographs, tmp_path, "train", "test")._root
    source = PairsSource(root, "**/in/{key}.png", "{split}/gt/{key}.png", "phone")
    assert source.training_counts() == {"phone": 3}


NAMES = ["china", "clean/china", "rainy/china", "china.png", "clean\\china.png", "./clean/china.png"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("listed", [False, True])
def test_pairs_are_held_out_by_any_of_their_names(root: Path, tmp_path: Path, name: str, listed: bool):
    (tmp_path / "test.txt").write_text(f"\ufeff{name}\r\n\n")
    source = of(root, held_out=[f"@{tmp_path / 'test.txt'}" if listed else name])
    assert [pair.id for pair in source if pair.split == "test"] == ["rainy/china"]
    assert source.provenance["held_out"] == ["clean/china.png"]


def test_a_folder_of_photographs_takes_the_same_names(photographs: Path, tmp_path: Path):
    shutil.copytree(photographs, tmp_path / "album" / "2024")
    for name in ("china", "2024/china", "2024/china.png"):
        source = FolderSource(tmp_path / "album", ["rain"], held_out=[name])
        assert source.provenance["held_out"] == ["2024/china"]


def test_a_name_of_several_photographs_is_refused_with_their_folders(photographs: Path, tmp_path: Path):
    for year in ("2023", "2024"):
        shutil.copytree(photographs, tmp_path / "album" / year)
    with pytest.raises(PackError, match=r"china, which is 2023/china, 2024/china"):
        FolderSource(tmp_path / "album", ["rain"], held_out=["china"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_list_of_any_system_names_the_same_photographs(
    photographs: Path, tmp_path: Path, encoding: str, end: str, form: Literal["NFC", "NFD"]
):
    shutil.copytree(photographs, tmp_path / "album")
    (tmp_path / "album" / "china.png").rename(
        tmp_path / "album" / unicodedata.normalize("NFC", "étude\u2028.png")
    )
    mark = "\ufeff" if encoding.endswith("e") else ""
    lines = [f"{mark}.\\flower", "", unicodedata.normalize(form, "étude\u2028.PNG")]
    (tmp_path / "list.txt").write_bytes(end.join(lines).encode(encoding))
    source = FolderSource(tmp_path / "album", ["rain"], held_out=[f"@{tmp_path / 'list.txt'}"])
    assert source.provenance["held_out"] == ["flower", "étude\u2028"]
    listed = OfficialList.read(tmp_path / "list.txt")
    assert listed.names == ("flower", "étude\u2028")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"\xff\xfe", "café".encode("cp1252"), b"\xff\xfea"])
def test_a_list_that_holds_no_names_is_refused_by_its_path(root: Path, tmp_path: Path, content: bytes | None):
    if content is not None:
        (tmp_path / "test.txt").write_bytes(content)
    with pytest.raises(PackError, match=r"test.txt: the list (is empty|cannot be read|is not UTF-8)"):
        of(root, held_out=[f"@{tmp_path / 'test.txt'}"])


def test_two_ways_to_divide_pairs_are_one_too_many(root: Path):
    with pytest.raises(PackError, match="Give one of them"):
        of(root, held_out=["china"], held_out_share=0.2)
    for options in ({"held_out": ["china"]}, {"held_out_share": 0.2}):
        with pytest.raises(PackError, match=r"Leave out held_out and held_out_share"):
            PairsSource(root, "{split}/{key}.png", "clean/{key}.png", "rain", **options)


def test_other_bytes_another_name_or_another_file_is_another_provenance(photographs: Path, tmp_path: Path):
    folder = tmp_path / "photographs"
    shutil.copytree(photographs, folder)
    before = FolderSource(folder, ["rain"]).provenance
    assert before == FolderSource(photographs, ["rain"]).provenance  # where it lies has no say
    seen = [before["content"]]

    image = bytearray((folder / "brick.png").read_bytes())
    image[-20] ^= 1
    (folder / "brick.png").write_bytes(image)
    seen.append(FolderSource(folder, ["rain"]).provenance["content"])
    (folder / "brick.png").rename(folder / "wall.png")
    seen.append(FolderSource(folder, ["rain"]).provenance["content"])
    (folder / "wall.png").unlink()
    seen.append(FolderSource(folder, ["rain"]).provenance["content"])
    assert len(set(seen)) == 4


def test_pairs_know_the_content_of_both_sides_and_which_is_which(root: Path):
    before = of(root).provenance
    Image.new("RGB", (130, 97)).save(root / "rainy" / "brick.png")
    after = of(root).provenance
    assert after["content"] != before["content"]
    swapped = PairsSource(root, "clean/{key}.png", "rainy/{key}.png", "rain").provenance
    assert {k: v for k, v in swapped.items() if k != "content"} != after


def test_looking_packing_and_hashing_tell_how_far_they_are(root: Path, tmp_path: Path):
    told: dict[str, list[tuple[int, int]]] = {"look": [], "pack": [], "hash": []}

    def watch(phase: str) -> ProgressCallback:
        return lambda done, total, name: told[phase].append((done, total))

    source = PairsSource(root, "rainy/{key}.png", "clean/{key}.png", "rain", on_hash=watch("hash"))
    store = LocalStore(tmp_path / "told")
    pack(source, store, name="told", on_progress=watch("pack"), on_scan=watch("look"))
    images = 2 * len(source)
    assert told["look"] == told["hash"] == [(n, images) for n in range(1, images + 1)]
    assert told["pack"] == [(n, len(source)) for n in range(1, len(source) + 1)]


def test_missing_partners_are_named_and_nothing_is_published(root: Path, tmp_path: Path):
    (root / "clean" / "coffee.png").unlink()
    (root / "rainy" / "flower.png").unlink()
    with pytest.raises(PackError) as told:
        packing(of(root), tmp_path)
    assert "2 problems" in str(told.value)
    assert "rainy/coffee.png (looked for clean/coffee.png)" in str(told.value)
    assert "clean/flower.png" in str(told.value)
    with pytest.raises(ManifestError):
        load_manifest(open_store(str(tmp_path / "store")))


def test_all_that_is_wrong_with_images_is_one_report(root: Path, tmp_path: Path):
    Image.open(root / "clean" / "brick.png").resize((99, 98)).save(root / "clean" / "brick.png")
    (root / "rainy" / "china.png").write_bytes(b"<html>404</html>")
    Image.open(root / "clean" / "coffee.png").convert("RGBA").save(root / "clean" / "coffee.png")
    with pytest.raises(PackError) as told:
        packing(of(root), tmp_path)
    text = str(told.value)
    assert "3 problems" in text
    assert re.search(r"brick.png \(130 x 97; .*clean/brick.png: 99 x 98\)", text)
    assert re.search(r"china.png: not a readable image", text)
    assert re.search(r"coffee.png \(mode RGBA\).*--encoding original", text)


def test_what_is_left_out_on_purpose_is_recorded(root: Path, tmp_path: Path):
    whole = (root / "rainy" / "china.png").read_bytes()
    (root / "rainy" / "china.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    (root / "rainy" / "brick.png").write_bytes(b"")
    with pytest.raises(PackError, match=r"(?s)brick.*china.*not a readable image"):
        packing(of(root), tmp_path)
    manifest = packing(of(root), tmp_path, allow_partial=True)
    assert [row.id for row in manifest.rows] == ["rainy/chelsea", "rainy/coffee", "rainy/flower"]
    missing = manifest.provenance["missing"]
    assert [record["what"] for record in missing] == [
        "Images that cannot be read (1).",
        "Pairs that could not be read whole (1).",
    ]
    assert "brick.png" in missing[0]["examples"][0]
    assert "china.png" in missing[1]["examples"][0]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.write_bytes(b"not an image"), "not a readable image"),
        (lambda path: path.write_bytes(b""), "not a readable image"),
        (lambda path: Image.new("RGBA", (40, 40)).save(path), "mode RGBA"),
        (lambda path: Image.fromarray(np.zeros((9, 9), np.uint16)).save(path), "mode I;16"),
    ],
)
def test_what_is_not_8_bit_rgb_is_refused_by_name(tmp_path: Path, make, says: str):
    make(tmp_path / "odd.png")
    with pytest.raises(PackError, match=f"odd.png.*{says}"):
        read_image(tmp_path / "odd.png")


def test_a_truncated_image_is_refused_by_name(photographs: Path, tmp_path: Path):
    whole = (photographs / "brick.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PackError, match=r"cut.png: not a readable image"):
        read_image(tmp_path / "cut.png")


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Image.new("L", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)  # warns above, raises above twice that
    with pytest.raises(PackError, match=r"bomb.png"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(PackError, match=r"bomb.png"):
        read_image(tmp_path / "bomb.png")


def test_grey_becomes_three_equal_channels(tmp_path: Path):
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "grey.png")
    pixels = read_image(tmp_path / "grey.png")
    assert pixels.shape == (8, 8, 3)
    assert (pixels == pixels[..., :1]).all()


def test_halving_is_the_mean_of_four():
    image = np.zeros((5, 4, 3), np.uint8)
    image[0, 0] = 200
    assert halve(image).shape == (2, 2, 3)
    assert halve(image)[0, 0].tolist() == [50, 50, 50]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: FolderSource(folder / "absent", ["rain"]), "there is no such folder"),
        (lambda folder: FolderSource(folder, []), "degradations none"),
        (lambda folder: FolderSource(folder, ["fog"]), "'fog'"),
        (
            lambda folder: FolderSource(folder, ["rain"], held_out=["dog"]),
            "dog, which is not among the photographs",
        ),
        (lambda folder: PairsSource(folder, "{k}.png", "{k}.png", "noise25"), "'noise25' has no pairs"),
        (
            lambda folder: PairsSource(folder, "{k}.png", "{k}.png", "rain", held_out_share=2),
            "between 0 and 1",
        ),
        (lambda folder: PairsSource(folder, "{split}/x.png", "{split}/y.png", "rain"), "capture no field"),
        (lambda folder: PairsSource(folder, "*.png", "{k}.png", "rain"), "capture no field"),
        (lambda folder: PairsSource(folder, "{k.png", "{k}.png", "rain"), "bracket"),
        (lambda folder: PairsSource(folder, "a/{k}.png", "{k}.png", "rain"), "no files match"),
    ],
)
def test_what_cannot_be_a_source_is_said_at_once(photographs: Path, make, says: str):
    with pytest.raises(PackError, match=says):
        make(photographs)


def test_an_empty_folder_is_said(tmp_path: Path):
    with pytest.raises(PackError, match="no image files"):
        FolderSource(tmp_path, ["rain"])
