"""The commands about datasets, as a user types them: pack, show, verify, audit, gc."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from skimage import data as photographs
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.data import datasets, summary
from orchestrator.data.summary import describe
from orchestrator.errors import PlanError
from shards import jpeg_intervals
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, PackError, ToolError
from shards.manifest import Manifest, ManifestRow, Member, Shard, load_manifest
from shards.sample import SIGMA
from shards.store import LocalStore

NAMES = ("astronaut", "rocket", "coffee", "cat")


@pytest.fixture
def raw(at_home: Path, tmp_path: Path) -> Path:
    """Pairs of four photographs; `cat` comes again under another name."""
    for number, name in enumerate((*NAMES, "cat")):
        clean = Image.fromarray(np.ascontiguousarray(getattr(photographs, name)()[100:196, 150:278]))
        for side, picture in (("in", clean.point(lambda grey: grey // 3)), ("gt", clean)):
            (tmp_path / "raw" / side).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path / "raw" / side / f"{number}{name}.png")
    return tmp_path / "raw"


def mirage(*words: str | Path, status: int = 0) -> str:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    assert ended.exit_code == status, ended.output
    return str(ended.output)


def pack(raw: Path, out: Path, *more: str) -> str:
    patterns = ("--degraded", "in/{key}.png", "--clean", "gt/{key}.png", "--degradation", "lowlight")
    return mirage("pack", "pairs", "--root", raw, "--out", out, "--processes", "1", *patterns, *more)


def test_a_folder_of_pairs_is_packed_shown_and_verified(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    assert "train lowlight" in pack(raw, out, "--licence", "CC0, me")
    text = mirage("show", out, "--out", tmp_path / "sheet.png")
    assert "CC0, me" in text
    assert "128 x 96" in text
    assert "dB" in text
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 6 * 128
    assert "5 images" not in text
    assert "10 images against manifest" in mirage("verify", out, "--decode", "--processes", "1")
    shard = next((out / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptObjectError, match=shard.name):
        mirage("verify", out, "--processes", "1")


def test_a_stream_is_a_webdataset_pipe_of_png_images(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "mine", "--held-out-share", "0.2")
    command = f"{sys.executable} -m orchestrator stream {tmp_path / 'mine'} --split train"
    samples = list(webdataset.WebDataset(f"pipe:{command}", shardshuffle=False).decode("rgb8"))
    assert [sample["json"]["id"] for sample in samples] == [f"in/{n}{name}" for n, name in enumerate(NAMES)]
    for sample in samples:
        name = Path(sample["json"]["id"]).name
        for side, suffix in (("in", "degraded.png"), ("gt", "clean.png")):
            with Image.open(raw / side / f"{name}.png") as original:
                np.testing.assert_array_equal(sample[suffix], np.asarray(original))

    reader_stops = subprocess.Popen(command.split(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert reader_stops.stdout is not None
    assert reader_stops.stdout.read(512).startswith(b"000000-")
    reader_stops.stdout.close()
    assert reader_stops.communicate()[1] == b""
    assert reader_stops.returncode == 141  # what webdataset takes for a pipe that was closed


def test_a_photograph_on_both_sides_is_pictured_and_fails_the_audit(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "all")
    picture = tmp_path / "audit.png"
    text = mirage("audit", tmp_path / "all", "--out", picture, "--processes", "1")
    assert "3cat" in text
    assert "4cat" in text
    assert "1 groups of photographs (1 with equal pixels), 0 between train and test; 2 photographs in" in text
    with Image.open(picture) as sheet:
        assert sheet.width > 2 * 128

    pack(raw, tmp_path / "half", "--held-out-share", "0.2")  # the last one: the cat's second copy
    text = mirage("audit", tmp_path / "half", "--out", picture, "--processes", "1", status=1)
    assert "LEAK" in text
    assert "1 test samples show training photographs" in text


def test_gc_changes_nothing_until_it_is_asked_to(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "mine")
    orphan = tmp_path / "mine" / "shards" / f"{'0' * 64}.tar"
    orphan.write_bytes(b"orphan")
    assert "it may be in use" in mirage("gc", tmp_path / "mine").replace("\n", " ")
    text = mirage("gc", tmp_path / "mine", "--older-than-hours", "0")
    assert f"shards/{orphan.name}   shard in no manifest" in text
    assert "nothing was deleted" in text
    assert orphan.exists()
    assert "deleted 1" in mirage("gc", tmp_path / "mine", "--older-than-hours", "0", "--delete")
    assert not orphan.exists()
    mirage("verify", tmp_path / "mine", "--processes", "1")


def test_nothing_is_overwritten_and_nothing_asked_for_is_left_out(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "mine")
    with pytest.raises(PlanError, match="jpeg 'kept', not 'tiled'"):
        pack(raw, tmp_path / "mine", "--jpeg", "tile")
    with pytest.raises(PlanError, match="pairs have one degradation, and 2 are named: lowlight, haze"):
        pack(raw, tmp_path / "other", "--degradation", "haze")


@pytest.mark.parametrize("word", ["keep", "crop", "tile"])
@pytest.mark.skipif(  # never in CI, where jpegtran is installed
    jpeg_intervals.tool() is None and "CI" not in os.environ, reason="jpegtran is not installed here"
)
def test_a_dataset_is_used_as_its_jpeg_files_were_stored_whatever_the_default_is(
    raw: Path, tmp_path: Path, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (raw / "gt").iterdir():
        Image.open(file).save(file.with_suffix(".jpg"))
    patterns = ("--clean", "gt/{key}.jpg", "--jpeg", word)
    text = pack(raw, tmp_path / "mine", *patterns)
    before = load_manifest(LocalStore(tmp_path / "mine"))
    said = {"keep": "", "crop": "JPEG files cut for crops take", "tile": "JPEG files as tiles take"}[word]
    assert said in text
    stored = {"keep": "original", "crop": jpeg_intervals.NAME, "tile": "tiles-qoi"}[word]
    assert {row.clean.encoding for row in before.rows} == {stored}
    if word == "tile":
        with pytest.raises(PlanError, match="jpeg 'tiled', not 'cut'"):
            pack(raw, tmp_path / "mine", *patterns[:2])
        return
    text = pack(raw, tmp_path / "mine", *patterns[:2])
    assert "already packed" in text
    assert (word == "keep") == ("each crop decodes its whole file: pack under another name" in text)
    text = pack(raw, tmp_path / "mine", *patterns[:2], "--licence", "CC0, me")
    assert "already packed" not in text
    assert (word == "keep") == ("each crop decodes its whole file: pack under another name" in text)
    after = load_manifest(LocalStore(tmp_path / "mine"))
    assert after.shards == before.shards  # packed again for the licence, with the same bytes

    monkeypatch.setenv("PATH", str(tmp_path / "no programs"))
    again = (*patterns[:2], "--licence", "CC0, you")
    if word == "crop":
        with pytest.raises(
            ToolError, match=r"jpegtran, which is not installed here\. Nothing is overwritten"
        ):
            pack(raw, tmp_path / "mine", *again)
        assert load_manifest(LocalStore(tmp_path / "mine")) == after
        assert "already packed" in pack(raw, tmp_path / "mine", *patterns[:2], "--licence", "CC0, me")
    else:
        assert "already packed" not in pack(raw, tmp_path / "mine", *again)


def test_a_licence_that_was_not_stated_is_added(raw: Path, tmp_path: Path) -> None:
    pack(raw, tmp_path / "mine")
    assert "already packed" in pack(raw, tmp_path / "mine")
    assert "already packed" not in pack(raw, tmp_path / "mine", "--licence", "CC0, me")
    assert "CC0, me" in mirage("show", tmp_path / "mine", "--out", tmp_path / "sheet.png")


def test_a_dataset_from_before_the_field_split_names_the_way_out() -> None:
    assert "rename the field" in datasets._way_out({"held_out": "{split}"}, {"held_out": 0.0})
    assert datasets._way_out({"held_out": 0.1}, {"held_out": 0.0}) == ""


def test_a_dataset_that_is_not_whole_is_one_report(raw: Path, tmp_path: Path) -> None:
    (raw / "gt" / "2coffee.png").unlink()
    with pytest.raises(PackError, match=r"in/2coffee.png \(looked for gt/2coffee.png\)"):
        pack(raw, tmp_path / "mine")
    assert not (tmp_path / "mine" / "manifest").exists()
    assert "left out: Degraded images without a clean one (1)." in pack(
        raw, tmp_path / "mine", "--allow-partial"
    )
    # What was left out is tried again.
    assert "already packed" not in pack(raw, tmp_path / "mine", "--allow-partial")
    shown = mirage("show", tmp_path / "mine", "--out", tmp_path / "sheet.png")
    assert "left out   Degraded images without a clean one (1). in/2coffee.png" in shown


def test_cdd11_is_shown_beside_its_published_input_psnr() -> None:
    image = Member(0, 0, 1, 0, "tiles-qoi", 720, 1080)
    rows = (ManifestRow("1", "test", "low_haze", image, image, "CDD-11_test"),)
    facts = {"source": "cdd11", "input_psnr": {"test": {"low_haze": 14.93}}}
    text = describe("here", Manifest("cdd11", (Shard("shards/ab.tar", 1, "ab"),), rows, {}, facts))
    assert "14.93 dB" in text
    assert "low_haze 14.94" in text


def test_the_held_out_photographs_are_named_and_the_ids_of_all_samples_can_be_listed(
    raw: Path, tmp_path: Path
) -> None:
    pack(raw, tmp_path / "mine", "--held-out", "0astronaut")
    text = mirage("show", tmp_path / "mine", "--out", tmp_path / "sheet.png")
    (held_out,) = re.findall("held out   (.*)", text)
    lines = [line.split() for line in mirage("show", tmp_path / "mine", "--ids").splitlines()]
    assert [id_ for split, _, id_ in lines if split == "test"] == [held_out]
    assert (held_out[-10:], len(lines), {kind for _, kind, _ in lines}) == ("0astronaut", 5, {"lowlight"})


def test_of_many_held_out_photographs_a_description_names_a_few() -> None:
    image = Member(0, 0, 1, 0, "tiles-qoi", 720, 1080)
    rows = tuple(ManifestRow(f"{n:02}", "test", "rain", image, image, "") for n in range(11))
    text = describe("here", Manifest("mine", (Shard("shards/ab.tar", 1, "ab"),), rows, {}, {}))
    assert "held out   00, 01, 02, 03, 04, 05, 06, 07 and 3 more: --ids" in text


def test_noise_that_is_added_when_read_is_shown_at_a_stated_level_in_a_sheet_of_this_project(
    small_data: Dataset, at_home: Path, tmp_path: Path, monkeypatch
) -> None:
    rows = small_data.rows("train", "noise")
    for number, level in enumerate(SIGMA):
        example = summary._example(small_data, rows[0], number)
        assert example.caption.startswith(f"{level}, ")
        spread = float((example.degraded.astype(float) - example.clean).std())
        assert spread == pytest.approx(SIGMA[level], rel=0.25)
        assert (example.degraded == summary._example(small_data, rows[0], number).degraded).all()
    monkeypatch.chdir(tmp_path)
    shown = mirage("show", small_data.uris[0])
    assert re.search(r"train +noise .* added when read\n", shown)
    sheet = at_home / "sheets" / f"{small_data.manifests[0].name}.png"
    assert f"sheet      {sheet}" in shown
    assert sheet.is_file()
    assert not list(tmp_path.iterdir())
