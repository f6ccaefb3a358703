"""Mirror the metrics and pictures of a run to TensorBoard and Weights & Biases, as `track.also` asks.

MLflow stays the record of a run. A mirror receives what the `Tracker` receives, on this machine; a failing one is
reported once and then left out.
"""

from __future__ import annotations

import io
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import TrackingError

log = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Name in `track.also` → the package that it needs."""


class Mirror(Protocol):
    """Another place that shows a run."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the metrics of one step."""

    def image(self, name: str, png: bytes, step: int) -> None:
        """Write a PNG of one step."""

    def close(self) -> None:
        """Write what is buffered."""


def check_installed(names: Iterable[str]) -> None:
    """Raise TrackingError unless the packages of these mirrors are installed."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            raise TrackingError(
                f"track.also: {name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}"
            )


def open_mirrors(names: Iterable[str], experiment: str, run_name: str, folder: Path) -> list[Mirror]:
    """Return the mirrors of a run, which write below `folder`."""
    return [_Guarded(name, _OPEN[name](experiment, run_name, folder / name)) for name in names]


class TensorBoard:
    """Writes event files that `tensorboard --logdir` reads.

    A run that resumes writes a new file whose first step replaces the repeated ones of the earlier files.
    """

    def __init__(self, experiment: str, run_name: str, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars."""
        writer = self._writer_from(step)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Write an image."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._writer_from(step).add_image(name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()

    def _writer_from(self, step: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # The package names a file by the second: one that is written in the same second must not replace it.
            suffix = f".{time.time_ns()}"
            self._writer = SummaryWriter(
                str(self._folder), purge_step=step, flush_secs=10, filename_suffix=suffix
            )
        return self._writer


class WeightsAndBiases:
    """Logs to a W&B run, offline unless WANDB_MODE says otherwise.

    A resumed run reopens the same W&B run, which ignores the steps that it has.
    """

    def __init__(self, experiment: str, run_name: str, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=experiment,
            name=run_name,
            id=run_name,
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log the metrics of one step."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, png: bytes, step: int) -> None:
        """Log an image."""
        import wandb
        from PIL import Image

        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            self._run.log({name: wandb.Image(picture.convert("RGB"))}, step=step)

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()


_OPEN: dict[str, Callable[[str, str, Path], Mirror]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


class _Guarded:
    """A mirror whose first failure is logged and ends it, so that it cannot fail the run."""

    def __init__(self, name: str, mirror: Mirror) -> None:
        self._name, self._mirror = name, mirror
        self._failed = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self._call(lambda: self._mirror.metrics(step, values))

    def image(self, name: str, png: bytes, step: int) -> None:
        self._call(lambda: self._mirror.image(name, png, step))

    def close(self) -> None:
        self._call(self._mirror.close)

    def _call(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # whatever a foreign package raises
            self._failed = True
            log.warning("%s receives nothing more of this run: %s", self._name, error)
