"""Check a packed dataset against its manifest.

Every object is read completely: the lists of raw files; each shard against its size, its sha256 and the rules for a
plain tar; each sample as WebDataset reads it; each image at its offset against its checksum and, on request, its
decoded size. All problems are reported, not only the first.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.columns import NO_IMAGE, Rows, copied
from shards.encodings import WINDOWED
from shards.errors import CorruptObjectError, MissingObjectError, ShardsError
from shards.images import read_samples
from shards.json_text import parse_json
from shards.listing import read_listing
from shards.manifest import ORIGINAL, Manifest, ManifestRow, Member, Shard
from shards.pipeline import read_groups
from shards.processes import RowsCallback, TaskRunner, count_rows, run_inline
from shards.progress import ProgressCallback
from shards.store import LocalStore, Store
from shards.store.checked import download_named
from shards.store.files import BLOCK

_SHOWN = 10


@dataclass(frozen=True)
class VerifyReport:
    """Amount of data that was read and found correct."""

    shards: int
    images: int
    bytes: int


@dataclass(frozen=True)
class VerifyTask:
    """One shard to read."""

    store: Store
    shard: Shard
    number: int
    """Index of the shard in the manifest."""
    rows: Sequence[ManifestRow]
    """Rows with an image in the shard."""
    decode: bool

    @property
    def images(self) -> dict[Member, str]:
        """The shard's images, each with the id of one row that shows it."""
        found: dict[Member, str] = {}
        for row in self.rows:
            for member in (row.clean, row.degraded):
                if member is not None and member.shard == self.number:
                    found.setdefault(member, row.id)
        return found


def verify(
    store: Store,
    manifest: Manifest,
    *,
    decode: bool = False,
    runner: TaskRunner = run_inline,
    on_progress: ProgressCallback | None = None,
) -> VerifyReport:
    """Read a dataset completely; with `decode`, decode every image as well.

    Raises CorruptObjectError that names what is damaged or missing.
    """
    rows = _rows_of_shards(manifest)
    tasks = [
        VerifyTask(store, shard, number, copied(rows[number]), decode)
        for number, shard in enumerate(manifest.shards)
    ]
    images = sum(len(task.images) for task in tasks)
    problems = list(_listing_problems(store, manifest))
    for _, found in sorted(runner(check_shard, tasks, count_rows(on_progress, images))):
        problems += found
    if problems:
        more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        shown = "\n  ".join(problems[:_SHOWN])
        raise CorruptObjectError(
            f"{store.uri}: {len(problems)} of its objects or images are damaged.\n  {shown}{more}\n"
            "Restore them from a copy, or delete the damaged objects and pack again."
        )
    return VerifyReport(len(tasks), images, sum(shard.size for shard in manifest.shards))


def _rows_of_shards(manifest: Manifest) -> list[Rows]:
    """Return the rows with an image in each shard."""
    columns = manifest.columns
    images = np.ascontiguousarray(columns.images["shard"])
    clean = images[columns.rows["clean"]]
    degraded = np.where(columns.rows["degraded"] == NO_IMAGE, columns.rows["clean"], columns.rows["degraded"])
    other = images[degraded]
    elsewhere = np.flatnonzero(other != clean)
    shard = np.concatenate([clean, other[elsewhere]])
    row = np.concatenate([np.arange(len(clean)), elsewhere])
    order = np.lexsort((row, shard))
    ends = np.searchsorted(shard[order], np.arange(len(manifest.shards)), side="right")
    return [Rows(columns, numbers.astype(np.uint32)) for numbers in np.split(row[order], ends)[:-1]]


def check_shard(task: VerifyTask, on_images: RowsCallback) -> list[str]:
    """Return the problems of one shard, as sentences that name it."""
    where = f"{task.store.uri}/{task.shard.key}"
    images = task.images
    with tempfile.TemporaryDirectory(prefix="shards-") as folder:
        try:
            path = _local_file(task.store, task.shard, Path(folder))
        except MissingObjectError:
            on_images(len(images), "")
            return [f"{where} is missing although the manifest lists it."]
        problems = list(_file_problems(path, task.shard)) or list(_sample_problems(path, task))
        problems = [f"{where} {problem}" for problem in problems]
        held = path.stat().st_size
        with path.open("rb") as file:
            for member, id_ in images.items():
                # Nothing is read at places outside the file, whatever the manifest says.
                if member.offset + member.size > held:
                    problem = f"{max(held - member.offset, 0)} of {member.size} bytes are there."
                else:
                    file.seek(member.offset)
                    problem = _image_problem(file.read(member.size), member, task.decode)
                if problem:
                    problems.append(f"{where}, sample {id_!r} at byte {member.offset}: {problem}")
                on_images(1, id_)
    return problems


def _local_file(store: Store, shard: Shard, folder: Path) -> Path:
    if isinstance(store, LocalStore):
        path = store.path(shard.key)
        if not path.is_file():
            raise MissingObjectError(shard.key)
        return path
    path = folder / "shard.tar"
    try:
        download_named(store, shard.key, path, shard.sha256, shard.size)
    except CorruptObjectError:
        store.download(shard.key, path)  # the caller says what is wrong with it
    return path


def _listing_problems(store: Store, manifest: Manifest) -> Iterator[str]:
    for digest in manifest.provenance.get("sources", ()):
        try:
            read_listing(store, digest)
        except ShardsError as error:
            yield str(error)


def _file_problems(path: Path, shard: Shard) -> Iterator[str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        what = f"has {size} bytes instead of {shard.size}"
        if size == shard.size:
            what = "does not match its sha256"
        is_html = start.lstrip()[:15].lower().startswith((b"<!doctype", b"<html"))
        yield what + (": it is a web page." if is_html else ".")
        return
    yield from tar_problems(path)


def tar_problems(path: Path) -> Iterator[str]:
    """Yield what a shard must not hold whatever its checksum: names that leave the folder, links, a truncated end."""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                parts = member.name.split("/")
                if member.name.startswith("/") or ".." in parts or "\\" in member.name:
                    yield f"holds {member.name!r}, a name that leaves the folder it is unpacked in."
                elif not member.isreg():
                    yield f"holds {member.name!r}, which is not a regular file."
            end = tar.offset
        # tarfile stops at a header that it cannot read; other programs skip it and find more behind it.
        with path.open("rb") as file:
            file.seek(end)
            if any(block.strip(b"\0") for block in iter(lambda: file.read(BLOCK), b"")):
                yield f"holds something behind its end at byte {end}, which other programs may unpack."
    except (tarfile.TarError, EOFError) as error:
        yield f"is not a tar ({error})."


def _sample_problems(path: Path, task: VerifyTask) -> Iterator[str]:
    """Check that a WebDataset reader finds the rows of the manifest, with the same images."""
    expected = {
        (row.split, row.degradation, row.id): row
        for row in task.rows
        if row.clean.shard == task.number and (row.degraded is None or row.degraded.shard == task.number)
    }
    try:
        with path.open("rb") as file:
            for group in read_groups(file, path.name):
                checksums = {name: zlib.crc32(data) for name, data in group.items() if name[:2] != "__"}
                for entry in parse_json(group["json"]):
                    row = expected.pop((entry["split"], entry["degradation"], entry["id"]), None)
                    read = checksums.get(entry["clean"]), checksums.get(entry["degraded"])
                    if row is not None and read != _checksums(row):
                        yield f"holds other images for sample {row.id!r} than the manifest lists."
    except (ValueError, TypeError, LookupError, AttributeError, tarfile.TarError, EOFError) as error:
        yield f"cannot be read by WebDataset ({error!r})."
        return
    if expected:
        first = next(iter(expected.values()))
        yield f"holds no WebDataset sample for {len(expected)} rows of the manifest, such as {first.id!r}."


def _checksums(row: ManifestRow) -> tuple[int, int | None]:
    return row.clean.crc32, None if row.degraded is None else row.degraded.crc32


def _image_problem(data: bytes, member: Member, decode: bool) -> str:
    if len(data) != member.size:
        return f"{len(data)} of {member.size} bytes are there."
    if zlib.crc32(data) != member.crc32:
        return "its checksum does not match."
    if not decode:
        return ""
    try:
        image = _decoded(data, member.encoding)
    except ShardsError as error:
        return str(error)
    size = (member.height, member.width)
    return "" if image.shape[:2] == size else f"it has {image.shape[:2]} pixels, the manifest says {size}."


def _decoded(data: bytes, encoding: str) -> NDArray[Any]:
    if encoding == ORIGINAL:
        return read_samples(data, "a kept file")
    if encoding not in WINDOWED:
        raise CorruptObjectError(f"it is encoded as {encoding!r}, which this program cannot read.")
    image = WINDOWED[encoding](data)
    return image.crop(0, 0, *image.shape)
