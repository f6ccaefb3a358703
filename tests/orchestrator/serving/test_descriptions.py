from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mirage.weights import dumps
from orchestrator.serving.descriptions import UNKNOWN, degradation_title, model_description
from orchestrator.serving.page import samples
from orchestrator.serving.served_model import DegradationPsnr, load_model
from shards.sample import CDD11, DEGRADATIONS, NOISE, SIGMA
from tests.orchestrator.serving.inprocess import served, small_model


@pytest.mark.parametrize(
    ("degradations", "description"),
    [
        (["haze"], "Restores photographs that have haze."),
        (["noise15", "noise25", "noise50", "blur"], "Restores photographs that have noise or blur."),
        (["lowlight", "rain", "snow"], "Restores photographs that have low light, rain or snow."),
        (CDD11.values(), "Restores photographs that have low light, haze, rain, snow or several of these at once."),
        (["low_rain", "haze"], "Restores photographs that have haze or low light and rain."),
        (["phone"], "Restores photographs that have the degradation “phone”."),
        (["rain", "old_scan", "phone"],
         "Restores photographs that have rain or the degradations “old scan” and “phone”."),
        (["raindrop", "toled"],
         "Restores photographs that have raindrops on the lens or the veil of a T-OLED display."),
        ([], UNKNOWN),
    ],
)  # fmt: skip
def test_a_model_is_described_by_what_it_was_trained_on(degradations: list[str], description: str) -> None:
    assert model_description(degradations) == description


@pytest.mark.parametrize("degradation", [*DEGRADATIONS, "phone", "old_scan_2"])
def test_no_name_is_left_as_it_is_written_in_a_job_file(degradation: str) -> None:
    for words in (degradation_title(degradation), model_description([degradation])):
        assert "_" not in words
        assert "lowlight" not in words
        assert "oled" not in words


def test_every_sample_is_of_a_degradation_that_is_known_by_name() -> None:
    for sample in samples():
        assert sample["degradation"] in (NOISE, *DEGRADATIONS)
        assert sample["degradation"] not in SIGMA
        assert sample["title"].lower() == degradation_title(sample["degradation"])


def test_the_model_route_says_what_the_model_removes() -> None:
    facts = served(small_model(), scores=(DegradationPsnr("lowlight", 7.8, 19.0),)).facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["titles"] == {"lowlight": "low light"}
    assert facts["description"] == UNKNOWN


@pytest.mark.parametrize("known", [("rain", "phone"), ()])
def test_a_weights_file_says_what_it_was_trained_on(tmp_path: Path, known: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    header = {"degradations": " ".join(known)} if known else {}
    (tmp_path / "weights.safetensors").write_bytes(dumps(small_model(), header))
    assert load_model(str(tmp_path / "weights.safetensors")).degradations == known
