"""Restore image files with a model: the shell around `mirage.restore`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from mirage import MIRAGE, load, restore
from mirage.config import TOTAL_STRIDE
from mirage.restore import Mode
from orchestrator import registry, track
from orchestrator.errors import PhotoError
from orchestrator.photos import read_photo, write_photo


@dataclass(frozen=True)
class Line:
    """What became of one photograph."""

    text: str
    failed: bool = False


Restoring = Callable[[MIRAGE, Tensor], Tensor]


def how_to_restore(mode: str = "auto", tile: int = 512, overlap: int = 64) -> Restoring:
    """Return `mirage.restore` with these settings. Raises PhotoError where they are impossible."""
    if mode not in get_args(Mode):
        raise PhotoError(f"--mode {mode}: one of {', '.join(get_args(Mode))}.")
    if tile < TOTAL_STRIDE or tile % TOTAL_STRIDE:
        near = max(tile // TOTAL_STRIDE * TOTAL_STRIDE, TOTAL_STRIDE)
        raise PhotoError(f"--tile {tile}: needs a multiple of {TOTAL_STRIDE} pixels. Nearest: {near}.")
    if not 0 <= overlap <= tile // 2:
        raise PhotoError(f"--overlap {overlap}: at least 0 and at most half of the tile, {tile // 2}.")
    return partial(restore, mode=cast(Mode, mode), tile=tile, overlap=overlap)


def restore_files(
    photographs: Sequence[Path], model: str, out: Path | None, device: str, how: Restoring = restore
) -> Iterator[Line]:
    """Restore each file and yield what became of it; one that fails does not stop the rest.

    `out` is a file for one photograph or a folder for any number; without it the result stands beside the input as
    NAME.restored.EXT. Raises PhotoError, before anything is read, when outputs would collide.
    """
    targets = [_target(photo, out, many=len(photographs) > 1) for photo in photographs]
    for target in targets:
        if targets.count(target) > 1:
            raise PhotoError(
                f"several photographs would be written to {target}. Restore them in separate calls."
            )
    chosen = _device(device)
    network = load_model(model, chosen)
    for photo, target in zip(photographs, targets, strict=True):
        yield _restore_one(partial(how, network), photo, target, chosen)


def load_model(model: str, device: torch.device) -> MIRAGE:
    """Return the model that `model` names: a safetensors file, a run, or a registered version or alias."""
    return load(registry.resolve(model, track.tracking_uri()), device=str(device))


def _restore_one(
    restored_by: Callable[[Tensor], Tensor], photo: Path, target: Path, device: torch.device
) -> Line:
    try:
        picture = read_photo(photo)
        restored = restored_by(torch.from_numpy(picture.pixels).to(device))
        target.parent.mkdir(parents=True, exist_ok=True)
        write_photo(target, restored.cpu().numpy(), picture)
    except PhotoError as error:
        return Line(str(error), failed=True)
    except OSError as error:
        return Line(f"{target.parent}: cannot be written ({error.strerror})", failed=True)
    return Line(f"{photo} -> {target}")


def _target(photo: Path, out: Path | None, *, many: bool) -> Path:
    if out is None:
        return photo.with_name(f"{photo.stem}.restored{photo.suffix}")
    if many or out.is_dir() or not out.suffix:
        return out / photo.name
    return out


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        raise PhotoError(f"--device {name} is not available here. Known: auto, cpu, cuda.")
    return torch.device(name)
