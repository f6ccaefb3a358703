"""The command that serves a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit_error, use_local_cluster


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="models:/NAME@ALIAS (watched), a file or a run.", show_default=False)
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the bearer token that clients need; default: variable MIRAGE_SERVE_TOKEN."
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda; with cuda each replica gets one GPU.")
    ] = "auto",
    min_replicas: Annotated[int, typer.Option(help="Minimum number of replicas.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Maximum number of replicas, under load.")] = 1,
    threads: Annotated[
        int, typer.Option(help="CPU threads of a replica; 0 divides the cores by --max-replicas.")
    ] = 0,
    max_batch: Annotated[int, typer.Option(help="Images of one size restored together.")] = 4,
    max_megabytes: Annotated[float, typer.Option(help="Maximum size of an image file [10^6 bytes].")] = 64,
    max_megapixels: Annotated[float, typer.Option(help="Maximum size of an image [10^6 pixels].")] = 24,
    max_in_flight: Annotated[
        int, typer.Option(help="Maximum in-flight requests; beyond it clients get HTTP 429.")
    ] = 16,
    queue: Annotated[int | None, typer.Option(hidden=True)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds to restore an image; then HTTP 504.")] = 900,
    poll: Annotated[float, typer.Option(help="Seconds between two looks at the alias.")] = 3,
) -> None:
    """Serve a model over HTTP, with a page at /. A promotion takes effect without a restart."""
    use_local_cluster()
    from orchestrator.restoration.restorer import choose_device
    from orchestrator.serving.auth import read_token
    from orchestrator.serving.serve import serve as run
    from orchestrator.serving.settings import ServiceSettings

    if queue is not None:
        emit_error("--queue is now --max-in-flight")
    settings = ServiceSettings.from_flags(
        host=host,
        port=port,
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        max_in_flight=max_in_flight if queue is None else queue,
        timeout=timeout,
        max_batch=max_batch,
        min_replicas=min_replicas,
        max_replicas=max(max_replicas, min_replicas),
        device=choose_device(device).type,
        threads=threads,
        poll=poll,
    )
    run(model, settings, read_token(token_file), emit_error)
