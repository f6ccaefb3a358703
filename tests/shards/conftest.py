"""Real servers and real photographs for the tests of `shards`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from PIL import Image

from shards import jpeg_intervals
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.manifest import Manifest
from shards.pack import pack
from shards.photographs import PHOTOGRAPHS, read_photograph
from shards.sources import FolderSource
from shards.store import Store, open_store
from tests.claims import wait_until

settings.register_profile("unhurried", deadline=None)  # two busy cores: an example's time says nothing
settings.load_profile("unhurried")

ACCESS_KEY, SECRET_KEY = "testaccess", "testsecret"
DEGRADATIONS = ("noise15", "noise25", "rain", "haze")


@dataclass(frozen=True)
class Server:
    endpoint: str
    bucket: str = "restoration"


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("rclone")
    yield from _serve(
        lambda port: [
            _program("rclone"),
            *("serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
            str(root),
        ],
        {"RCLONE_CONFIG": str(root / "none.conf")},
    )


@pytest.fixture(scope="session")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("nanio")
    yield from _serve(
        lambda port: [
            _program("nanio"),
            *(
                "serve",
                "--data-dir",
                str(root),
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--no-access-log",
            ),
        ],
        {"NANIO_ACCESS_KEY": ACCESS_KEY, "NANIO_SECRET_KEY": SECRET_KEY},
    )


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The standard variables, and nothing of the machine's own configuration."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.fixture(scope="session")
def jpegtran() -> None:
    """The program that cuts JPEG files; `make setup` installs it as root, and CI cannot do without it."""
    if jpeg_intervals.tool() is None and "CI" not in os.environ:
        pytest.skip(f"there is no jpegtran here: {jpeg_intervals.INSTALL}")  # never in CI


@pytest.fixture(params=["folder", "rclone", "nanio"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind."""
    return make_store(request, request.param, tmp_path)


@pytest.fixture(params=["folder", "rclone"])
def each_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store of each kind that users get by default, for tests that move more bytes."""
    return make_store(request, request.param, tmp_path)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of five small cuts of real photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    for photograph in [p for p in PHOTOGRAPHS if p.name in ("chelsea", "china", "coffee", "flower", "brick")]:
        pixels = read_photograph(photograph)[100:197, 100:230]  # 97 x 130: no multiple of anything
        Image.fromarray(pixels).save(folder / f"{photograph.name}.png")
    return folder


@pytest.fixture(scope="session")
def source(photographs: Path) -> FolderSource:
    return FolderSource(photographs, DEGRADATIONS, held_out=["coffee", "chelsea"], seed=3, variants=2)


@pytest.fixture(scope="session")
def packed(source: FolderSource, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Manifest]:
    """A published dataset of several shards in a local folder, not to be changed."""
    folder = tmp_path_factory.mktemp("packed")
    return str(folder), pack(source, open_store(str(folder)), name="cuts", shard_bytes=100_000)


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 1 << 30)


@pytest.fixture
def dataset(packed: tuple[str, Manifest], cache: ShardCache) -> Dataset:
    return Dataset([packed[0]], cache)


def make_store(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Store:
    """Return an empty store: a folder, or a bucket of the server whose fixture is named."""
    if kind == "folder":
        return open_store(str(tmp_path / "store"))
    server: Server = request.getfixturevalue(kind)
    request.getfixturevalue("aws").setenv("AWS_ENDPOINT_URL", server.endpoint)
    store = open_store(f"s3://{server.bucket}/{tmp_path.name}")
    store.ensure_bucket()
    return store


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"{name} is not installed; pip install -e '.[dev]'"
    return found


def _serve(command, environment: dict[str, str]) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        command(port), env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        name = command(port)[0]
        wait_until(lambda: _answers(port) or process.poll() is not None, f"{name} opens its port")
        assert process.poll() is None, f"{name} ended with {process.returncode}"
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
