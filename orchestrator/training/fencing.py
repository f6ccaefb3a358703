"""Let only the newest workers of a run write to it.

A hung node may train on after Ray has replaced its worker, and so may the workers of a driver that was replaced. Each
group of workers therefore makes a numbered claim when it starts; before each write it looks for a higher one.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, cast

from orchestrator.errors import SupersededError
from orchestrator.ownership import delete_older_claims, newest_claim, numbered_claim
from shards.store import Store

_FOLDER = "writer"
_WRITES = ("write", "write_file", "create", "replace", "write_pointer", "delete")


def claim_writing(store: Store) -> str:
    """Make a group of workers the only one that may write to the run's folder; return its claim."""
    claim = numbered_claim(store, _FOLDER)
    store.write(claim, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
    delete_older_claims(store, _FOLDER, claim)
    return claim


def fenced(store: Store, claim: str) -> Store:
    """Return the store, whose writes raise SupersededError as soon as there is a newer claim."""
    return cast(Store, _FencedStore(store, claim))


class _FencedStore:
    def __init__(self, store: Store, claim: str) -> None:
        self._store, self._claim = store, claim

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in _WRITES:
            newest = newest_claim(self._store, _FOLDER)
            if newest > self._claim:
                raise SupersededError(
                    f"{self._store.uri} is written by other workers by now ({newest}). These stop without writing "
                    "anything more."
                )
        return getattr(self._store, name)
