"""`mirage restore` restores every photograph once and never replaces one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mirage import MIRAGE
from orchestrator.imaging.formats import identify
from orchestrator.imaging.photos import decode, encode
from orchestrator.restoration import tasks
from orchestrator.restoration.locations import find_photographs
from orchestrator.restoration.restorer import Restorer
from orchestrator.restoration.result_index import FOLDER, ResultIndex, ResultRecord
from shards.errors import StoreError
from shards.store import LocalStore, S3Store, open_store
from tests.claims import Finished, assert_one_clear_error, modification_times, wait_until

RESULTS = ["alpha.png", "deep.png", "deep.tif", "grey.png", "trip/turned.jpg", "turned.jpg"]
Command = Callable[..., Finished]


def files(folder: Path) -> list[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if not name.startswith(FOLDER))


def times(folder: Path) -> dict[str, int]:
    return {name: at for name, at in modification_times(folder).items() if not name.startswith(FOLDER)}


def test_a_folder_is_restored_with_all_formats_tags_and_depths(
    folder: Path, restore: Command, model: MIRAGE
) -> None:
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    done = restore("in", "-o", "out")
    assert done.status == 0, done.text
    assert "6 restored" in done.text
    out = folder.parent / "out"
    assert files(out) == RESULTS
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before
    with Image.open(out / "turned.jpg") as image, Image.open(folder / "turned.jpg") as given:
        assert image.getexif()[274] == 6
        assert image.info["icc_profile"] == given.info["icc_profile"]
        assert image.size == given.size
    assert imagecodecs.png_decode((out / "deep.png").read_bytes()).dtype == np.uint16
    assert imagecodecs.tiff_decode((out / "deep.tif").read_bytes()).dtype == np.uint16
    with Image.open(out / "grey.png") as grey, Image.open(out / "alpha.png") as alpha:
        assert (grey.mode, alpha.mode) == ("L", "RGBA")
        assert set(np.asarray(alpha)[..., 3].flat) == {77}
    restorer = Restorer(model)
    for name in RESULTS:
        photo = decode(before[name], name)
        assert (out / name).read_bytes() == encode(restorer.pixels(photo), photo)


def test_existing_results_are_skipped_and_missing_ones_restored(folder: Path, restore: Command) -> None:
    restore("in", "-o", "out")
    out = folder.parent / "out"
    first = times(out)
    again = restore("in", "-o", "out")
    assert "0 restored, 6 already restored" in again.text
    assert times(out) == first
    (out / "grey.png").unlink()
    assert "1 restored, 5 already restored" in restore("in", "-o", "out").text
    assert {name: at for name, at in times(out).items() if name != "grey.png"} == {
        name: at for name, at in first.items() if name != "grey.png"
    }


def test_a_name_that_is_no_utf8_is_restored_once(folder: Path, restore: Command) -> None:
    odd = folder / os.fsdecode(b"caf\xe9.png")
    odd.write_bytes((folder / "grey.png").read_bytes())
    first, second = (restore(f"in/{odd.name}", "in/grey.png", "-o", "out") for _ in range(2))
    assert (first.status, second.status) == (0, 0), first.text + second.text
    assert "2 restored" in first.text
    assert second.text.count("is already restored") == 2
    assert (folder.parent / "out" / odd.name).is_file()


def test_the_index_is_read_completely_while_another_process_merges_it(tmp_path: Path) -> None:
    class Disturbed(LocalStore):
        """Another command merges right after the first listing."""

        merged = False

        def list(self, prefix: str = "") -> list[str]:
            keys = super().list(prefix)
            if not self.merged:
                self.merged = True
                ResultIndex(LocalStore(tmp_path)).merge()
            return keys

    records = [ResultRecord(f"{name}.png", "photograph", "settings", "result") for name in "ab"]
    for record in records:
        ResultIndex(LocalStore(tmp_path)).add([record])
    assert ResultIndex(Disturbed(tmp_path)).read() == {record.name: (record,) for record in records}


def test_the_index_of_a_finished_command_is_one_file(folder: Path, restore: Command) -> None:
    restore("in", "-o", "out")
    assert len(list((folder.parent / "out" / FOLDER).glob("*.jsonl"))) == 1


def test_one_object_records_many_results(
    folder: Path, restore: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(10):
        Image.fromarray(np.full((9, 9, 3), index, np.uint8)).save(folder / f"plain{index:02}.png")
    monkeypatch.setattr(tasks, "merge_indexes", lambda tasks: None)
    monkeypatch.setattr(tasks, "MAX_WAITING_SECONDS", 1e9)
    monkeypatch.setattr(tasks, "MAX_WAITING_RESULTS", 8)
    assert "16 restored" in restore("in", "-o", "out").text
    # The first result is not kept waiting; then 8 and the 7 that are left.
    records = sorted((folder.parent / "out" / FOLDER).glob("*.jsonl"))
    assert sorted(len(path.read_text().splitlines()) for path in records) == [1, 7, 8]
    assert "0 restored, 16 already restored" in restore("in", "-o", "out").text


def test_a_stopped_command_writes_what_it_has_restored(
    folder: Path, restore: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_WAITING_SECONDS", 1e9)
    read, seen = LocalStore.read, []

    def interrupt(self: LocalStore, key: str) -> bytes:
        seen.append(key)
        if key == "turned.jpg" and len(seen) > 3:
            raise KeyboardInterrupt
        return read(self, key)

    with monkeypatch.context() as patched:
        patched.setattr(LocalStore, "read", interrupt)
        assert restore("in", "-o", "out").status not in (0, None)
    written = files(folder.parent / "out")
    assert 3 <= len(written) < 6
    assert f"{6 - len(written)} restored, {len(written)} already restored" in restore("in", "-o", "out").text


@pytest.mark.parametrize("change", ["settings", "photograph", "stranger", "damage"])
def test_another_file_at_the_target_is_replaced_only_with_overwrite(
    folder: Path, restore: Command, change: str
) -> None:
    restore("in/grey.png", "-o", "out")
    result = folder.parent / "out" / "grey.png"
    options = ["--tile", "16"] if change == "settings" else []
    if change == "photograph":
        (folder / "grey.png").write_bytes((folder / "alpha.png").read_bytes())
    if change == "stranger":
        result.write_bytes(b"somebody's only copy")
        (result.parent / FOLDER).rename(folder.parent / "elsewhere")
    if change == "damage":
        result.write_bytes(result.read_bytes()[:-1])
    before = result.read_bytes()
    refused = restore("in/grey.png", "-o", "out", *options)
    assert refused.status == 1
    assert "grey.png: " in refused.text
    assert refused.text.rstrip().endswith("--overwrite.")
    assert result.read_bytes() == before
    assert restore("in/grey.png", "-o", "out", "--overwrite", *options).status == 0
    assert result.read_bytes() != before
    assert "already restored" in restore("in/grey.png", "-o", "out", *options).text


BAD = {
    "text.jpg": (b"no photograph", "not a JPEG"),
    "cut.jpg": (None, "damaged or incomplete"),
    "empty.png": (b"", "not a JPEG"),
}


def test_a_file_that_is_no_image_is_reported_and_the_others_are_restored(
    folder: Path, restore: Command
) -> None:
    for name, (content, _) in BAD.items():
        cut = (folder / "turned.jpg").read_bytes()[:-400]
        (folder / name).write_bytes(cut if content is None else content)
    done = restore("in", "missing.jpg", "nothing*.png", "-o", "out")
    assert done.status == 1
    for name, (_, reason) in BAD.items():
        assert f"in/{name}: {reason}" in done.text
    assert "missing.jpg: no such file or folder." in done.text
    assert "nothing*.png: matches no photograph." in done.text
    assert "6 restored, 5 failed" in done.text
    assert files(folder.parent / "out") == RESULTS


def test_a_photograph_is_never_replaced(folder: Path, restore: Command) -> None:
    (folder.parent / "link").symlink_to(folder)
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    for arguments in (
        ("in", "-o", "in"),
        ("in", "-o", "link", "--overwrite"),
        ("in/grey.png", "-o", "link/grey.png", "--overwrite"),
        ("in/grey.png", "in/deep.png", "-o", "in", "--overwrite"),
    ):
        done = restore(*arguments)
        assert done.status == 2
        assert "is the photograph itself" in done.text
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_a_hard_link_to_a_photograph_is_replaced_without_changing_the_photograph(
    folder: Path, restore: Command
) -> None:
    (folder.parent / "out").mkdir()
    os.link(folder / "grey.png", folder.parent / "out" / "grey.png")
    before = (folder / "grey.png").read_bytes()
    assert restore("in/grey.png", "-o", "out").status == 1
    assert restore("in/grey.png", "-o", "out", "--overwrite").status == 0
    assert (folder / "grey.png").read_bytes() == before


def test_one_name_in_two_folders_makes_two_results(folder: Path, restore: Command) -> None:
    done = restore("in/turned.jpg", "in/trip/turned.jpg", "in/trip", "-o", "out")
    assert done.status == 0, done.text
    assert files(folder.parent / "out") == ["trip/turned.jpg", "turned.jpg"]


def test_without_out_a_result_is_beside_its_photograph_and_no_input_next_time(
    folder: Path, restore: Command
) -> None:
    assert "1 restored" not in restore("in/grey.png").text  # one photograph needs no summary
    assert (folder / "grey.restored.png").is_file()
    done = restore("in")
    assert "5 restored, 1 already restored" in done.text
    assert "0 restored, 6 already restored" in restore("in").text


def test_results_below_their_input_folder_are_no_inputs(folder: Path, restore: Command) -> None:
    assert "6 restored" in restore("in", "-o", "in/results").text
    assert "0 restored, 6 already restored" in restore("in", "-o", "in/results").text


def test_a_file_as_out_chooses_the_format(folder: Path, restore: Command) -> None:
    assert restore("in/deep.tif", "-o", "new/b.png").status == 0
    assert imagecodecs.png_decode((folder.parent / "new" / "b.png").read_bytes()).dtype == np.uint16
    assert "has transparency" in restore("in/alpha.png", "-o", "b.jpg").text
    assert (
        "names a file, and there are 2 photographs" in restore("in/*.tif", "in/grey.png", "-o", "c.png").text
    )
    assert "a result ends in one of" in restore("in/grey.png", "-o", "c.heic").text


@pytest.mark.parametrize("given", ["missing.png", "empty", "*.gif", "~nobody-of-that-name/a.png"])
def test_a_file_as_out_without_a_photograph_is_one_error(folder: Path, restore: Command, given: str) -> None:
    (folder.parent / "empty").mkdir()
    done = restore(given, "-o", "out.png")
    assert_one_clear_error(done, f"{given}: ")
    assert not (folder.parent / "out.png").exists()


def test_a_problem_of_one_result_does_not_hinder_the_others(folder: Path, restore: Command) -> None:
    (folder.parent / "out").mkdir()
    (folder.parent / "out" / "trip").write_text("a file where a folder is needed")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / f"{'x' * 245}.png")
    done = restore("in", "-o", "out")
    assert done.status == 1
    assert "out/trip/turned.jpg: " in done.text
    assert "6 restored, 1 failed" in done.text
    beside = restore("in")  # NAME.restored.png is longer than a file system allows
    assert beside.status == 1
    assert "6 restored, 1 failed" in beside.text


def test_pictures_of_other_formats_are_named_at_the_end(folder: Path, restore: Command) -> None:
    for name in ("a.PSD", "trip/b.jp2", "c.cr2", "d.jxl"):
        (folder / name).write_bytes(b"any")
    done = restore("in", "-o", "out")
    assert done.status == 0, done.text
    assert (
        "not read, since of another format: in/a.PSD, in/c.cr2, in/d.jxl, in/trip/b.jp2.\n6 restored"
        in done.text
    )
    named = restore("in/a.PSD", "-o", "out")
    assert_one_clear_error(named, "in/a.PSD: not a JPEG, PNG, TIFF, WebP, BMP, AVIF, GIF or HEIC file")


def test_results_of_formats_that_are_not_written_are_png_under_names_of_their_own(
    folder: Path, restore: Command
) -> None:
    for name in ("same.png", "same.gif", "same.avif", "web.jpg"):
        kind = {".gif": "GIF", ".png": "PNG"}.get(Path(name).suffix, "AVIF")
        Image.fromarray(np.full((9, 9, 3), 90, np.uint8)).save(folder / name, kind)
    assert restore("in/same.*", "in/web.jpg", "-o", "out").status == 0
    results = {
        path.name: identify(path.read_bytes(), "") for path in folder.parent.glob("out/*.*") if path.is_file()
    }
    assert results == {"same.png": "PNG", "same.gif.png": "PNG", "same.avif.png": "PNG", "web.jpg": "JPEG"}
    assert "3 already restored" in restore("in/same.*", "-o", "out").text
    assert restore("in/same.avif").status == 0
    assert (folder / "same.avif.restored.png").exists()
    (folder / "same.gif.png").write_bytes((folder / "same.png").read_bytes())
    assert_one_clear_error(
        restore("in/same.*", "-o", "twice"), "twice/same.gif.png: is the result of 2 photographs"
    )
    assert_one_clear_error(restore("in/same.gif", "-o", "a.gif"), "a result ends in one of")


def test_what_another_format_does_not_keep_is_said_once(folder: Path, restore: Command) -> None:
    text = PngInfo()
    text.add_text("Author", "me")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "said.png", pnginfo=text)
    done = restore("in/said.png", "-o", "out.jpg")
    assert done.status == 0
    assert done.text.count("in/said.png: not kept in the JPEG: texts.") == 1
    assert "not kept" not in restore("in/said.png", "-o", "out.png").text


def test_a_wrong_suffix_does_not_change_the_format(folder: Path, restore: Command) -> None:
    (folder / "grey.png").rename(folder / "grey.jpg")
    assert restore("in/grey.jpg", "-o", "out").status == 0
    with Image.open(folder.parent / "out" / "grey.jpg") as image:
        assert image.format == "PNG"


def test_an_out_that_cannot_be_written_is_an_error_before_any_work(folder: Path, restore: Command) -> None:
    (folder.parent / "file").write_text("in the way")
    done = restore("in", "-o", "file/out")
    assert_one_clear_error(done, "file/out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")  # the test above covers root
def test_a_read_only_folder_is_an_error_before_any_work(folder: Path, restore: Command) -> None:
    (folder.parent / "out").mkdir(mode=0o555)
    done = restore("in", "-o", "out")
    assert_one_clear_error(done, "permission denied")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mode", "fast"], "mode fast: must be one of auto, whole, strips, tiles."),
        (["--precision", "fp16"], "precision fp16: must be one of fp32, bf16."),
        (["--device", "tpu"], "device tpu is not available here. Known: auto, cpu, cuda."),
        (["--tile", "100"], "tile 100: must be a multiple of 8 pixels, for example 96."),
        (
            ["--tile", "64", "--mode", "strips"],
            "--tile and --overlap go with --mode tiles, not with --mode strips.",
        ),
        (
            ["--sheet", "sheet.jpg"],
            "--sheet sheet.jpg: the sheet is a PNG file. Its name must end in .png.",
        ),
        (
            ["--sheet", "in/deep.png"],
            "--sheet in/deep.png is one of the photographs. Choose another name.",
        ),
        (
            ["--sheet", "out/deep.png"],
            "--sheet out/deep.png is one of the results. Choose another name.",
        ),
    ],
)
def test_a_wrong_option_is_one_line_and_restores_nothing(
    folder: Path, restore: Command, options: list[str], message: str
) -> None:
    done = restore("in", "-o", "out", *options)
    assert (done.status, done.text.strip()) == (2, message)
    assert files(folder.parent / "out") == []


def test_a_missing_model_leaves_nothing_behind(folder: Path, restore: Command) -> None:
    done = restore("in", "-o", "out", model="no-such-run")
    assert done.status == 2
    assert done.text.startswith("no-such-run: no such file, and no run of that name")
    assert sorted(path.name for path in folder.parent.iterdir()) == ["in"]


def test_compare_shows_photographs_beside_their_results_upright(folder: Path, restore: Command) -> None:
    done = restore("in", "-o", "out", "--sheet", "sheet.png")
    assert "before and after: sheet.png" in done.text
    with Image.open(folder.parent / "sheet.png") as sheet:
        everything = np.asarray(sheet)
    assert restore("in/turned.jpg", "-o", "out", "--sheet", "one.png").status == 0  # of a result that is done
    with Image.open(folder.parent / "one.png") as sheet:
        one = np.asarray(sheet)
    assert len(everything) > 5 * len(one) / 2
    inked = np.flatnonzero((one != 255).any(2).any(1))
    tall = inked[-1] - inked[0]
    assert tall > 34 * (640 // 34) * 0.9  # 34 wide as stored, 34 tall as shown


def test_bf16_and_strips_change_the_digest_of_the_settings(folder: Path, restore: Command) -> None:
    plain = folder.parent / "a" / "grey.png"
    restore("in/grey.png", "-o", "a")
    for name, options in (("b", ["--precision", "bf16"]), ("c", ["--mode", "strips"])):
        assert restore("in/grey.png", "-o", name, *options).status == 0
        with Image.open(folder.parent / name / "grey.png") as image, Image.open(plain) as exact:
            apart = np.abs(np.asarray(image, np.int16) - np.asarray(exact, np.int16))
        assert apart.max() <= (1 if name == "c" else 20)


def test_one_photograph_of_a_bucket_needs_no_right_to_list_it(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket).write("raw/a.png", b"pixels")

    def denied(*_: object) -> list[str]:
        raise StoreError("access denied: it needs the right s3:ListBucket")

    monkeypatch.setattr(S3Store, "list", denied)
    (photo,) = find_photographs([f"{bucket}/raw/a.png"], "out").photos
    assert photo.location.store.read(photo.location.key) == b"pixels"
    with pytest.raises(StoreError):
        find_photographs([f"{bucket}/raw"], "out")


def test_inputs_and_results_can_be_in_a_bucket(folder: Path, restore: Command, bucket: str) -> None:
    store = open_store(bucket)
    for name in files(folder):
        store.write(f"raw/{name}", (folder / name).read_bytes())
    store.write("rawer/b.png", b"beside the prefix, not below it")
    done = restore(f"{bucket}/raw", "-o", f"{bucket}/restored")
    assert done.status == 0, done.text
    restored = [key for key in store.list("restored/") if FOLDER not in key]
    assert restored == [f"restored/{name}" for name in RESULTS]
    assert restore("in", "-o", "out").status == 0
    for name in RESULTS:
        assert store.read(f"restored/{name}") == (folder.parent / "out" / name).read_bytes()
    assert "0 restored, 6 already restored" in restore(f"{bucket}/raw", "-o", f"{bucket}/restored").text
    assert restore(f"{bucket}/raw/*.png", f"{bucket}/raw/trip/turned.jpg", "-o", "mixed").status == 0
    assert files(folder.parent / "mixed") == ["alpha.png", "deep.png", "grey.png", "turned.jpg"]
    refused = restore(f"{bucket}/raw", "-o", f"{bucket}/raw")
    assert "is the photograph itself" in refused.text
    assert "matches no photograph" in restore(f"{bucket}/none", "-o", "none").text


def test_a_killed_command_continues_and_loses_no_result(folder: Path, weights: str) -> None:
    for index in range(12):
        Image.fromarray(np.full((160, 200, 3), index, np.uint8)).save(folder / f"plain{index:02}.png")
    # Results are written by twos, so that some are written and others wait when the process is killed.
    start = "from orchestrator.restoration import tasks; tasks.MAX_WAITING_RESULTS = 2; "
    start += "from orchestrator.cli import main; main()"
    command = [sys.executable, "-c", start, "restore", "in", "-o", "out", "-m", weights]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    out = folder.parent / "out"

    def has_begun() -> bool:
        assert process.poll() is None
        return out.is_dir() and len([name for name in files(out) if ".tmp-" not in name]) >= 3

    wait_until(has_begun, "three photographs are restored", seconds=120, every=0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = times(out)
    assert 3 <= len([name for name in left if ".tmp-" not in name]) < 18
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert ", 0 done" not in again.stdout
    kept = {name: at for name, at in left.items() if ".tmp-" not in name}
    assert {name: at for name, at in times(out).items() if name in kept} == kept
    assert len([name for name in files(out) if ".tmp-" not in name]) == 18
