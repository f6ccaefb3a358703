"""The command that serves a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from orchestrator.cli.app import (
    USE,
    Trust,
    argument,
    command,
    complete_model,
    emit_error,
    option,
    use_local_cluster,
)
from orchestrator.number_limits import MAX_THREADS

_LIMITS, _REPLICAS = "Limits", "Replicas"


@command(
    USE,
    "mirage serve models:/mirage-demo@candidate",
    "mirage serve models:/mirage-5deg@champion --host 0.0.0.0 --token-file serve.token --device cuda --max-replicas 4",
)
def serve(
    model: Annotated[
        str,
        argument(
            "models:/NAME@ALIAS (loaded again when the alias moves), a weights file or a run.",
            autocompletion=complete_model,
        ),
    ],
    host: Annotated[str, option("Address to listen on. 0.0.0.0 is every address.")] = "127.0.0.1",
    port: Annotated[int, option("Port to listen on. 0 takes a free one.", min=0, max=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None,
        option(
            "Host name that requests may use, for example that of a proxy. Repeatable.",
            default="addresses, local names, this machine's name; with a token any",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        option("File with the bearer token that clients must send.", default="MIRAGE_SERVE_TOKEN, if set"),
    ] = None,
    webhook_secret_file: Annotated[
        Path | None,
        option(
            "File with the secret of MLflow's webhook. See `mirage webhooks`.",
            default="MIRAGE_WEBHOOK_SECRET, if set",
        ),
    ] = None,
    trust: Trust = None,
    poll_seconds: Annotated[
        float | None,
        option("Seconds between checks of the alias.", default="3; 60 with a webhook"),
    ] = None,
    device: Annotated[
        str,
        option("Device of a replica.", metavar="auto|cpu|cuda", rich_help_panel=_REPLICAS),
    ] = "auto",
    min_replicas: Annotated[int, option("Minimum number of replicas.", rich_help_panel=_REPLICAS)] = 1,
    max_replicas: Annotated[int, option("Maximum number of replicas.", rich_help_panel=_REPLICAS)] = 1,
    threads: Annotated[
        int,
        option(
            "CPU threads of a replica. 0 divides the cores by --max-replicas.",
            rich_help_panel=_REPLICAS,
            min=0,
            max=MAX_THREADS,
        ),
    ] = 0,
    max_batch: Annotated[
        int,
        option("Maximum number of images of one size restored together.", rich_help_panel=_REPLICAS),
    ] = 4,
    max_megabytes: Annotated[
        float, option("Maximum size of an image file in MB (10^6 bytes).", rich_help_panel=_LIMITS)
    ] = 64,
    max_megapixels: Annotated[
        float, option("Maximum size of an image in megapixels.", rich_help_panel=_LIMITS)
    ] = 24,
    max_in_flight: Annotated[
        int,
        option(
            "Maximum number of in-flight requests. Beyond it clients get HTTP 429.", rich_help_panel=_LIMITS
        ),
    ] = 16,
    timeout_seconds: Annotated[
        float,
        option("Maximum seconds for one image. Then the client gets HTTP 504.", rich_help_panel=_LIMITS),
    ] = 900,
) -> None:
    """Serve a model over HTTP, with a web page at /. When its alias moves, the new version is served."""
    use_local_cluster()
    from orchestrator.restoration.restorer import choose_device
    from orchestrator.serving.auth import read_token
    from orchestrator.serving.front_end import Secrets
    from orchestrator.serving.serve import serve as run
    from orchestrator.serving.settings import ServiceSettings
    from orchestrator.serving.webhook import read_webhook_secret

    settings = ServiceSettings.from_flags(
        host=host,
        port=port,
        allow_host=allow_host,
        max_megabytes=max_megabytes,
        max_megapixels=max_megapixels,
        max_in_flight=max_in_flight,
        timeout_seconds=timeout_seconds,
        max_batch=max_batch,
        min_replicas=min_replicas,
        max_replicas=max(max_replicas, min_replicas),
        device=choose_device(device).type,
        threads=threads,
        poll_seconds=poll_seconds,
    )
    secrets = Secrets(read_token(token_file), read_webhook_secret(webhook_secret_file))
    run(model, settings, secrets, emit_error, trust or ())
