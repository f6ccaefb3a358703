"""The command that serves a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit_error, use_local_cluster


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS (followed), a file or a run.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the bearer token to ask for; else the variable MIRAGE_SERVE_TOKEN."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; a replica on cuda has a GPU.")] = "auto",
    min_replicas: Annotated[int, typer.Option(help="Replicas that always run.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Replicas under load.")] = 1,
    threads: Annotated[int, typer.Option(help="Of a replica; 0 shares the cores among --max-replicas.")] = 0,
    max_batch: Annotated[int, typer.Option(help="Images of one size restored at once.")] = 4,
    max_megabytes: Annotated[float, typer.Option(help="Of an image file [10^6 bytes].")] = 64,
    max_megapixels: Annotated[float, typer.Option(help="Of an image.")] = 24,
    queue: Annotated[int, typer.Option(help="Requests inside at a time; the next gets 429.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that an image may take; then 504.")] = 900,
    poll: Annotated[float, typer.Option(help="Seconds between looks at the alias.")] = 3,
) -> None:
    """Serve a model over HTTP, with a page at /; a promotion reaches it while it runs."""
    use_local_cluster()
    from orchestrator.restoration.restorer import choose_device
    from orchestrator.serving.auth import read_token
    from orchestrator.serving.serve import serve as run
    from orchestrator.serving.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        max_bytes=int(max_megabytes * 1e6),
        max_pixels=int(max_megapixels * 1e6),
        queue=queue,
        timeout_seconds=timeout,
        max_batch=max_batch,
        min_replicas=min_replicas,
        max_replicas=max(max_replicas, min_replicas),
        device=choose_device(device).type,
        threads=threads,
        poll_seconds=poll,
    )
    run(model, settings, read_token(token_file), emit_error)
