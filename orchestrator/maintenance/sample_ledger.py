"""Proof of what a run consumed, from its ledger and, when it has finished, its result."""

from __future__ import annotations

import json

from orchestrator.paths import absolute_uri
from orchestrator.run_files import RESULT
from shards.ledger import LedgerReport, read_ledger
from shards.store import open_store


def consumed(run: str) -> LedgerReport:
    """Return what the ledger in a run's folder shows; raises `shards.LedgerError` unless it is whole.

    That of a finished run must reach to its last position.
    """
    store = open_store(absolute_uri(run))
    positions = None
    if store.exists(RESULT):
        positions = json.loads(store.read(RESULT)).get("positions")
    return read_ledger(store, positions)
