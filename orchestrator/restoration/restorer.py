"""Restore photographs with a model: the common path of the command, the batch job and the service.

On a CPU the number of threads changes the order of sums. With equal numbers results are equal; otherwise a few
pixels in 100,000 differ by one level.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from mirage import MIRAGE
from mirage.config import TOTAL_STRIDE
from mirage.inference import Mode
from orchestrator.errors import ModelError, PhotoError, is_out_of_memory
from orchestrator.imaging.photos import Photo
from orchestrator.models.network_file import RestoringNetwork, restoring

Precision = Literal["fp32", "bf16"]
Progress = Callable[[int, int], None]
"""Called with (work done, total work) within one photograph."""


@dataclass(frozen=True)
class RestoreSettings:
    """Settings that, with the weights and the photograph, determine the result."""

    precision: Precision = "fp32"
    """`bf16` runs matrix products and convolutions in bfloat16; the photograph itself stays fp32."""
    mode: Mode = "auto"
    """See `mirage.restore`."""
    tile: int = 512
    """Side of a tile [px], for the mode `tiles`."""
    overlap: int = 64
    """Pixels that neighbouring tiles share."""

    def __post_init__(self) -> None:
        """Check the settings. Raises PhotoError."""
        if self.precision not in get_args(Precision):
            raise PhotoError(f"precision {self.precision}: must be one of {', '.join(get_args(Precision))}.")
        if self.mode not in get_args(Mode):
            raise PhotoError(f"mode {self.mode}: must be one of {', '.join(get_args(Mode))}.")
        if self.tile < TOTAL_STRIDE or self.tile % TOTAL_STRIDE:
            near = max(self.tile // TOTAL_STRIDE * TOTAL_STRIDE, TOTAL_STRIDE)
            raise PhotoError(
                f"tile {self.tile}: must be a multiple of {TOTAL_STRIDE} pixels, for example {near}."
            )
        if not 0 <= self.overlap <= self.tile // 2:
            raise PhotoError(
                f"overlap {self.overlap}: must be at least 0 and at most half of the tile, {self.tile // 2}."
            )

    def digest(self, model_digest: str) -> str:
        """Return the SHA-256 of these settings with a model, in hexadecimal."""
        values = {"model": model_digest, **asdict(self)}
        if self.mode != "tiles":
            del values["tile"], values["overlap"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


class Restorer:
    """A model on a device, with settings."""

    def __init__(self, model: MIRAGE | RestoringNetwork, settings: RestoreSettings | None = None) -> None:
        self.network = restoring(model)
        self.network.module.eval()
        self.settings = settings or RestoreSettings()
        self.device = self.network.device
        if self.settings.mode == "strips" and self.network.bounded_mode != "strips":
            raise ModelError("mode strips: it cuts a MIRAGE, and this is another network. Use tiles.")

    def pixels(self, photo: Photo, progress: Progress | None = None) -> NDArray[np.float32]:
        """Restore the pixels of a photograph, (3, h, w) in [0, 1]. Raises PhotoError if memory is too small."""
        return self._restore(torch.from_numpy(photo.pixels), photo.name, progress)

    def pixels_of_several(
        self, photos: Sequence[Photo], progress: Progress | None = None
    ) -> list[NDArray[np.float32]]:
        """Restore photographs of one size together: faster on a GPU, equal to single ones up to rounding.

        The progress is that of a single photograph.
        """
        if len(photos) == 1:
            return [self.pixels(photos[0], progress)]
        batch = torch.from_numpy(np.stack([photo.pixels for photo in photos]))
        return list(self._restore(batch, f"{photos[0].name} and {len(photos) - 1} more", None))

    def _restore(self, degraded: torch.Tensor, name: str, progress: Progress | None) -> NDArray[np.float32]:
        how = self.settings
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=how.precision == "bf16"):
                restored = self.network.restore(
                    degraded.to(self.device),
                    how.mode,
                    tile=how.tile,
                    overlap=how.overlap,
                    progress=progress,
                )
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = " x ".join(map(str, reversed(degraded.shape[-2:])))
            raise PhotoError(
                f"{name}: {size} pixels do not fit into the memory of {self.device}. Use mode "
                f"{self.network.bounded_mode}."
            ) from error
        return restored.cpu().numpy()


MAX_THREADS = 1024
"""Threads of one process; many more exhaust a machine's memory, and no CPU has as many cores."""


def checked_threads(number: int, option: str) -> int:
    """Return a number of threads. Raises PhotoError unless it is between 1 and `MAX_THREADS`."""
    if not 1 <= number <= MAX_THREADS:
        raise PhotoError(f"{option} {number:,}: must be between 1 and {MAX_THREADS} threads.")
    return number


def choose_device(name: str) -> torch.device:
    """Return the device `auto`, `cpu` or `cuda`. Raises PhotoError if it is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise PhotoError(f"device {name} is not available here. Known: auto, cpu, cuda.")
    return torch.device(name)
