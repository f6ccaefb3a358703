"""Restore image files with a model: the shell around a `Restorer`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import PhotoError
from orchestrator.photos import read_photo, write_photo
from orchestrator.restorer import Restorer


@dataclass(frozen=True)
class Line:
    """What became of one photograph."""

    text: str
    failed: bool = False


def restore_files(photographs: Sequence[Path], restorer: Restorer, out: Path | None) -> Iterator[Line]:
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
    for photo, target in zip(photographs, targets, strict=True):
        yield _restore_one(restorer, photo, target)


def _restore_one(restorer: Restorer, photo: Path, target: Path) -> Line:
    try:
        picture = read_photo(photo)
        restored = restorer.pixels(picture)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_photo(target, restored, picture)
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
