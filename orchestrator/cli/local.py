"""Commands about this machine: up, down, env, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit


@app.command()
def up(
    s3: Annotated[
        bool, typer.Option("--with-s3/--no-s3", "--s3/ ", help="Serve the store as an S3 bucket on loopback.")
    ] = True,
    s3_port: Annotated[int | None, typer.Option(help="Port of the S3 server; free one by default.")] = None,
    dashboard_port: Annotated[int, typer.Option(help="Port that `ray job submit` talks to.")] = 8265,
    ray_port: Annotated[int, typer.Option(help="Port of the Ray head.")] = 6379,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that Ray may use.")] = None,
) -> None:
    """Start a Ray head and an S3 server on this machine, on loopback."""
    from orchestrator.cluster.local import lifecycle

    emit(
        lifecycle.up(
            Path.cwd(), s3=s3, s3_port=s3_port, dashboard_port=dashboard_port, ray_port=ray_port, cpus=cpus
        ).render()
    )


@app.command()
def down() -> None:
    """Stop what `mirage up` started."""
    from orchestrator.cluster.local import lifecycle

    stopped = lifecycle.down(Path.cwd())
    emit("stopped " + ", ".join(stopped) if stopped else "nothing was up")


@app.command()
def env() -> None:
    """Print the environment of the local cluster as export lines: eval "$(mirage env)"."""
    import shlex

    from orchestrator.cluster.local import lifecycle

    for name, value in lifecycle.environment(Path.cwd()).items():
        emit(f"export {name}={shlex.quote(value)}")


@app.command()
def doctor() -> None:
    """Check this machine: Python, packages, disk, ports, store, tracking, job files."""
    from orchestrator.maintenance.doctor import diagnose

    findings = diagnose(Path.cwd())
    signs = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
    for finding in findings:
        emit(f"{signs[finding.status]}  {finding.name:<18} {finding.detail}")
        if finding.remedy:
            emit(f"      {'':<18} {finding.remedy}")
    if any(f.status == "fail" for f in findings):
        raise typer.Exit(1)
