"""What all groups of commands share: the application, the job arguments, and how things are said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="mirage",
    help="From raw photographs to a trained, judged, registered MIRAGE image restoration model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JobFile = Annotated[Path, typer.Argument(help="A job file, for example jobs/demo.yaml.", show_default=False)]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job; repeatable."),
]


# With one of these the shell says whose S3 it means; a region or a certificate bundle alone says nothing of the kind.
USER_S3_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ROLE_ARN",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)


def use_local_cluster() -> None:
    """Let a plain shell reach the store and the Ray head that `mirage up` runs for this folder.

    What the shell or the job has set itself stands.
    """
    import os

    from orchestrator.cluster.local import lifecycle
    from orchestrator.errors import ClusterError

    try:
        offered = lifecycle.environment(Path.cwd())
    except ClusterError:
        return
    own_store = not os.environ.keys().isdisjoint(USER_S3_VARIABLES) or Path("~/.aws").expanduser().exists()
    for name, value in offered.items():
        if not (own_store and name.startswith("AWS_")):
            os.environ.setdefault(name, value)


def emit(text: str) -> None:
    """Print a line to standard output."""
    typer.echo(text)


def emit_error(text: str) -> None:
    """Print a line to standard error."""
    typer.echo(text, err=True)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a progress callback that draws a bar with rate and time left."""
    with progress_bars(label) as (advance,):
        yield advance


@contextmanager
def progress_bars(*labels: str) -> Iterator[tuple[Callable[[int, int, str], None], ...]]:
    """Yield a progress callback for each label; its bar comes with the first call."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        """Samples per second."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.1f}/s" if speed else "")

    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate()),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {label: progress.add_task(label, total=None, visible=False, start=False) for label in labels}

        def advance(label: str, done: int, total: int, name: str) -> None:
            progress.start_task(tasks[label])
            progress.update(tasks[label], completed=done, total=total, visible=True)

        yield tuple(partial(advance, label) for label in labels)
