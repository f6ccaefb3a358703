"""Bytes in, restored bytes out, by one model under each of its names."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mirage
from mirage import MIRAGE, ModelConfig
from mirage.weights import dumps
from orchestrator.errors import PhotoError, RegistryError
from orchestrator.imaging.photos import Limits, decode, encode
from orchestrator.registry.resolve import find_model
from orchestrator.restoration.restorer import Restorer, RestoreSettings
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking import runs
from orchestrator.tracking.uri import resolve_tracking_uri
from tests.claims import encoded, noise_image

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)


@pytest.fixture(scope="module")
def model() -> MIRAGE:
    torch.manual_seed(0)
    return MIRAGE(CONFIG).eval()


def levels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image).astype(np.int16)


def restored_file(model: MIRAGE, data: bytes) -> bytes:
    photo = decode(data, "a.png")
    return encode(Restorer(model).pixels(photo), photo)


def test_bytes_are_restored_as_mirage_restore_does(model: MIRAGE) -> None:
    data = encoded(noise_image(34, 21))
    restored = mirage.restore(model, torch.from_numpy(levels(data)).permute(2, 0, 1) / 255)
    expected = (restored * 255).round().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(levels(restored_file(model, data)), expected)


def test_several_of_one_size_differ_from_one_by_one_by_one_level_at_most(model: MIRAGE) -> None:
    restorer = Restorer(model)
    photos = [decode(encoded(noise_image(34, 21, seed)), "a.png") for seed in range(3)]
    for photo, together in zip(photos, restorer.pixels_of_several(photos), strict=True):
        assert np.abs(restorer.pixels(photo) - together).max() < 1 / 255


@pytest.mark.parametrize("mode", ["whole", "strips", "tiles"])
def test_bf16_is_close_to_fp32_and_keeps_the_depth(model: MIRAGE, mode: str) -> None:
    photo = decode(encoded(noise_image(56, 40)), "a.png")
    how = {"mode": mode, "tile": 16, "overlap": 8}
    exact = Restorer(model, RestoreSettings(**how)).pixels(photo)
    rough = Restorer(model, RestoreSettings(precision="bf16", **how)).pixels(photo)
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.05
    # A result that had gone through bfloat16 as a whole would be one of its 256 values between 0.5 and 1.
    assert len(np.unique(rough[(rough > 0.5) & (rough < 1)])) > 256


def test_invalid_settings_are_errors_that_name_the_valid_ones() -> None:
    for values, message in (
        ({"mode": "fast"}, "mode fast: must be one of auto, whole, strips, tiles."),
        ({"precision": "fp16"}, "precision fp16: must be one of fp32, bf16."),
        ({"tile": 100}, "tile 100: must be a multiple of 8 pixels, for example 96."),
        ({"tile": 64, "overlap": 40}, "overlap 40: must be at least 0 and at most half of the tile, 32."),
    ):
        with pytest.raises(PhotoError) as error:
            RestoreSettings(**values)
        assert str(error.value) == message


def test_the_digest_depends_on_every_setting_that_changes_the_pixels_and_on_no_other() -> None:
    base = RestoreSettings().digest("a")
    assert RestoreSettings().digest("b") != base
    assert RestoreSettings(precision="bf16").digest("a") != base
    assert RestoreSettings(tile=256).digest("a") == base  # without tiles
    assert RestoreSettings(mode="tiles", tile=256).digest("a") != RestoreSettings(mode="tiles").digest("a")


@pytest.mark.parametrize(
    ("limits", "message"),
    [(Limits(bytes=100), "a.png: has 0.0 MiB, more than"), (Limits(pixels=700), "a.png: has more than")],
)
def test_a_caller_sets_the_limits(limits: Limits, message: str) -> None:
    with pytest.raises(PhotoError, match=message):
        decode(encoded(noise_image(34, 21)), "a.png", limits)


def finished_run(folder: Path, model: MIRAGE) -> None:
    (folder / "weights").mkdir(parents=True)
    data = dumps(model)
    name = f"weights/{hashlib.sha256(data).hexdigest()}.safetensors"
    (folder / name).write_bytes(data)
    (folder / "result.json").write_text(json.dumps({"weights": name}))


def test_a_model_is_found_by_each_of_its_names(
    model: MIRAGE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mirage.weights.save(model, tmp_path / "w.safetensors")
    mirage.weights.save_release(model, tmp_path / "w.ckpt")
    finished_run(tmp_path / "store" / "runs" / "night-1a2b", model)
    with pytest.raises(RegistryError, match="no such file, and no run of that name"):
        find_model("night-1a2b")  # nothing is tracked yet, and asking creates no database
    assert not (tmp_path / ".mirage").exists()
    uri = resolve_tracking_uri()
    tracked = runs.start_run(uri, "any", "x", {RUN_TAG: "night-1a2b"}, {"storage": str(tmp_path / "store")})
    photo = decode(encoded(noise_image(34, 21)), "a.png")
    expected = Restorer(model).pixels(photo)
    for name in (
        str(tmp_path / "w.safetensors"),
        str(tmp_path / "w.ckpt"),
        str(tmp_path / "store" / "runs" / "night-1a2b"),
        "night-1a2b",
        tracked,
        f"runs:/{tracked}",
    ):
        found = Restorer(find_model(name).load(torch.device("cpu")))
        np.testing.assert_array_equal(found.pixels(photo), expected, err_msg=name)


def test_a_run_without_a_result_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"holds no finished run \(no result.json\)"):
        find_model(str(tmp_path))
