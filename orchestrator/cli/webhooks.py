"""Commands about the webhooks of an MLflow server: create, list, test, delete."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import MODELS, Command, app, argument, emit, epilog, option, use_local_cluster

webhooks = typer.Typer(
    no_args_is_help=True, help="Let an MLflow server tell `mirage serve` or a CI system that an alias moved."
)
app.add_typer(webhooks, name="webhooks", rich_help_panel=MODELS)

Id = Annotated[str, argument("The webhook's id, as `list` prints it.")]


@webhooks.command(
    cls=Command,
    epilog=epilog("mirage webhooks create https://restore.example/webhooks/mlflow --secret-file hook.secret"),
)
def create(
    url: Annotated[
        str,
        argument("Address that gets the events; for `mirage serve` http://HOST:PORT/webhooks/mlflow."),
    ],
    name: Annotated[str, option("Name of the webhook.")] = "mirage",
    secret_file: Annotated[
        Path | None,
        option(
            "File with the secret that signs the events. The receiver needs the same.",
            default="MIRAGE_WEBHOOK_SECRET",
        ),
    ] = None,
) -> None:
    """Let the MLflow server send a signed event to URL whenever an alias of a model is set."""
    from orchestrator.errors import ServiceError
    from orchestrator.registry import webhooks as registry
    from orchestrator.serving import webhook
    from orchestrator.serving.auth import read_secret

    secret = read_secret(secret_file, "--secret-file", webhook.VARIABLE)
    if secret is None:
        raise ServiceError(f"--secret-file: give a file with the secret, or set {webhook.VARIABLE}.")
    made = registry.create(_tracking_uri(), name, url, secret)
    emit(f"{made.id}: sends {', '.join(made.events)} to {made.url}")
    emit(f"to test it: mirage webhooks test {made.id}")


@webhooks.command("list", cls=Command, epilog=epilog("mirage webhooks list"))
def list_() -> None:
    """List the webhooks of the MLflow server."""
    from orchestrator.registry import webhooks as registry
    from orchestrator.tables import aligned

    rows = [
        (entry.id, entry.name, entry.status, ", ".join(entry.events), entry.url)
        for entry in registry.list_all(_tracking_uri())
    ]
    emit("\n".join(aligned(("id", "name", "status", "events", "address"), rows)) if rows else "none")


@webhooks.command(cls=Command, epilog=epilog("mirage webhooks test ID"))
def test(webhook_id: Id) -> None:
    """Let the MLflow server send an example event now. Exit status 2 if it is not accepted."""
    from orchestrator.registry import webhooks as registry

    emit(registry.send_test(_tracking_uri(), webhook_id))


@webhooks.command(cls=Command, epilog=epilog("mirage webhooks delete ID"))
def delete(webhook_id: Id) -> None:
    """Delete a webhook."""
    from orchestrator.registry import webhooks as registry

    registry.delete(_tracking_uri(), webhook_id)
    emit(f"{webhook_id}: deleted")


def _tracking_uri() -> str:
    from orchestrator.tracking.uri import resolve_tracking_uri

    use_local_cluster()
    return resolve_tracking_uri()
