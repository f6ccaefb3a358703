"""`track.also`: TensorBoard's files hold what MLflow gets, and a mirror cannot fail a run."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orchestrator.errors import TrackingError
from orchestrator.runner import run_any
from orchestrator.tracking import background, mirrors


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def written(folder: Path) -> Iterator[Any]:
    """Yield the events in TensorBoard's files, oldest file first: records of length, checksum, content, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    return [
        (value.tag, event.step, value.simple_value)
        for event in written(folder)
        for value in event.summary.value
        if not value.HasField("image")
    ]


def test_tensorboard_gets_the_scalars_and_pictures_that_mlflow_gets(store: str, tmp_path: Path) -> None:
    from orchestrator.tracking import runs

    run_id = runs.start_run(store, "mirrors", "both", {}, {})
    opened = mirrors.open_mirrors(["tensorboard"], "mirrors", "both", tmp_path)
    tracker = background.Tracker(store, run_id, tmp_path / "spool", opened)
    for step in range(3):
        tracker.metrics(step, {"loss/total": step / 4})
    tracker.image("sheet", png(9), 2)
    assert tracker.close()
    assert scalars(tmp_path / "tensorboard") == [("loss/total", step, step / 4) for step in range(3)]
    (picture,) = [
        v for e in written(tmp_path / "tensorboard") for v in e.summary.value if v.HasField("image")
    ]
    assert picture.tag == "sheet"
    assert Image.open(io.BytesIO(picture.image.encoded_image_string)).getpixel((0, 0)) == (9, 9, 9)


def test_a_resumed_run_tells_tensorboard_to_drop_the_steps_that_it_repeats(tmp_path: Path) -> None:
    for steps in (range(1, 5), range(3, 7)):
        (board,) = mirrors.open_mirrors(["tensorboard"], "mirrors", "resumed", tmp_path)
        for step in steps:
            board.metrics(step, {"loss/total": 0.5})
        board.close()
    starts = [
        e.step for e in written(tmp_path / "tensorboard") if e.session_log.status == e.session_log.START
    ]
    assert starts == [1, 3]


def test_a_mirror_that_fails_is_reported_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file in the way")
    (board,) = mirrors.open_mirrors(["tensorboard"], "mirrors", "broken", tmp_path)
    for step in range(3):
        board.metrics(step, {"loss/total": 0.5})
    board.close()
    assert caplog.text.count("tensorboard receives nothing more of this run") == 1


def test_a_mirror_without_its_package_is_refused_before_anything_starts(
    small_job, at_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mirrors.PACKAGES, "wandb", "no_such_package")
    store = at_home.parent / "never-packed"
    job = small_job(storage=str(store), track={"also": ["wandb"]})
    with pytest.raises(TrackingError, match="wandb needs the package no_such_package: pip install"):
        run_any(job, lambda line: None, in_process=True)
    assert not store.exists()
