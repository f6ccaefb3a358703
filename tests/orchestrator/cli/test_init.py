"""`mirage init` writes a job file that `mirage plan` accepts, for own photographs and for own pairs."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.config.loader import load_job
from orchestrator.config.schema import Job
from orchestrator.config.starter import FIRST_LINE, submit_problem
from orchestrator.data.sources import source_of
from tests.claims import assert_one_clear_error, mirage


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder with twenty clean photographs, which are also ten pairs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    for side in ("in", "gt"):
        (tmp_path / "photos" / side).mkdir(parents=True)
        for number in range(10):
            pixels = np.random.default_rng(number).integers(0, 256, (96, 112, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / side / f"{number}.png")
    return tmp_path


PAIRS = ("--degraded", "in/{key}.png", "--clean", "gt/{key}.png", "--degradation", "rain")


def loaded(path: str) -> Job:
    job = load_job(path)
    assert isinstance(job, Job)
    return job


@pytest.mark.parametrize(
    "options",
    [
        ("--degradation", "rain", "--degradation", "noise25"),
        ("--degradation", "real_esrgan", "--degradation", "noise25"),
        PAIRS,
        (*PAIRS, "--gpu", "--steps", "20"),
    ],
    ids=["photographs", "preset", "pairs", "gpu"],
)
def test_a_plan_of_the_written_job_passes(options: tuple[str, ...]) -> None:
    written = mirage("init", "mine", "--root", "photos", *options)
    assert written.status == 0, written.text
    planned = mirage("plan", "jobs/mine.yaml")
    assert planned.status == 0, planned.text
    assert "registers  mine" in planned.text
    warnings = [line for line in planned.text.splitlines() if line.startswith("warning")]
    assert [line for line in warnings if "a batch repeats samples" not in line] == []
    assert bool(warnings) == ("--gpu" in options)  # its batch of 32 is larger than these few pairs


@pytest.mark.parametrize("pairs", [2, 3, 7])
def test_a_few_pairs_are_divided_too(project: Path, pairs: int) -> None:
    for file in [*project.glob("photos/*/*.png")]:
        if int(file.stem) >= pairs:
            file.unlink()
    assert mirage("init", "mine", "--root", "photos", *PAIRS).status == 0
    planned = mirage("plan", "jobs/mine.yaml")
    assert planned.status == 0, planned.text
    assert re.search(rf"rain +{pairs - max(1, pairs // 5)} x", planned.text)


def own_split(project: Path) -> None:
    """Divide the pairs into train/ and val/."""
    for side in ("in", "gt"):
        for file in sorted((project / "photos" / side).iterdir()):
            folder = project / "photos" / ("val" if int(file.stem) >= 7 else "train") / side
            folder.mkdir(parents=True, exist_ok=True)
            file.rename(folder / file.name)


SPLIT = ("--degraded", "{split}/in/{key}.png", "--clean", "{split}/gt/{key}.png", "--degradation", "phone")


def test_an_own_split_is_kept_in_the_job_in_its_plan_and_in_the_packed_data(project: Path) -> None:
    own_split(project)
    done = mirage("init", "mine", "--root", "photos", *SPLIT)
    assert done.status == 0, done.text
    pack = loaded("jobs/mine.yaml").data.pack
    assert pack is not None
    assert (pack.held_out, pack.held_out_share) == ((), 0.0)
    assert "phone           7 x" in mirage("plan", "jobs/mine.yaml").text
    packed = mirage("pack", "pairs", "--root", "photos", *SPLIT, "-o", "packed", "--processes", "1")
    assert "test  phone               3" in packed.text


@pytest.mark.parametrize("key", ["held_out_share=0.2", "held_out=[x]"])
def test_a_second_way_to_divide_is_refused_by_its_key(project: Path, key: str) -> None:
    own_split(project)
    mirage("init", "mine", "--root", "photos", *SPLIT)
    done = mirage("plan", "jobs/mine.yaml", "--set", f"data.pack.{key}")
    assert done.status == 2
    assert re.search(
        rf"  data.pack.{key.partition('=')[0]}  .*{{split}} in a pattern divides them", done.text
    )


def test_photographs_for_evaluation_can_be_listed_in_a_file() -> None:
    Path("keep.txt").write_text("3.png\n7.png\n")
    for root, options in (("photos/gt", ("--degradation", "rain")), ("photos", PAIRS)):
        Path("jobs/mine.yaml").unlink(missing_ok=True)
        written = mirage("init", "mine", "--root", root, *options, "--held-out", "@keep.txt")
        assert written.status == 0, written.text
        source = source_of(loaded("jobs/mine.yaml").data.pack)
        assert {pair.id[-1] for pair in source if pair.split == "test"} == {"3", "7"}


def test_the_written_job_can_be_submitted_as_it_is() -> None:
    mirage("init", "mine", "--root", "photos", *PAIRS)
    path = Path("jobs/mine.yaml")
    assert path.read_text().splitlines()[0] == FIRST_LINE
    assert os.access(path, os.X_OK)
    assert submit_problem(path) == ""


def test_every_fifth_photograph_is_kept_for_evaluation() -> None:
    mirage("init", "mine", "--root", "photos", "--degradation", "rain")
    pack = loaded("jobs/mine.yaml").data.pack
    assert pack is not None
    assert pack.held_out == ("gt/0", "gt/5", "in/0", "in/5")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--root is missing"),
        (("--root", "photos"), "--degradation is missing"),
        (("--root", "nowhere", "--degradation", "rain"), "--root nowhere: no such folder"),
        (("--root", "photos", *PAIRS, "--held-out", "x"), "held_out names x, which is not among"),
        (("--root", "photos", "--degraded", "{split}/{key}.png", *PAIRS[2:]), "{split} is gt, in"),
        (("--root", "photos", "--degraded", "no/{key}.png", *PAIRS[2:]), "no files match"),
        (("--root", "photos", "--degraded", "in/{key}.png"), "--degraded and --clean belong together"),
        (
            ("--root", "photos", *PAIRS, "--degradation", "haze"),
            "pairs have one degradation, and 2 are named",
        ),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(options: tuple[str, ...], message: str) -> None:
    assert_one_clear_error(mirage("init", "mine", *options), message)
    assert not Path("jobs/mine.yaml").exists()


def test_an_unknown_degradation_is_refused_with_the_known_ones() -> None:
    done = mirage("init", "mine", "--root", "photos", "--degradation", "rane")
    assert done.status == 2
    assert 'Did you mean "rain"' in done.text
    assert not Path("jobs/mine.yaml").exists()


def test_a_preset_degrades_photographs_while_they_are_read() -> None:
    options = ("--degradation", "noise25", "--degradation", "real_esrgan")
    assert mirage("init", "mine", "--root", "photos", *options).status == 0
    job = loaded("jobs/mine.yaml")
    assert job.evaluate.degradations == ("like_real_esrgan", "noise25")
    assert load_job("jobs/mine.yaml", ["degradations.like_real_esrgan=[{use: real_esrgan}]"]) == job
    assert job.data.pack is not None
    assert job.data.pack.source == "clean"


def test_a_preset_beside_a_packed_degradation_is_refused() -> None:
    options = ("--degradation", "rain", "--degradation", "real_esrgan")
    assert_one_clear_error(
        mirage("init", "mine", "--root", "photos", *options),
        "--degradation rain",
        "beside a preset (real_esrgan)",
    )
    assert not Path("jobs/mine.yaml").exists()


OWN = ("--root", "photos", *PAIRS[:-1])


def test_pairs_may_have_a_degradation_with_an_own_name() -> None:
    assert mirage("init", "mine", *OWN, "phone_2").status == 0
    job = loaded("jobs/mine.yaml")
    assert job.data.mixture.keys() == {"phone_2"}
    assert job.evaluate.degradations == ("phone_2",)
    assert "phone_2" in mirage("plan", "jobs/mine.yaml").text


@pytest.mark.parametrize(
    "name",
    [
        "Phone",
        "2phones",
        "my phone",
        "noise",
        "average",
        "noise25",
        "a" * 33,
        "-1",
        "ph.1",
        "a: b",
        "a, b",
        "",
    ],
)
def test_an_own_name_that_files_and_tables_cannot_hold_is_refused(name: str) -> None:
    done = mirage("init", "mine", *OWN, name)
    assert done.status == 2
    assert "degradation" in done.text
    assert "Traceback" not in done.text
    assert not Path("jobs/mine.yaml").exists()


@pytest.mark.parametrize("key", ["data.mixture={phnoe: 1}", "evaluate.degradations=[phnoe]"])
def test_a_name_that_the_own_pairs_do_not_have_is_refused(key: str) -> None:
    mirage("init", "mine", *OWN, "phone")
    done = mirage("plan", "jobs/mine.yaml", "--set", key)
    assert done.status == 2
    assert 'Did you mean "phone"' in done.text


def test_a_published_setting_has_no_own_names() -> None:
    mirage("init", "mine", *OWN, "phone")
    done = mirage("plan", "jobs/mine.yaml", "--set", "setting=5deg", "--set", "data.pack=null")
    assert '"phone" is neither a known degradation' in done.text


@pytest.mark.parametrize("name", ["2024", "1.5", "null", "true", "on", "a-b_c.d"])
def test_a_name_that_yaml_could_read_as_another_value_stays_that_name(name: str) -> None:
    written = mirage("init", name, *OWN, "rain")
    assert written.status == 0, written.text
    job = loaded(f"jobs/{name}.yaml")
    assert (job.name, job.track.register_as, job.data.manifests) == (name, name, (name,))


@pytest.mark.parametrize("name", ["a: b", "", "Phone", "{x}", "a/b"])
def test_a_name_that_a_job_cannot_have_is_refused_by_its_key(name: str) -> None:
    done = mirage("init", name, *OWN, "rain", "--out", "x.yaml")
    assert done.status == 2
    assert "name" in done.text
    assert not Path("x.yaml").exists()


def test_noise_and_other_degradations_have_equal_shares_of_an_epoch() -> None:
    mirage("init", "mine", "--root", "photos", "--degradation", "rain", "--degradation", "noise25")
    assert mirage("plan", "jobs/mine.yaml").text.count(" 50.0 %") == 2


def test_an_existing_file_is_not_replaced() -> None:
    mirage("init", "mine", "--root", "photos", *PAIRS)
    assert_one_clear_error(
        mirage("init", "mine", "--root", "photos", *PAIRS), "jobs/mine.yaml exists already"
    )


def test_a_plan_says_why_a_file_cannot_be_submitted() -> None:
    mirage("init", "mine", "--root", "photos", *PAIRS)
    path = Path("jobs/mine.yaml")
    path.chmod(0o644)
    assert f"make it executable with chmod +x {path}" in mirage("plan", path).text
    path.write_text(path.read_text().partition("\n")[2])
    assert f"its first line must be {FIRST_LINE}" in mirage("plan", path).text


def test_a_job_trains_on_packed_pairs_by_their_own_name_and_a_wrong_one_is_told_what_there_is() -> None:
    mirage("init", "mine", *OWN, "phone")
    packed = mirage(
        "pack",
        "pairs",
        "--out",
        "packed",
        "--held-out-share",
        "0.2",
        "--processes",
        "1",
        *OWN[:2],
        *PAIRS[:-1],
        "phone",
    )
    assert packed.status == 0, packed.text
    job = (
        "plan",
        "jobs/mine.yaml",
        "--set",
        "data.pack=null",
        "--set",
        f"data.manifests={Path('packed').resolve()}",
    )
    done = mirage(*job)
    assert done.status == 0, done.text
    assert "phone " in done.text
    done = mirage(*job, "--set", "data.mixture={phnoe: 1}")
    assert done.status == 2
    assert "The data has phone." in done.text
