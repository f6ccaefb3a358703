"""A disk that fills while a dataset is packed: said, nothing half-written, and packing again goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys, os
from pathlib import Path
from shards.errors import ShardsError
from shards.manifest import load_manifest
from shards.pack import pack
from shards.sources import FolderSource
from shards.store import LocalStore
from shards.verify import verify
small, roomy, photographs = map(Path, sys.argv[1:4])
store = LocalStore((small if sys.argv[4] == "store" else roomy) / "store")
source = FolderSource(photographs, ["rain", "haze", "snow"], variants=4)
def go():
    return pack(source, store, name="p", shard_bytes=int(sys.argv[5]))
try:
    go()
except ShardsError as error:
    print(type(error).__name__, error)
try:
    load_manifest(store)
except ShardsError as error:
    print(type(error).__name__)
print("half-written:", [p.name for p in small.rglob("*") if p.name.startswith((".tmp-", "shards-"))])
"""


@pytest.mark.parametrize(
    ("where", "shard_bytes", "says"),
    [
        ("store", 200_000, "StoreError.*No space left on device. Free some space"),
        ("temporary", 1 << 30, "PackError.*no space left for a shard.*TMPDIR"),
    ],
)
def test_a_full_disk_is_said_and_nothing_is_half_written(
    photographs: Path, tmp_path: Path, where: str, shard_bytes: int, says: str
):
    """A file system of one megabyte, in a mount namespace of its own."""
    small, roomy = tmp_path / "small", tmp_path / "roomy"
    small.mkdir()
    roomy.mkdir()
    temporary = small if where == "temporary" else roomy
    shell = 'mount -t tmpfs -o size=1m none "$1" && TMPDIR="$2" exec "$3" -c "$4" "$5" "$6" "$7" "$8" "$9"'
    words = [small, temporary, sys.executable, SCRIPT, small, roomy, photographs, where, shard_bytes]
    inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", shell, "sh", *map(str, words)]
    ended = subprocess.run(inside, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if "unshare" in ended.stderr or "mount:" in ended.stderr:
        # tests/conftest.py lists this reason
        pytest.skip(f"no file system can be mounted here: {ended.stderr.strip()}")  # containers may forbid it
    failure, unpublished, left = ended.stdout.strip().splitlines() or [ended.stderr] * 3
    assert re.search(says, failure), ended.stdout + ended.stderr
    assert unpublished == "ManifestError"
    assert left == "half-written: []"
