"""The `mirage` application and what its commands share: arguments, help panels, output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from orchestrator.errors import OutputError
from orchestrator.number_limits import MAX_NUMBER, MAX_SEED, MAX_THREADS
from shards.filesystem import expand_user

if TYPE_CHECKING:
    from orchestrator.config.job_schemas import EvaluateJob
    from orchestrator.config.schema import Job

    AnyJob = TypeVar("AnyJob", Job, EvaluateJob)

START = "Get started"
DATA = "Data"
TRAINING = "Training"
EVALUATION = "Evaluation"
MODELS = "Models"
USE = "Restore and serve"
PROOFS = "Proofs"

Function = TypeVar("Function", bound=Callable[..., Any])

app = typer.Typer(
    name="mirage",
    help="Train, evaluate, register and serve MIRAGE image restoration models, on a laptop or a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command that also accepts the old names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args`; an option under its old name works, and one line on stderr names the new one."""
        return list(super().parse_args(ctx, [self._current(ctx, word) for word in args]))

    def _current(self, ctx: Any, word: str) -> str:
        name, equals, value = word.partition("=")
        group = ctx.parent.info_name if ctx.parent.parent else ""
        new = OLD_OPTIONS.get((f"{group} {ctx.info_name}".strip(), name))
        if new is None:
            return word
        emit_error(f"{name} is now called {new}. The old name still works.")
        return f"{new}{equals}{value}"


_WITH_PROCESSES = ("verify", "audit", "pack photographs", "pack clean", "pack synthetic", "pack pairs")

OLD_OPTIONS = {
    ("chaos", "--kills"): "--faults",
    ("serve", "--queue"): "--max-in-flight",
    ("analyse", "--beside"): "--compare-with",
    ("report", "--against"): "--compare-with",
    ("promote", "--max-loss-db"): "--max-drop-db",
    ("promote", "--to"): "--alias",
    ("analyse", "--degrade"): "--degradation",
    ("serve", "--timeout"): "--timeout-seconds",
    ("serve", "--poll"): "--poll-seconds",
    ("gc", "--older-than"): "--older-than-hours",
    ("verify", "--pixels"): "--decode",
    ("audit", "--shown"): "--max-groups",
    ("prove-resume", "--on"): "--workers-after",
    ("restore", "--compare"): "--sheet",
    **{(name, "--jobs"): "--processes" for name in _WITH_PROCESSES},
}
"""(Command, old option) -> the option's name now."""


def command(
    panel: str, *examples: str, name: str | None = None, **settings: Any
) -> Callable[[Function], Function]:
    """Return a decorator that adds a function to the application, in a help panel and with examples."""
    return app.command(name, cls=Command, rich_help_panel=panel, epilog=epilog(*examples), **settings)


def epilog(*examples: str) -> str:
    """Return the end of a help text: one example per line."""
    return "\n\n".join(["Examples:" if len(examples) > 1 else "Example:", *examples]) if examples else ""


def complete_job_file(incomplete: str) -> list[str]:
    """Return the job files that begin with `incomplete`, for the shell's completion."""
    found = [*Path().glob("*.yaml"), *Path("jobs").rglob("*.yaml")]
    return sorted(str(path) for path in found if str(path).startswith(incomplete))


def complete_model(incomplete: str) -> list[str]:
    """Return the registered models, by version and by alias, and the runs that begin with `incomplete`."""
    from orchestrator.cli.names import model_names, run_folders

    return [name for name in (*model_names(), *run_folders()) if name.startswith(incomplete)]


def complete_run_id(incomplete: str) -> list[str]:
    """Return the ids of this folder's runs that begin with `incomplete`."""
    from orchestrator.cli.names import run_ids

    return [name for name in run_ids() if name.startswith(incomplete)]


def complete_run_folder(incomplete: str) -> list[str]:
    """Return the folders of runs that begin with `incomplete`."""
    from orchestrator.cli.names import run_folders

    return [name for name in run_folders() if name.startswith(incomplete)]


def argument(help_text: str, **settings: Any) -> Any:
    """Return a required argument."""
    return typer.Argument(help=help_text, show_default=False, **settings)


def option(help_text: str, *names: str, default: str | bool = True, **settings: Any) -> Any:
    """Return an option. `default` is how its help shows the default: its value (True), not at all, or as this text."""
    settings.setdefault("callback", _checked)
    return typer.Option(*names, help=help_text, show_default=default, **settings)


def _checked(value: Any) -> Any:
    """Return the value of an option, with the home folder for the `~` of a path, which shells leave in `--out=~/a`.

    Raises BadParameter for NaN, which no range excludes, and for huge numbers, PathError for a home that is not there.
    """
    if isinstance(value, Path):
        return expand_user(value)
    if isinstance(value, list | tuple):
        return type(value)(map(_checked, value))
    if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
        raise typer.BadParameter(f"{value!s:.20} is not a number of at most {MAX_NUMBER:,}.")
    return value


Trust = Annotated[
    list[str] | None,
    option(
        "SHA-256 of the model's own Python code, which may then run; `mirage network-code` shows it. Repeatable.",
        default="the code of this account's training jobs",
        metavar="SHA256",
    ),
]
"""The option --trust."""


JobFile = Annotated[Path, argument("A job file.", metavar="JOB", autocompletion=complete_job_file)]
Set = Annotated[
    list[str] | None,
    option("Override a key of the job. Repeatable.", "--set", default=False, metavar="KEY=VALUE"),
]
InProcess = Annotated[bool, option("Run in this process with one worker, without Ray.", "--in-process")]
Processes = Annotated[
    int | None, option("Number of processes.", "--processes", default="all cores", min=1, max=MAX_THREADS)
]


def seed_option(help_text: str) -> Any:
    """Return an option for a random seed."""
    return option(help_text, min=0, max=MAX_SEED, callback=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        from orchestrator.version import code_version

        emit(f"mirage {code_version()}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, option("Print the version and exit.", "--version", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Hold the options of `mirage` itself."""


def load_job_of(schema: type[AnyJob], job_file: Path, overrides: list[str] | None) -> AnyJob:
    """Return the job of a file. Raises PlanError where it is of another kind than `schema`."""
    from orchestrator.config.loader import load_job
    from orchestrator.errors import PlanError

    job = load_job(job_file, overrides or ())
    if not isinstance(job, schema):
        kind = schema.model_fields["kind"].default
        raise PlanError(f"{job_file}: is a job of kind {job.kind}, and this command takes kind {kind}.")
    return job


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
"""Variables that name the user's own S3. A region or a certificate bundle alone does not."""


def use_local_cluster() -> None:
    """Set the environment of the Ray head and the store that `mirage up` runs for this folder, else of a private Ray.

    Variables that are set already keep their values. The user's own S3 credentials keep all AWS variables as they are.
    """
    import os

    from orchestrator.cluster import private_ray
    from orchestrator.cluster.local import lifecycle
    from orchestrator.errors import ClusterError

    try:
        offered = lifecycle.environment(Path.cwd())
    except ClusterError:
        private_ray.prepare()
        return
    has_own_store = not os.environ.keys().isdisjoint(USER_S3_VARIABLES) or os.path.exists(
        os.path.expanduser("~/.aws")
    )
    for name, value in offered.items():
        if not (has_own_store and name.startswith("AWS_")):
            os.environ.setdefault(name, value)


def emit(text: str) -> None:
    """Print a line to standard output. Raises OutputError for a full disk, BrokenPipeError if nobody reads it."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        raise  # ends the command quietly, as shells expect of the left side of a pipe
    except OSError as error:
        raise OutputError(
            f"standard output cannot be written ({error.strerror}). Free some space."
        ) from error


def emit_if_possible(text: str) -> None:
    """Print a line to standard output; a full disk costs the line and not the work that it reports."""
    with contextlib.suppress(OutputError):
        emit(text)


def emit_error(text: str) -> None:
    """Print a line to standard error, where it can be written."""
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)
