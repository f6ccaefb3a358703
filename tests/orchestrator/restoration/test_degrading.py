"""`mirage degrade`: each photograph in its own way, by name and seed; nothing is replaced."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.degradations.operator import OPERATORS
from shards.degradations.pipeline import generator
from tests.claims import Finished, assert_one_clear_error, mirage, noise_image

JOB = """
kind: train
name: phone-test
setting: own
data: {manifests: data, mixture: {phone: 1}}
degradations:
  phone:
    - jpeg: {quality: {range: [10, 30]}}
evaluate: {degradations: [phone]}
train: {steps: 10, schedule: cosine}
track: {experiment: phone}
"""


@pytest.fixture(autouse=True)
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.png", "b.jpg", "trip/a.png")):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise_image(56, 40, number)).save(path)
    return tmp_path


def degrade(*arguments: str) -> Finished:
    return mirage("degrade", *arguments)


def pixels(path: str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_each_photograph_gets_a_png_with_draws_that_depend_on_its_name_and_seed_only() -> None:
    done = degrade("in", "-p", "real_esrgan", "-o", "out")
    assert done.status == 0, done.text
    assert done.text.count("gaussian_noise") + done.text.count("poisson_noise") >= 3
    names = ("a.png", "b.png", "trip/a.png")
    assert all(pixels(f"out/{name}").shape == (40, 56, 3) for name in names)
    assert degrade("in/a.png", "-p", "real_esrgan", "-o", "alone").status == 0
    assert Path("alone/a.png").read_bytes() == Path("out/a.png").read_bytes()
    assert degrade("in/a.png", "-p", "real_esrgan", "--seed", "1", "-o", "other").status == 0
    assert Path("other/a.png").read_bytes() != Path("out/a.png").read_bytes()


def test_what_was_drawn_is_written_beside_each_result() -> None:
    assert degrade("in", "-p", "dncnn_b", "--seed", "3", "-o", "out").status == 0
    record = json.loads(Path("out/trip/a.png.json").read_text())
    (noise,) = record["operators"]
    assert (record["key"], noise["path"]) == ("test/3/trip/a", "dncnn_b/gaussian_noise:0")
    clean = pixels("in/trip/a.png").astype(np.float32) / np.float32(255)
    rng = generator(record["key"], noise["path"])
    expected = np.rint(OPERATORS[noise["operator"]](clean, rng, noise["values"]) * np.float32(255))
    assert (pixels("out/trip/a.png") == expected).all()


def test_a_pipeline_of_a_job_is_found_by_its_name() -> None:
    Path("job.yaml").write_text(JOB)
    done = degrade("in/a.png", "-p", "phone", "--job", "job.yaml", "-o", "one.png")
    assert done.status == 0, done.text
    assert "jpeg quality" in done.text
    assert (pixels("one.png") != pixels("in/a.png")).any()


def test_an_unknown_pipeline_is_one_error_that_names_a_near_one() -> None:
    done = degrade("in", "-p", "real_esrgam", "-o", "out")
    assert_one_clear_error(done, "real_esrgam", 'Did you mean "real_esrgan"?', "--job")
    assert not Path("out").exists()


def test_a_result_that_would_be_no_png_file_is_refused() -> None:
    done = degrade("in/a.png", "-p", "real_esrgan", "-o", "one.jpg")
    assert_one_clear_error(done, "one.jpg", "PNG")
    assert not Path("one.jpg").exists()


def test_no_photograph_and_no_result_is_replaced() -> None:
    before = Path("in/a.png").read_bytes()
    assert degrade("in/a.png", "-p", "bsrgan", "-o", "in").status == 2
    assert Path("in/a.png").read_bytes() == before
    assert degrade("in/a.png", "-p", "bsrgan", "-o", "out").status == 0
    first = Path("out/a.png").read_bytes()
    again = degrade("in/a.png", "-p", "bsrgan", "--seed", "1", "-o", "out")
    assert again.status == 1
    assert "--overwrite" in again.text
    assert Path("out/a.png").read_bytes() == first
    assert degrade("in/a.png", "-p", "bsrgan", "--seed", "1", "-o", "out", "--overwrite").status == 0
    assert Path("out/a.png").read_bytes() != first


def test_what_cannot_be_read_is_named_and_the_rest_is_degraded() -> None:
    Path("in/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("RGB", (17_000, 1)).save("in/wide.png")
    Path("job.yaml").write_text(JOB.replace("jpeg", "webp"))
    done = degrade("in", "-p", "phone", "--job", "job.yaml", "-o", "out")
    assert done.status == 1
    assert "broken.png" in done.text
    assert "wide.png" in done.text
    assert Path("out/trip/a.png").exists()
