"""Packing in processes: the same bytes as in one, whoever is killed, and memory that does not grow with the set."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from PIL import Image

from shards.errors import ManifestError, PackError
from shards.manifest import load_manifest
from shards.pack import pack
from shards.processes import ProcessPool, RowsCallback
from shards.sources import FolderSource, PairsSource
from shards.store import LocalStore
from tests.claims import wait_until
from tests.shards.raw import lay_pairs

KINDS = ["rain", "haze", "low_haze_rain"]


def source(photographs: Path) -> FolderSource:
    return FolderSource(photographs, KINDS, variants=2, seed=1)


def shards(store: LocalStore) -> dict[str, bytes]:
    return {key: store.read(key) for key in store.list("shards/")}


def test_any_number_of_processes_gives_the_same_dataset(photographs: Path, tmp_path: Path):
    alone, together = LocalStore(tmp_path / "1"), LocalStore(tmp_path / "3")
    seen: list[int] = []
    first = pack(source(photographs), alone, name="p", shard_bytes=50_000)
    second = pack(
        source(photographs),
        together,
        name="p",
        shard_bytes=50_000,
        runner=ProcessPool(3),
        on_progress=lambda done, total, id_: seen.append(done),
    )
    assert len(first.shards) > 3
    assert first.digest == second.digest
    assert shards(alone) == shards(together)
    assert seen == list(range(1, len(second.rows) + 1))
    assert together.list() == alone.list()
    assert not together.list("packing/")


PACK = """
import sys
from pathlib import Path
from shards.pack import pack
from shards.processes import ProcessPool
from shards.sources import FolderSource
from shards.store import LocalStore
if __name__ == "__main__":
    source = FolderSource(Path(sys.argv[1]), ["rain", "haze", "low_haze_rain"], variants=2, seed=1)
    def tell(done, total, id_):
        print(done, flush=True)
    pack(source, LocalStore(Path(sys.argv[2])), name="p", shard_bytes=50_000, runner=ProcessPool(2), on_progress=tell)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_in_the_same_bytes(photographs: Path, tmp_path: Path):
    whole = LocalStore(tmp_path / "whole")
    expected = pack(source(photographs), whole, name="p", shard_bytes=50_000)
    store = LocalStore(tmp_path / "store")
    script = tmp_path / "packing.py"
    script.write_text(PACK)
    process = subprocess.Popen(
        [sys.executable, str(script), str(photographs), str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        start_new_session=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= len(expected.rows) // 2:
            break
    process.kill()
    process.wait()
    process.stdout.close()
    _wait_for_the_group_to_end(process.pid)
    with pytest.raises(ManifestError):
        load_manifest(store)
    left = set(store.list("packing/"))
    assert 0 < len(left) < len(expected.shards)
    done = {path: path.stat().st_mtime_ns for path in (store.root / "shards").iterdir()}

    again = pack(source(photographs), store, name="p", shard_bytes=50_000)
    assert again.digest == expected.digest
    assert shards(store) == shards(whole)
    assert {path: path.stat().st_mtime_ns for path in done} == done  # what was there was not written again
    assert not store.list("packing/")


def test_a_record_whose_shard_is_gone_or_that_is_damaged_counts_for_nothing(
    photographs: Path, tmp_path: Path
):
    store = LocalStore(tmp_path / "store")
    tasks = []

    def stop_half_way(work, given, tick: RowsCallback):
        for index, task in list(enumerate(given))[:3]:
            tasks.append(work(task, tick))
            yield index, tasks[-1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source(photographs), store, name="p", shard_bytes=50_000, runner=stop_half_way)
    records = store.list("packing/")
    assert len(records) == 3
    store.path(records[0]).write_bytes(b"<html>")
    store.path(tasks[1].shard.key).unlink()
    expected = pack(source(photographs), LocalStore(tmp_path / "whole"), name="p", shard_bytes=50_000)
    assert pack(source(photographs), store, name="p", shard_bytes=50_000).digest == expected.digest
    assert shards(store) == shards(LocalStore(tmp_path / "whole"))


def test_a_changed_photograph_is_packed_anew_after_an_interruption(photographs: Path, tmp_path: Path):
    raw = tmp_path / "raw"
    shutil.copytree(photographs, raw)
    store = LocalStore(tmp_path / "store")

    def stop(work, given, tick: RowsCallback):
        yield 0, work(given[0], tick)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source(raw), store, name="p", shard_bytes=50_000, runner=stop)
    with Image.open(raw / "brick.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(raw / "brick.png")
    expected = pack(source(raw), LocalStore(tmp_path / "whole"), name="p", shard_bytes=50_000)
    assert pack(source(raw), store, name="p", shard_bytes=50_000).digest == expected.digest


def test_what_could_not_be_read_is_read_again_though_the_file_looks_the_same(
    photographs: Path, tmp_path: Path
):
    raw = tmp_path / "raw"
    shutil.copytree(photographs, raw)
    file, store = raw / "brick.png", LocalStore(tmp_path / "store")
    whole, stat = file.read_bytes(), file.stat()
    for data, fails in ((whole[: len(whole) // 2].ljust(len(whole), b"\0"), True), (whole, False)):
        file.write_bytes(data)
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        with pytest.raises(PackError, match=r"could not be read whole.*brick") if fails else nullcontext():
            pack(source(raw), store, name="p", shard_bytes=50_000)
    expected = pack(source(raw), LocalStore(tmp_path / "whole"), name="p", shard_bytes=50_000)
    assert load_manifest(store).digest == expected.digest
    assert not store.list("packing/")


def test_memory_does_not_grow_with_the_set(tmp_path: Path):
    image_bytes = 256 * 256 * 3

    def peak_bytes(pairs: int) -> int:
        root = tmp_path / f"raw-{pairs}"
        lay_pairs(root, [(f"in/{n}.png", f"gt/{n}.png") for n in range(pairs)], (256, 256))
        source = PairsSource(root, "in/{key}.png", "gt/{key}.png", "haze")
        tracemalloc.start()
        try:
            pack(source, LocalStore(tmp_path / f"store-{pairs}"), name="p", shard_bytes=1 << 19)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak_bytes(24) - peak_bytes(6) < 4 * image_bytes  # 36 images more went through


def die(task: int, tick: RowsCallback) -> int:
    if task == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def test_a_process_that_dies_is_an_error_and_not_a_hang():
    with pytest.raises(PackError, match=r"exit status -9.*--processes"):
        list(ProcessPool(2)(die, [0, 1, 2], lambda rows, id_: None))


def refuse(task: int, tick: RowsCallback) -> int:
    raise PackError(f"task {task} is refused")


def test_an_error_in_a_process_is_the_error_of_the_whole():
    with pytest.raises(PackError, match=r"task . is refused"):
        list(ProcessPool(2)(refuse, [0, 1, 2], lambda rows, id_: None))


def _wait_for_the_group_to_end(group: int) -> None:
    """The processes that were started for packing end by themselves."""
    wait_until(
        lambda: not any(_belongs(process, group) for process in psutil.process_iter()), "no process is left"
    )


def _belongs(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
