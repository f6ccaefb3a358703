"""Command about what a run consumed."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.app import app, say, use_local_cluster


@app.command()
def ledger(
    run: Annotated[
        str, typer.Argument(help="Folder of a run in the store: s3://bucket/runs/NAME or a path.")
    ],
) -> None:
    """Check that a run with `data.ledger` consumed each position exactly once."""
    use_local_cluster()
    from orchestrator.consumed import consumed

    say(consumed(run).render())
