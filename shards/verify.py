"""Everything that a manifest promises, checked against what the store holds.

Every object is read whole: the listings, and each shard against its size, sha256 and place in a plain tar, then each
image against its checksum and, when it is decoded, against its size. All that is wrong is told, not only the first.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards import tiles
from shards.errors import CorruptObjectError, MissingObjectError, ShardsError
from shards.images import read_samples
from shards.listing import read_listing
from shards.manifest import ORIGINAL, Manifest, Member, Shard
from shards.processes import RowsCallback, TaskRunner, run_inline
from shards.progress import ProgressCallback
from shards.store import LocalStore, Store

_SHOWN = 10


@dataclass(frozen=True)
class VerifyReport:
    """What was read and found right."""

    shards: int
    images: int
    bytes: int


@dataclass(frozen=True)
class VerifyTask:
    """One shard to be read."""

    store: Store
    shard: Shard
    members: tuple[tuple[str, Member], ...]
    """A sample that shows each image, and where the image is."""
    decode: bool


def verify(
    store: Store,
    manifest: Manifest,
    *,
    decode: bool = False,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
) -> VerifyReport:
    """Read all of a dataset; `decode` decodes every image as well.

    Raises CorruptObjectError that names what is damaged or missing.
    """
    members: list[dict[Member, str]] = [{} for _ in manifest.shards]
    for row in manifest.rows:
        for member in filter(None, (row.clean, row.degraded)):
            members[member.shard].setdefault(member, row.id)
    tasks = [
        VerifyTask(store, shard, tuple((id_, member) for member, id_ in held.items()), decode)
        for shard, held in zip(manifest.shards, members, strict=True)
    ]
    done = 0

    def on_rows(images: int, id_: str) -> None:
        nonlocal done
        done += images
        if on_progress is not None:
            on_progress(done, sum(map(len, members)), id_)

    problems = list(_listings(store, manifest))
    for _, found in sorted(runner(check_shard, tasks, on_rows)):
        problems += found
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "\n  ".join(problems[:_SHOWN])
        raise CorruptObjectError(
            f"{store.uri}: {len(problems)} of its objects or images are damaged.\n  {shown}{more}\n"
            "Restore them from a copy, or delete the damaged objects and pack again."
        )
    return VerifyReport(len(tasks), sum(map(len, members)), sum(shard.size for shard in manifest.shards))


def check_shard(task: VerifyTask, on_rows: RowsCallback) -> list[str]:
    """What is wrong with one shard, in sentences that name it."""
    with tempfile.TemporaryDirectory(prefix="shards-") as folder:
        try:
            path = _local(task.store, task.shard, Path(folder))
        except MissingObjectError:
            on_rows(len(task.members), "")
            return [f"{task.store.uri}/{task.shard.key} is missing although the manifest lists it."]
        where = f"{task.store.uri}/{task.shard.key}"
        problems = [f"{where} {problem}" for problem in _shard_problems(path, task.shard)]
        with path.open("rb") as file:
            for id_, member in task.members:
                file.seek(member.offset)
                data = file.read(member.size)
                problem = _image_problem(data, member, task.decode)
                if problem:
                    problems.append(f"{where}, sample {id_!r} at byte {member.offset}: {problem}")
                on_rows(1, id_)
    return problems


def _local(store: Store, shard: Shard, folder: Path) -> Path:
    if isinstance(store, LocalStore):
        path = store.path(shard.key)
        if not path.is_file():
            raise MissingObjectError(shard.key)
        return path
    path = folder / "shard.tar"
    store.download(shard.key, path)
    return path


def _listings(store: Store, manifest: Manifest) -> Iterator[str]:
    for digest in manifest.provenance.get("sources", ()):
        try:
            read_listing(store, digest)
        except ShardsError as error:
            yield str(error)


def _shard_problems(path: Path, shard: Shard) -> Iterator[str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        what = (
            f"has {size} bytes instead of {shard.size}" if size != shard.size else "does not fit its sha256"
        )
        html = start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))
        yield what + (": it is a web page." if html else ".")
        return
    yield from tar_problems(path)


def tar_problems(path: Path) -> Iterator[str]:
    """What a shard must not hold, whatever its checksum: names that leave the folder, links, a torn end."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                parts = member.name.split("/")
                if member.name.startswith("/") or ".." in parts or "\\" in member.name:
                    yield f"holds {member.name!r}, a name that leaves the folder it is unpacked in."
                elif not member.isreg():
                    yield f"holds {member.name!r}, which is no plain file."
    except (tarfile.TarError, EOFError) as error:
        yield f"is not a tar ({error})."


def _image_problem(data: bytes, member: Member, decode: bool) -> str:
    if len(data) != member.size:
        return f"{len(data)} of {member.size} bytes are there."
    if zlib.crc32(data) != member.crc32:
        return "its checksum does not fit."
    if not decode:
        return ""
    try:
        found = read_samples(data, "a kept file") if member.encoding == ORIGINAL else tiles.decode(data)
    except ShardsError as error:
        return str(error)
    size = (member.height, member.width)
    return "" if found.shape[:2] == size else f"it has {found.shape[:2]} pixels, the manifest says {size}."
