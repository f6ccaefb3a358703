"""Check which samples a run consumed, by its ledger and its result."""

from __future__ import annotations

from orchestrator.paths import absolute_uri
from orchestrator.run_files import RESULT, read_result
from shards.ledger import LedgerReport, read_ledger
from shards.store import open_store


def consumed(run: str) -> LedgerReport:
    """Return the report of a run's ledger; raises `shards.LedgerError` if it is incomplete.

    The ledger of a finished run must reach its last position.
    """
    store = open_store(absolute_uri(run))
    positions = None
    if store.exists(RESULT):
        positions = read_result(store, ()).get("positions")
    return read_ledger(store, positions)
