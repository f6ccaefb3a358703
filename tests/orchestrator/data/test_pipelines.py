"""A job with pipelines against the data that it opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.config.loader import job_from_mapping
from orchestrator.config.schema import Job
from orchestrator.data import datasets
from orchestrator.errors import PlanError
from orchestrator.planning.plan import make_plan
from shards.dataset import Dataset
from tests.tiny_operators import PIPELINES

pytestmark = pytest.mark.usefixtures("tiny_operators", "at_home")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), np.uint8)
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(folder / f"{number}.png")
    return folder


def job_on(photos: Path, **changes: object) -> Job:
    pack = {"source": "clean", "root": str(photos), "held_out_share": 0.4}
    job = job_from_mapping(
        {
            "name": "blind",
            "setting": "own",
            "recipe": "fast",
            "storage": str(photos.parent / "store"),
            "degradations": PIPELINES,
            "data": {"manifests": "photos", "pack": pack, "mixture": {"phone-night": 2, "noise15": 1}},
            "evaluate": {"degradations": ["noise35", "noise15"]},
            "train": {"steps": 2, "global_batch_size": 2},
            "track": {"experiment": "blind"},
            **changes,
        }
    )
    assert isinstance(job, Job)
    return job


def test_a_job_packs_clean_photographs_and_degrades_them_by_weight(photos: Path) -> None:
    mixture = {"phone-night": 1, "noise15": 1}
    job = job_on(photos)
    weighted = job.data.model_copy(
        update={"weights": {"phone-night": 3.0, "noise15": 1.0}, "samples_per_epoch": 8, "crop_pixels": 16}
    )
    job = job.model_copy(update={"data": weighted.model_copy(update={"mixture": mixture})})
    assert datasets.planned_counts(job) == {"phone-night": 3, "noise15": 3}
    assert datasets.ensure_packed(job)
    assert not datasets.ensure_packed(job)
    dataset = datasets.open_dataset(job)
    datasets.check_holds(dataset, job)
    stream = datasets.train_stream(dataset, job)
    names = [name for batch in stream.steps(stop_position=8) for name in batch.degradations]
    assert sorted(names) == ["noise15"] * 2 + ["phone-night"] * 6
    shown = [(item.degradation, bool(item.pipeline)) for item in datasets.evaluation_set(dataset, job)]
    assert shown == [("noise35", True)] * 2 + [("noise15", False)] * 2


def test_models_of_other_seeds_are_evaluated_on_the_same_degraded_images(photos: Path) -> None:
    job = job_on(photos)
    datasets.ensure_packed(job)
    dataset = datasets.open_dataset(job)
    one, other = (
        [item.degraded.tobytes() for item in datasets.evaluation_set(dataset, job_on(photos, seed=seed))][:2]
        for seed in (0, 7)
    )
    assert one == other


def test_packed_pairs_with_the_name_of_a_pipeline_are_refused(small_data: Dataset, small_job) -> None:
    steps = [{"tiny_noise": {"sigma": 3}}]
    job = small_job(degradations={"mine": steps})
    datasets.check_holds(small_data, job)
    twice = job.model_copy(update={"degradations": {"rain": steps}})
    with pytest.raises(PlanError, match=r"degradations.rain: .* has pairs of this name"):
        datasets.check_holds(small_data, twice)


def test_data_without_clean_photographs_says_what_pipelines_need(photos: Path) -> None:
    pack = {"source": "synthetic", "root": str(photos), "degradations": ["rain"], "held_out": ["0"]}
    data = {"manifests": "rainy", "pack": pack, "mixture": {"phone-night": 1, "rain": 1}}
    job = job_on(photos, data=data, evaluate={"degradations": ["rain", "noise35"]})
    datasets.ensure_packed(job)
    with pytest.raises(PlanError, match=r"trains on phone-night; .*names noise35.* need clean photographs"):
        datasets.check_holds(datasets.open_dataset(job), job)


def test_a_preset_and_a_misspelt_pipeline_in_a_mixture_are_told_by_what_they_mean(photos: Path) -> None:
    datasets.ensure_packed(job_on(photos))
    data = {"manifests": "photos", "mixture": {"real_esrgan": 1, "phone_night": 1}}
    job = job_on(photos, data=data)
    with pytest.raises(PlanError) as raised:
        datasets.check_holds(datasets.open_dataset(job), job)
    assert "degradations: {my-real_esrgan: [use: real_esrgan]}" in str(raised.value)
    assert 'phone_night: did you mean "phone-night"?' in str(raised.value)


def test_a_held_out_photograph_too_small_for_a_kernel_is_told_before_the_start(photos: Path) -> None:
    data = {"manifests": "photos", "pack": job_on(photos).data.pack, "mixture": {"noise15": 1}}
    job = job_on(
        photos,
        data=data,
        degradations={"soft": [{"defocus_blur": {"radius": {"range": [1, 41]}}}]},
        evaluate={"degradations": ["soft"]},
    )
    datasets.ensure_packed(job)
    dataset = datasets.open_dataset(job)
    with pytest.raises(PlanError) as raised:
        make_plan(job, strict=False)
    told = str(raised.value)
    assert told.startswith("degradations.soft.0.defocus_blur: defocus_blur has a kernel of up to 41 pixels")
    assert f"the held-out photograph {dataset.rows('test', 'noise')[0].id} has 40 pixels" in told
    smaller = {"soft": [{"defocus_blur": {"radius": {"range": [1, 40]}}}]}
    datasets.check_kernels(dataset, job.model_copy(update={"degradations": smaller}), ["soft"])
