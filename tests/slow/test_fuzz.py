"""Mutated files of every format that strangers, other versions or a power cut may write: one error, or a result.

A new seed for each run is printed; MIRAGE_FUZZ_SEED=N repeats one. No cluster.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import resource
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, lru_cache, partial
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from mirage import MIRAGE, ModelConfig, load_release
from mirage.weights import PREFIX, WeightsError, dumps, loads, release_state_dict
from orchestrator.cluster.local.state import read as read_state
from orchestrator.cluster.local.state import write as write_state
from orchestrator.config.loader import load_job
from orchestrator.errors import OrchestratorError
from orchestrator.imaging.photos import decode, encode, format_for
from orchestrator.ownership import Owner
from orchestrator.planning.throughput import earlier_runs
from orchestrator.records import RecordError, read_record
from orchestrator.run_files import read_result
from orchestrator.serving.webhook import DeliveryError, DeliveryVerifier, sign
from orchestrator.sweeps.event_log import read_events
from orchestrator.sweeps.trial_table import table_of
from orchestrator.training.checkpoint import FORMAT
from orchestrator.training.checkpoint import read_record as read_checkpoint
from shards import jpeg_intervals, tiles
from shards import manifest as manifests
from shards.cache import ShardCache
from shards.dataset import Dataset
from shards.errors import CorruptObjectError, MissingObjectError, ShardsError
from shards.images import decode_image, read_samples
from shards.ledger import read_ledger
from shards.manifest import Manifest, ManifestRow, Member, Shard
from shards.manifest_parquet import TABLES
from shards.store import LocalStore, checked
from shards.store.checked import record_digest
from shards.stream import MicroBatch, TrainStream
from shards.verify import verify
from tests.orchestrator.cluster.test_state import STATE
from tests.orchestrator.imaging.test_heic import HEIC
from tests.orchestrator.imaging.test_metadata import exif_block
from tests.orchestrator.sweeps.test_hostile_events import EVENTS
from tests.shards.raw import seal_jpeg

pytestmark = pytest.mark.slow

MUTATIONS = int(os.environ.get("MIRAGE_FUZZ_MUTATIONS", "2000"))
SEED = int(os.environ.get("MIRAGE_FUZZ_SEED") or int.from_bytes(os.urandom(6)))
MAX_SECONDS, MAX_BYTES = 10, 1 << 30
EXPECTED = (OrchestratorError, ShardsError, WeightsError, RecordError, DeliveryError)
ODD_TEXT = (
    *(
        b"null",
        b"true",
        b"-1",
        b"1e999",
        b"NaN",
        b'""',
        b"[]",
        b"{}",
        b"[" * 500,
        b"9" * 5000,
        b"\\ud800",
        b"\0",
    ),
    *(
        b"\xff\xfe",
        b"!!int ''",
        b"&a [*a]",
        b"<<: *b",
        b"2020-13-45",
        b"010",
        b"1:40",
        b"~nobody/x",
        b"../../x",
    ),
)

Read = Callable[[bytes, Path], object]


def mutated(data: bytes, random: Random) -> bytes:
    """Return the bytes with one or a few changes: bits, odd texts, cuts, doubled and moved pieces."""
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 1, 2, 8])):
        at = random.randrange(len(changed) + 1)
        end = min(len(changed), at + random.choice([1, 2, 8, 64]))
        kind = random.randrange(6)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif kind == 1 and at < len(changed):
            changed[at] = random.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            changed[at:end] = random.choice(ODD_TEXT)
        elif kind == 3:
            del changed[at:end]
        elif kind == 4:
            changed[at:at] = changed[at:end] * random.choice([1, 2, 50])
        elif random.random() < 0.3:
            del changed[at:]
    return bytes(changed)


def in_json(content: object, random: Random) -> bytes:
    """Return JSON in which one value is another."""
    places = list(_places(content, ()))
    whole = json.loads(json.dumps(content))
    *above, last = random.choice(places)
    inner = whole
    for key in above:
        inner = inner[key]
    inner[last] = random.choice([None, True, -1, 2**70, 1.5, "", "x", [], {}, [[]], "\ud800", "\0", 1e300])
    return json.dumps(whole).encode()


def _places(content: object, path: tuple[object, ...]) -> Iterator[tuple[object, ...]]:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        yield (*path, key)
        yield from _places(content[key], (*path, key))  # type: ignore[index]


def _saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (24, 33, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


def _photograph(data: bytes, folder: Path) -> None:
    for read in (decode_image, read_samples):
        with suppress(*EXPECTED):
            read(data, "a.png")
    photo = decode(data, "a.png")
    for suffix in (".png", ".tif", ".jpg"):
        with suppress(*EXPECTED):
            encode(photo.pixels, photo, format_for(f"b{suffix}", photo))


def _in_store(key: str, read: Callable[[LocalStore], object]) -> Read:
    def run(data: bytes, folder: Path) -> object:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
        return read(LocalStore(folder))

    return run


def _job(data: bytes, folder: Path) -> object:
    (folder / "job.yaml").write_bytes(data)
    return load_job(folder / "job.yaml")


def _override(data: bytes, folder: Path) -> object:
    if not (folder / "job.yaml").exists():
        (folder / "job.yaml").write_text(
            "{name: a, storage: s3://b, setting: 3deg, data: {manifests: c}, track: {experiment: d}}"
        )
    return load_job(folder / "job.yaml", [os.fsdecode(data)])  # as words of a command line are decoded


def _signed(read: Read) -> Read:
    """Put the right checksum into half of the records, so that it is not the only thing that is ever found."""

    def run(data: bytes, folder: Path) -> object:
        with suppress(ValueError, RecursionError):
            if len(data) % 2 and isinstance(content := json.loads(data), dict):
                data = json.dumps({**content, "sha256": record_digest(content)}).encode()
        return read(data, folder)

    return run


def _delivery(data: bytes, folder: Path) -> object:
    now = str(int(time.time()))
    headers = {"id": "1", "timestamp": now, "signature": sign("secret", "1", now, data)}
    verifier = DeliveryVerifier("secret", "a")
    return verifier.verify(
        {f"x-mlflow-{name if name != 'id' else 'delivery-id'}": v for name, v in headers.items()}, data
    )


def _timing(data: bytes, folder: Path) -> object:
    job = load_job(Path("jobs/demo.yaml"), [f"storage={folder}"]) if not _JOBS else _JOBS[0]
    _JOBS[:] = [job]
    return _in_store(
        "timings/a.json", lambda _: earlier_runs(job.model_copy(update={"storage": str(folder)}))
    )(data, folder)


_JOBS: list[Any] = []


def _manifest(data: bytes, folder: Path) -> object:
    digest = hashlib.sha256(data).hexdigest()
    key = folder / manifests.archive_key(digest)
    key.parent.mkdir(parents=True, exist_ok=True)
    key.write_bytes(gzip.compress(data, 1))
    found = manifests.load_manifest(LocalStore(folder), digest)
    assert manifests.from_bytes(manifests.to_bytes(found), "again") == found
    return found


def _shard_bytes() -> bytes:
    """A shard with an image in each encoding."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for index, data in enumerate(_images()):
            header = tarfile.TarInfo(f"{index}.clean")
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return out.getvalue()


@cache
def _images() -> tuple[bytes, ...]:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    saved = []
    for kind in ("PNG", "JPEG", "TIFF"):
        Image.fromarray(pixels).save(out := io.BytesIO(), kind)
        saved.append(out.getvalue())
    return (*(tiles.encode(pixels, codec) for codec in tiles.CODECS), *saved, _cut_jpeg("RGB"))


def _cut_jpeg(mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(out := io.BytesIO(), "JPEG")
    cut = jpeg_intervals.rewrite(out.getvalue(), decode_image(out.getvalue(), "a photograph"))
    assert cut is not None, jpeg_intervals.INSTALL
    return cut


def _jpeg_of_intervals(data: bytes, folder: Path) -> None:
    """Decode a cut JPEG, and one in which every checksum fits."""
    sealed = bytearray(data)
    seal_jpeg(sealed)
    for one in (bytes(sealed), data):
        with suppress(CorruptObjectError):
            image = jpeg_intervals.IntervalJpeg(one)
            height, width = image.shape
            image.crop(height // 3, width // 3, -(-height // 3), -(-width // 3))
            image.crop(0, 0, height, width)


def _shard(data: bytes, folder: Path) -> None:
    """Verify, read and stream a shard whose sha256 fits, and in every second mutation its members' checksums too."""
    at, rows = 0, []
    for index, image in enumerate(_images()):
        at += tarfile.BLOCKSIZE
        crc = zlib.crc32(data[at : at + len(image)] if len(data) % 2 else image)
        encoding = [*tiles.CODECS.values(), *["original"] * 3, jpeg_intervals.NAME][index]
        rows.append(
            ManifestRow(
                str(index), "train", "noise", None, Member(0, at, len(image), crc, encoding, 70, 90), "s"
            )
        )
        at += -(-len(image) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    store = LocalStore(folder)
    shard = Shard("shards/a.tar", len(data), hashlib.sha256(data).hexdigest())
    store.path(shard.key).parent.mkdir(exist_ok=True)
    store.path(shard.key).write_bytes(data)
    manifest = Manifest("name", (shard,), tuple(rows), {"s": "CC0"}, {})
    with suppress(*EXPECTED):
        manifests.publish(store, manifest)
        with suppress(*EXPECTED):
            verify(store, manifest, decode=True)
        dataset = Dataset([str(folder)], ShardCache(folder / "cache", 1 << 30))
        for row in dataset.rows("train", "noise15"):
            for read in (dataset.read, dataset.read_for_display):
                with suppress(CorruptObjectError, MissingObjectError):
                    read(row)
        stream = TrainStream(
            dataset, [("noise15", 1)], seed=0, crop_pixels=32, global_batch_size=2, on_corrupt="skip"
        )
        stream.batch([0, 1], 0, MicroBatch(0, 2, 32))


def _tables(table: str, network: MIRAGE, folder: Path) -> list[bytes]:
    """Publish a manifest into the folder; return one of its tables."""
    store, manifest = LocalStore(folder), manifests.from_bytes(_manifest_json(), "here")
    manifests.publish(store, manifest)
    return [store.read(manifests.table_key(manifest.digest, table))]


def _table(table: str, data: bytes, folder: Path) -> object:
    """Read a manifest with one of its tables replaced, whose digest is believed."""
    store = LocalStore(folder)
    digest = (store.read_pointer(manifests.POINTER) or b"").decode()
    store.path(manifests.table_key(digest, table)).write_bytes(data)
    with patch.object(manifests, "_digest_of", lambda *_: digest), patch.object(checked, "ATTEMPTS", 1):
        found = manifests.load_manifest(store, digest)
    assert manifests.from_bytes(manifests.to_bytes(found), "again") == found
    return found


def _release(data: bytes, folder: Path) -> object:
    (folder / "a.ckpt").write_bytes(data)
    return load_release(folder / "a.ckpt")


def _events(data: bytes, folder: Path) -> object:
    (folder / "events").mkdir(exist_ok=True)
    events = data.split(b"\n")
    for index in range(max(len(events), len(_WRITTEN))):
        path, before = folder / "events" / f"{index:06d}.json", _WRITTEN.get(index)
        if index >= len(events):
            path.unlink()
            del _WRITTEN[index]
        elif events[index] != before:
            path.write_bytes(events[index])
            _WRITTEN[index] = events[index]
    return table_of(read_events(LocalStore(folder))).ranked()


_WRITTEN: dict[int, bytes] = {}
"""Events in the folder: most are those of the mutation before."""


def _state(data: bytes, folder: Path) -> object:
    (folder / "up.json").write_bytes(data)
    return read_state(folder)


def _manifest_json() -> bytes:
    member = Member(0, 512, 100, 7, "tiles-qoi", 8, 9)
    rows = (
        ManifestRow("a", "train", "rain", member, Member(0, 1024, 50, 8, "original", 8, 9), "s"),
        ManifestRow("b", "test", "noise", None, member, "s"),
    )
    shard = Shard("shards/a.tar", 4096, "0a" * 32)
    return manifests.to_bytes(Manifest("name", (shard,), rows, {"s": "CC0"}, {"tool": [1, {"x": None}]}))


def _checkpoints(model: MIRAGE) -> list[bytes]:
    """A checkpoint with all tensors, and seven with a few, which are read in a tenth of the time."""
    tensors = {PREFIX + name: tensor for name, tensor in release_state_dict(model).items()}
    found = []
    for names in (list(tensors), *[list(tensors)[start : start + 8] for start in range(0, 56, 8)]):
        out = io.BytesIO()
        torch.save({"state_dict": {name: tensors[name] for name in names}, "epoch": 1}, out)
        found.append(out.getvalue())
    return found


def _up_json(tmp: Path) -> bytes:
    write_state(tmp, STATE)
    return (tmp / "up.json").read_bytes()


NAME = "000000005-0a0a0a0a0a0a"
RESULT = {
    "weights": f"weights/{'0' * 64}.safetensors",
    "positions": 4,
    "averaged": True,
    "scores": [],
    "steps": 5,
}
CHECKPOINT = {
    "format": FORMAT,
    "identity": {"run_id": "a", "manifests": ["0a" * 32]},
    "code_version": "1",
    "step": 5,
    "position": 40,
    "skipped_steps": 0,
    "world_size": 1,
    "metrics": {"psnr/rain": 30.25},
    "gradient_scale": {},
    "blobs": {"model": "0a" * 32},
    "sha256": "",
}
TIMING = {
    "job": {"train": {"steps": 5}, "workers": {"min": 1}},
    "pace": {"seconds_per_step": 0.5, "steps": 9, "workers": 1, "device": "cpu", "load_per_core": None},
}
DELIVERY = {
    "entity": "model_version_alias",
    "action": "created",
    "data": {"name": "a", "alias": "c", "version": "3"},
}
OWNER = {
    **{"submission": "", "host": "a", "pid": 7, "process": "b:1:2", "since_unix": 1.5},
    **{"renewed": 3, "released": False},
}
OVERRIDES = b"""train.steps=20
train.betas=[0.9, 0.99]
data.mixture={rain: 2, haze: 1}
storage=s3://a/b
train.learning_rate=2.0e-4
data.manifests=[a, ~x/b, ../c]
track.uri=http://u:p@h:5/x""".splitlines()
LEDGER = b"\n".join(
    b'{"step":%d,"samples":[[%d,"rain","a"],[%d,"haze","b"]],"skipped":[[%d,"haze","b","why"]]}'
    % (n, 2 * n, 2 * n + 1, n)
    for n in range(2)
)


@pytest.fixture(scope="module")
def network() -> MIRAGE:
    return MIRAGE(ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=1))


FORMATS: dict[str, tuple[Callable[[MIRAGE, Path], list[bytes]], Read]] = {
    "job files": (
        lambda _, tmp: [Path(f"jobs/{name}.yaml").read_bytes() for name in ("demo", "5deg", "restore")],
        _job,
    ),
    "overrides of keys": (lambda _, tmp: OVERRIDES, _override),
    "photographs": (
        lambda _, tmp: [
            *(_saved("PNG"), _saved("PNG", "P"), _saved("PNG", "I;16"), _saved("PNG", "RGBA"), _saved("BMP")),
            *(
                _saved("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
                _saved("WEBP"),
                _saved("PPM"),
                _saved("TIFF"),
            ),
            *(_saved("TIFF", compression="tiff_adobe_deflate"), _saved("TIFF", "I;16"), _saved("TIFF", "1")),
            *(_saved("AVIF", exif=exif_block()), _saved("AVIF", "RGBA"), _saved("GIF")),
            *(path.read_bytes() for path in sorted(HEIC.glob("*.heic"))),
        ],
        _photograph,
    ),
    "tiles": (
        lambda _, tmp: [
            tiles.encode(np.arange(18_900).reshape(70, 90, 3).astype(np.uint8), codec)
            for codec in tiles.CODECS
        ],
        lambda data, folder: tiles.decode(data),
    ),
    "cut JPEG files": (lambda _, tmp: [_cut_jpeg("RGB"), _cut_jpeg("L")], _jpeg_of_intervals),
    "manifests": (lambda _, tmp: [_manifest_json()], _manifest),
    "shards": (lambda _, tmp: [_shard_bytes()], _shard),
    **{f"{name} of manifests": (partial(_tables, name), partial(_table, name)) for name in TABLES},
    "ledgers": (lambda _, tmp: [LEDGER], _in_store("ledger/0000/000000000-worker-0-of-1.jsonl", read_ledger)),
    "events of sweeps": (
        lambda _, tmp: [b"\n".join(json.dumps(event).encode() for event in EVENTS)],
        _events,
    ),
    "results": (lambda _, tmp: [json.dumps(RESULT).encode()], _in_store("result.json", read_result)),
    "records of checkpoints": (
        lambda _, tmp: [json.dumps(CHECKPOINT).encode()],
        _signed(
            _in_store(
                f"checkpoints/{NAME}.json", lambda store: read_checkpoint(store, f"checkpoints/{NAME}.json")
            )
        ),
    ),
    "timings": (lambda _, tmp: [json.dumps(TIMING).encode()], _timing),
    "claims": (lambda _, tmp: [json.dumps(OWNER).encode()], lambda data, _: Owner.from_json(data)),
    "deliveries": (lambda _, tmp: [json.dumps(DELIVERY).encode()], _delivery),
    "records": (
        lambda _, tmp: [b'{"a": [1, 2], "b": []}'],
        lambda data, _: read_record(dict[str, list[int]], data),
    ),
    "up.json": (lambda _, tmp: [_up_json(tmp)], _state),
    "safetensors": (lambda network, tmp: [dumps(network)], lambda data, folder: loads(data)),
    "checkpoints of the authors": (lambda network, tmp: _checkpoints(network), _release),
}


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutation_is_a_traceback_or_takes_long_or_much_memory(
    name: str,
    network: MIRAGE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make, read = FORMATS[name]
    wholes = make(network, tmp_path)
    random = Random(f"{SEED} {name}")
    print(f"MIRAGE_FUZZ_SEED={SEED}")
    monkeypatch.setattr(
        "shards.store.checked._FIRST_PAUSE_SECONDS", 0
    )  # damaged objects are read again after a pause
    monkeypatch.setattr("orchestrator.sweeps.event_log._READERS", 1)
    for module in (
        "weights",
        "release",
    ):  # files of one configuration share the network that they are loaded into
        monkeypatch.setattr(f"mirage.{module}.MIRAGE", lru_cache(2)(MIRAGE))
    caplog.set_level(logging.CRITICAL)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    is_table = wholes[0][-4:] == b"PAR1"
    # A table takes ten times as long as another file, and a shard, which is streamed too, four times.
    for number in range(MUTATIONS // (10 if is_table else 4 if name == "shards" else 1)):
        whole = random.choice(wholes)
        if whole[:1] == b"{" and b"\n" not in whole and random.random() < 0.5:
            data = in_json(json.loads(whole), random)
        elif is_table:  # its description is at its end
            footer = 4096 if random.random() < 0.7 else len(whole)
            data = whole[:-footer] + mutated(whole[-footer:], random)
        else:
            header = 4096 if random.random() < 0.7 else len(whole)  # most of what can go wrong is there
            data = mutated(whole[:header], random) + whole[header:]
        began = time.process_time()
        try:
            read(data, tmp_path)
        except EXPECTED:
            pass
        except Exception as error:
            (tmp_path / "failing").write_bytes(data)
            raise AssertionError(f"seed {SEED}, mutation {number} of {name}: {tmp_path}/failing") from error
        assert time.process_time() - began < MAX_SECONDS, f"seed {SEED}, mutation {number} of {name} is slow"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MAX_BYTES, f"seed {SEED}: {name} took {grown >> 20} MiB"
