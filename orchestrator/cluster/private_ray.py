"""Prepare a Ray for this process alone: on loopback, with a token, its files in a folder of this user.

By default Ray listens on every interface, asks for no token, and keeps its session in /tmp/ray, where every account of
the machine may write.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.cluster.local import ray_head


def is_needed() -> bool:
    """Return whether no cluster is named: not by RAY_ADDRESS, nor by a `ray start` of this user on this machine.

    Ray itself would join a cluster whose address another account wrote into its world-writable folder.
    """
    if os.environ.get("RAY_ADDRESS"):
        return False
    try:
        return ray_head.stale_address_file().lstat().st_uid != os.getuid()
    except OSError:
        return True


def prepare(*, always: bool = False) -> None:
    """Set what Ray reads when it is imported, if this process would start a Ray; nothing if it has been imported.

    always: the process starts one whatever is named.
    """
    if "ray" in sys.modules or not (always or is_needed()):
        return
    for name, value in ray_head.ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    asks = os.environ.setdefault("RAY_AUTH_MODE", "token") == "token"
    if asks and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def session() -> Iterator[dict[str, Any]]:
    """Yield arguments of `ray.init` that start the Ray; remove its folder at the end of the block."""
    folder = Path(ray_head.make_temp_dir())
    try:
        yield {"address": "local", "_temp_dir": str(folder / "ray"), "_node_ip_address": "127.0.0.1"}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
