"""A small model, photographs of every kind, the command in this process, and a real S3 server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from mirage import MIRAGE, ModelConfig, save
from orchestrator.cluster.local import processes, s3_server
from tests.claims import Finished, encoded, mirage, noise_image

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
ORIENTATION = 274


@pytest.fixture(scope="session")
def model() -> MIRAGE:
    torch.manual_seed(0)
    config = ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)
    return MIRAGE(config).eval()


@pytest.fixture(scope="session")
def weights(model: MIRAGE, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save(model, path)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `in`, in the working directory, with a photograph of each kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    inside = tmp_path / "in"
    (inside / "trip").mkdir(parents=True)
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.fromarray(noise_image(34, 21)).save(inside / "turned.jpg", exif=tags, icc_profile=ICC)
    (inside / "trip" / "turned.jpg").write_bytes(encoded(noise_image(34, 21, 1), "JPEG"))
    deep = noise_image(34, 21, 2).astype(np.uint16) * 257
    (inside / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    (inside / "deep.tif").write_bytes(imagecodecs.tiff_encode(deep))
    (inside / "grey.png").write_bytes(encoded(noise_image(34, 21, 3)[..., 0]))
    alpha = np.full((21, 34, 1), 77, np.uint8)
    (inside / "alpha.png").write_bytes(encoded(np.concatenate([noise_image(34, 21, 4), alpha], axis=2)))
    (inside / "notes.txt").write_text("no photograph, and not called one")
    return inside


@pytest.fixture
def restore(weights: str) -> Callable[..., Finished]:
    """Run `mirage restore ARGUMENTS -m WEIGHTS` in this process."""

    def run(*arguments: str | Path, model: str = weights) -> Finished:
        return mirage("restore", *arguments, "-m", model)

    return run


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The AWS variables of a real server, as `mirage up` starts it."""
    root = tmp_path_factory.mktemp("s3")
    server = s3_server.new(None)
    process = s3_server.start(server, root, root.with_suffix(".log"), f"test-{uuid.uuid4().hex}")
    yield server.environment()
    processes.stop([process], s3_server.NAME, 5)


@pytest.fixture
def bucket(s3: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the variables that lead to it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    from shards.store import open_store

    uri = f"s3://b{uuid.uuid4().hex[:12]}"
    open_store(uri).ensure_bucket()
    return uri
