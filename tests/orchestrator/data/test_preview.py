"""What `mirage preview` draws is what training sees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch
from PIL import Image

from orchestrator.config.pipelines import pipelines_of
from orchestrator.data import datasets
from orchestrator.data.preview import first_draws, preview_sheet
from orchestrator.imaging.convert import to_uint8
from shards.dataset import Dataset
from shards.degradations.pipeline import training_key
from tests.claims import assert_one_clear_error, mirage
from tests.tiny_operators import PIPELINES


@pytest.mark.parametrize("step", [0, 3])
def test_the_crops_are_those_of_the_steps_with_their_positions_noise_and_orientation(
    small_job, small_data: Dataset, step: int
) -> None:
    mixture = {"noise15": 1, "noise50": 1, "rain": 1, "haze": 1}
    job = small_job(data={"mixture": mixture}, train={"global_batch_size": 4, "micro_batches": 2})
    stream = datasets.train_stream(small_data, job)
    trained = {}
    for batch in islice(stream.steps(stream.stages.position_at(step)), 8):
        degraded, clean = batch.to_float(torch.device("cpu"), job.seed, job.data.noise)
        for index, position in enumerate(batch.positions.tolist()):
            pair = (to_uint8(degraded[index]), to_uint8(clean[index]))
            trained[position] = (batch.degradations[index], batch.ids[index], *pair)
    draws = first_draws(job, small_data, 2, step)
    assert list(draws) == list(job.data.mixture)
    compared = [draw for each in draws.values() for draw in each if draw.position in trained]
    assert len({draw.degradation for draw in compared}) == len(job.data.mixture), (
        "each degradation is compared"
    )
    for draw in compared:
        degradation, photograph, degraded, clean = trained[draw.position]
        assert (draw.degradation, draw.photograph) == (degradation, photograph)
        assert (draw.degraded == degraded).all()
        assert (draw.clean == clean).all()
        assert draw.degradation == "blur" or draw.psnr < 60, "something is degraded"
    for degradation, each in draws.items():
        first = [position for position, one in trained.items() if one[0] == degradation]
        assert [draw.position for draw in each] == first[: len(each)], "they are the first ones"


def test_a_degradation_with_fewer_samples_in_an_epoch_leaves_the_rest_of_its_row_empty(
    small_job, small_data: Dataset
) -> None:
    job = small_job(data={"mixture": {"rain": 4, "haze": 1}}, train={"global_batch_size": 2})
    draws = first_draws(job, small_data, 6)
    assert len(draws["rain"]) == 6
    assert 0 < len(draws["haze"]) < 6
    assert preview_sheet(draws).width > 6 * 16


@pytest.mark.usefixtures("tiny_operators")
def test_a_row_of_a_pipeline_says_what_it_drew(small_job, small_data: Dataset) -> None:
    changes = {"setting": "own", "evaluate": {"degradations": ["rain"]}, "example": None}
    job = small_job(degradations=PIPELINES, data={"mixture": {"phone-night": 4, "rain": 1}}, **changes)
    draws = first_draws(job, small_data, 3)
    pipeline = pipelines_of(job)["phone-night"]
    for draw in draws["phone-night"]:
        key = training_key(job.seed, draw.position)
        applied = pipeline.draw(key)
        assert draw.operators == tuple(each.words() for each in applied)
        (gain,) = (each for each in applied if each.path.endswith("repeat:0/0/shuffle:0/tiny_gain:0"))
        assert gain.words().startswith(f"tiny_gain gain {gain.values['gain']:.3g}")
        assert (draw.degraded == pipeline.degrade(draw.clean, key)).all()
    assert all(draw.operators == () for draw in draws["rain"])
    assert preview_sheet(draws).height > 2 * 16


def test_the_command_writes_the_sheet_and_says_where(small_job, small_data: Dataset, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        f"name: seen\nsetting: own\nstorage: {tmp_path}\ndata: {{manifests: {small_data.uris[0]}, crop_pixels: 16, "
        "mixture: {rain: 1, noise25: 1}}\nevaluate: {degradations: [rain]}\n"
        "recipe: fast\ntrain: {steps: 4, global_batch_size: 2, warmup_steps: 1}\ntrack: {experiment: tests}\n"
    )
    done = mirage("preview", job, "-o", tmp_path / "seen.jpg", "--count", "2")
    assert done.status == 0, done.text
    assert f"sheet      {tmp_path / 'seen.jpg'}" in done.text
    with Image.open(tmp_path / "seen.jpg") as sheet:
        assert sheet.format == "JPEG"
    assert_one_clear_error(mirage("preview", job, "-o", tmp_path / "seen.txt"), "seen.txt", ".jpg")


def test_a_job_whose_data_is_not_packed_is_told_how_to_pack_it(tmp_path: Path) -> None:
    done = mirage("preview", "jobs/demo.yaml", "--set", f"storage={tmp_path}")
    assert_one_clear_error(done, "demo holds no manifest", f"jobs/demo.yaml --set storage={tmp_path} --pack")
    assert_one_clear_error(mirage("preview", "jobs/restore.yaml"), "kind restore", "train and sweep")
