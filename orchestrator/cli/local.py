"""Commands about this machine: doctor, up, down, env, ui."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import START, command, emit, emit_error, option, use_local_cluster
from orchestrator.console import count


@command(START, "mirage doctor")
def doctor() -> None:
    """Check this machine: Python, packages, disk, ports, storage, tracking, job files. Exit status 1 on a failure."""
    from orchestrator.maintenance.doctor import diagnose

    findings = diagnose(Path.cwd())
    signs = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
    for finding in findings:
        emit(f"{signs[finding.status]}  {finding.name:<18} {finding.detail}")
        if finding.remedy:
            emit(f"      {'':<18} {finding.remedy}")
    if any(f.status == "fail" for f in findings):
        raise typer.Exit(1)


@command(START, "mirage up", "mirage up --cpus 4 --no-s3")
def up(
    s3: Annotated[
        bool, option("Serve .mirage as an S3 bucket on loopback.", "--with-s3/--no-s3", "--s3/ ")
    ] = True,
    s3_port: Annotated[
        int | None, option("Port of the S3 server.", default="a free one", min=1, max=65535)
    ] = None,
    dashboard_port: Annotated[
        int, option("Port for `ray job submit` and Ray's dashboard.", min=1, max=65535)
    ] = 8265,
    ray_port: Annotated[int, option("Port of the Ray head.", min=1, max=65535)] = 6379,
    cpus: Annotated[int | None, option("Number of CPUs that Ray may use.", default="all", min=1)] = None,
) -> None:
    """Start a Ray head and an S3 server on this machine. They listen on loopback only."""
    from orchestrator.cluster.local import lifecycle

    started = lifecycle.up(
        Path.cwd(), s3=s3, s3_port=s3_port, dashboard_port=dashboard_port, ray_port=ray_port, cpus=cpus
    )
    emit(started.render())


@command(START, "mirage down", "mirage down --force")
def down(
    force: Annotated[
        bool, option("Stop also while jobs run. Ray jobs write a checkpoint first.", "--force")
    ] = False,
) -> None:
    """Stop what `mirage up` started. Refuses, or asks at a terminal, while a job uses it."""
    import sys

    from orchestrator.cluster.local import lifecycle
    from orchestrator.errors import ClusterError

    running = lifecycle.uses(Path.cwd())
    if running and not force:
        told = "\n".join(["this cluster is in use:", *(f"  {use}" for use in running)])
        if not sys.stdin.isatty():
            raise ClusterError(f"{told}\nStop that first, or stop all of it: mirage down --force")
        typer.confirm(f"{told}\nStop all of it?", abort=True)
    stopped = lifecycle.down(Path.cwd())
    emit("stopped " + ", ".join(stopped) if stopped else "nothing was running")


@command(START, 'eval "$(mirage env)"')
def env() -> None:
    """Print the environment of the local cluster as export lines, for other programs such as `ray`."""
    import shlex

    from orchestrator.cluster.local import lifecycle

    for name, value in lifecycle.environment(Path.cwd()).items():
        emit(f"export {name}={shlex.quote(value)}")


@command(START, "mirage ui", "mirage ui --port 5001 --no-browser")
def ui(
    port: Annotated[
        int | None, option("Port of MLflow's server.", default="a free one", min=1, max=65535)
    ] = None,
    browser: Annotated[bool, option("Open the page in the browser.", "--browser/--no-browser")] = True,
) -> None:
    """Open MLflow's page with this project's experiments. It is served until Ctrl-C."""
    use_local_cluster()
    from orchestrator.tracking.page import open_page
    from orchestrator.tracking.uri import resolve_tracking_uri

    open_page(resolve_tracking_uri(), port, emit, browser=browser)


@command(START, "mirage sync")
def sync() -> None:
    """Send the metrics, files and models that MLflow could not accept while jobs ran.

    Exit status 1 if something still waits.
    """
    use_local_cluster()
    from orchestrator.paths import home
    from orchestrator.progress import progress
    from orchestrator.tracking.background import sync_all
    from orchestrator.tracking.journal import waiting_runs
    from orchestrator.tracking.uri import resolve_tracking_uri
    from orchestrator.training.job import publish_waiting

    complete = publish_waiting(emit)
    spool, found = home() / "spool", 0
    waiting = len(waiting_runs(spool))
    with progress(emit_error, "sending runs") as (advance,):
        if waiting:
            advance(0, waiting, "")
        for found, run in enumerate(sync_all(resolve_tracking_uri(), spool), 1):
            advance(found, max(found, waiting), run.name)
            emit(f"{run.name}: " + (run.problem or f"{count(run.sent, 'record')} sent"))
            complete = complete and not run.problem
    if not found and complete:
        emit("nothing waits")
    if not complete:
        raise typer.Exit(1)
