"""A small model, photographs of every kind, the command in this process, and a real S3 server."""

from __future__ import annotations

import io
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from typer.testing import CliRunner

import mirage
from mirage import MIRAGE, ModelConfig
from orchestrator.cli import app
from orchestrator.cluster.local import processes, s3_server
from orchestrator.errors import OrchestratorError
from shards.errors import ShardsError

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
    mirage.weights.save(model, path)
    return str(path)


def picture(height: int = 21, width: int = 34, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `in`, in the working directory, with a photograph of each kind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    inside = tmp_path / "in"
    (inside / "trip").mkdir(parents=True)
    tags = Image.Exif()
    tags[ORIENTATION] = 6
    Image.fromarray(picture()).save(inside / "turned.jpg", exif=tags, icc_profile=ICC)
    (inside / "trip" / "turned.jpg").write_bytes(encoded(picture(seed=1), "JPEG"))
    deep = picture(seed=2).astype(np.uint16) * 257
    (inside / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    (inside / "deep.tif").write_bytes(imagecodecs.tiff_encode(deep))
    (inside / "grey.png").write_bytes(encoded(picture(seed=3)[..., 0]))
    alpha = np.full((21, 34, 1), 77, np.uint8)
    (inside / "alpha.png").write_bytes(encoded(np.concatenate([picture(seed=4), alpha], axis=2)))
    (inside / "notes.txt").write_text("no photograph, and not called one")
    return inside


@dataclass(frozen=True)
class Done:
    """How a command ended and what it printed."""

    status: int
    text: str


@pytest.fixture
def restore(weights: str) -> Callable[..., Done]:
    """Run `mirage restore ARGUMENTS -m WEIGHTS` in this process."""

    def run(*arguments: str | Path, model: str = weights) -> Done:
        result = CliRunner().invoke(app, ["restore", *map(str, arguments), "-m", model])
        if isinstance(result.exception, OrchestratorError | ShardsError):
            return Done(2, str(result.exception))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.output)

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
