"""The `mirage` command. Each subcommand imports what it needs, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

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

STOPPED = 143
"""Exit status of a run that was asked to stop and left a checkpoint: 128 + SIGTERM, as a shell would say."""


@app.command()
def run(
    job_file: JobFile,
    overrides: Set = None,
    in_process: Annotated[
        bool, typer.Option("--in-process", help="Train in this process, without Ray, with one worker.")
    ] = False,
) -> None:
    """Run a job: pack, train, judge, register. `ray job submit JOB_FILE` calls this on the cluster."""
    _use_local_cluster()
    from orchestrator.jobfile import load_job
    from orchestrator.run import run_job

    outcome = run_job(load_job(job_file, overrides or ()), _say, in_process=in_process)
    if outcome.status == "stopped":
        raise typer.Exit(STOPPED)


@app.command()
def plan(
    job_file: JobFile,
    overrides: Set = None,
    resolved: Annotated[
        bool, typer.Option("--resolved", help="Print the resolved job file instead.")
    ] = False,
) -> None:
    """Say what a job will do and take: parameters, MACs, samples, steps. Needs no Ray and no GPU."""
    from orchestrator.jobfile import dump_job, load_job

    job = load_job(job_file, overrides or ())
    if resolved:
        _say(dump_job(job).rstrip())
        return
    _use_local_cluster()
    from orchestrator.plan import make_plan

    _say(make_plan(job, strict=False).render())


@app.command()
def pack(
    dataset: Annotated[
        str, typer.Argument(help="photographs (those in Python wheels) or synthetic (a folder, --root).")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="s3://bucket/name or a folder.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw photographs.")] = None,
    held_out: Annotated[
        list[str] | None, typer.Option(help="Photograph kept for evaluation; repeatable.")
    ] = None,
    variants: Annotated[
        int, typer.Option(min=1, help="Draws of each degradation per training photograph.")
    ] = 4,
    encoding: Annotated[str, typer.Option(help="Lossless tiles: fast (QOI) or compact (WebP).")] = "fast",
    seed: Annotated[int, typer.Option(help="Of the synthetic degradations.")] = 0,
) -> None:
    """Pack raw photographs into verified WebDataset shards."""
    _use_local_cluster()
    from orchestrator.data import pack_dataset

    spec = {"source": dataset, "root": root and str(root), "held_out": held_out or (), "variants": variants}
    with _bar("packing") as advance:
        manifest, uri = pack_dataset({**spec, "encoding": encoding, "seed": seed}, out, advance)
    _say(
        f"{uri}: {len(manifest.rows)} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    )
    for split, counts in manifest.counts().items():
        for degradation, count in counts.items():
            _say(f"  {split:<5} {degradation:<9} {count:>7,}")


@app.command()
def up(
    s3: Annotated[
        bool, typer.Option("--s3/--no-s3", help="Serve the store as an S3 bucket on loopback.")
    ] = True,
    s3_port: Annotated[int | None, typer.Option(help="Port of the S3 server; free one by default.")] = None,
    dashboard_port: Annotated[int, typer.Option(help="Port that `ray job submit` talks to.")] = 8265,
    ray_port: Annotated[int, typer.Option(help="Port of the Ray head.")] = 6379,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs that Ray may use.")] = None,
) -> None:
    """Start a Ray head and an S3 server on this machine, on loopback."""
    from orchestrator.cluster import local

    _say(
        local.up(
            Path.cwd(), s3=s3, s3_port=s3_port, dashboard_port=dashboard_port, ray_port=ray_port, cpus=cpus
        ).render()
    )


@app.command()
def down() -> None:
    """Stop what `mirage up` started."""
    from orchestrator.cluster import local

    stopped = local.down(Path.cwd())
    _say("stopped " + ", ".join(stopped) if stopped else "nothing was up")


@app.command()
def env() -> None:
    """Print the environment of the local cluster as export lines: eval "$(mirage env)"."""
    import shlex

    from orchestrator.cluster import local

    for name, value in local.environment(Path.cwd()).items():
        _say(f"export {name}={shlex.quote(value)}")


@app.command()
def restore(
    photographs: Annotated[
        list[Path], typer.Argument(metavar="PHOTO...", help="Image files.", show_default=False)
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="Weights: a .safetensors file or models:/NAME@ALIAS.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File (for one photograph) or folder. Default: NAME.restored.EXT"),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    mode: Annotated[
        str,
        typer.Option(
            help="auto; whole: at once; strips: the same in little memory; tiles: not the same, see docs/model.md."
        ),
    ] = "auto",
    tile: Annotated[int, typer.Option(help="Side of a tile in pixels, a multiple of 8.")] = 512,
    overlap: Annotated[int, typer.Option(help="Pixels that neighbouring tiles share.")] = 64,
) -> None:
    """Restore photographs; size, format, tags and profile stay as they are."""
    _use_local_cluster()
    from orchestrator.restoring import how_to_restore, restore_files

    failures = 0
    how = how_to_restore(mode, tile, overlap)
    for line in restore_files(photographs, model, out, device, how):
        failures += line.failed
        (_complain if line.failed else _say)(line.text)
    if failures:
        raise typer.Exit(1)


@app.command()
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt of the authors.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
) -> None:
    """Turn one of the authors' checkpoints into weights of ours; no code in it is run."""
    from orchestrator import convert

    _say(convert.import_checkpoint(checkpoint, out))


@app.command()
def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="A .safetensors file of ours.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .ckpt file to write.")],
) -> None:
    """Turn weights of ours into a checkpoint that the authors' scripts load."""
    from orchestrator import convert

    _say(convert.export_checkpoint(weights, out))


@app.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
def bench(context: typer.Context) -> None:
    """Measure the model beside the release and its peers: `bench model`, `bench train-parity`."""
    from orchestrator.bench.__main__ import main as run_bench

    raise typer.Exit(run_bench(context.args))


@app.command()
def doctor() -> None:
    """Check this machine: Python, packages, disk, ports, store, tracking, job files."""
    from orchestrator.doctor import diagnose

    findings = diagnose(Path.cwd())
    signs = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}
    for finding in findings:
        _say(f"{signs[finding.status]}  {finding.name:<18} {finding.detail}")
        if finding.remedy:
            _say(f"      {'':<18} {finding.remedy}")
    if any(f.status == "fail" for f in findings):
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of job files, for completion in editors."""
    import json

    from orchestrator.jobfile import json_schema

    _say(json.dumps(json_schema(), indent=2))


def main() -> NoReturn:
    """Run the command line; errors that a user can cure are printed without a traceback, exit status 2."""
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        app()
    except KeyboardInterrupt:
        _complain("interrupted")
        sys.exit(130)
    except Exception as error:
        if not _is_ours(error):
            raise
        _complain(str(error))
        sys.exit(2)
    sys.exit(0)


def _use_local_cluster() -> None:
    """Let a plain shell reach the store and the Ray head that `mirage up` runs for this folder.

    What the shell or the job has set itself stands.
    """
    import os

    from orchestrator.cluster import local
    from orchestrator.errors import ClusterError

    try:
        offered = local.environment(Path.cwd())
    except ClusterError:
        return
    own_store = any(name.startswith("AWS_") for name in os.environ) or Path("~/.aws").expanduser().exists()
    for name, value in offered.items():
        if not (own_store and name.startswith("AWS_")):
            os.environ.setdefault(name, value)


def _is_ours(error: Exception) -> bool:
    """Return whether the error says what a user can do; anything else is a bug and keeps its traceback."""
    from mirage.weights import WeightsError
    from orchestrator.errors import OrchestratorError
    from shards.errors import ShardsError

    return isinstance(error, OrchestratorError | ShardsError | WeightsError)


def _say(text: str) -> None:
    typer.echo(text)


def _complain(text: str) -> None:
    typer.echo(text, err=True)


@contextmanager
def _bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yield a progress callback that draws a bar with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total, name: progress.update(task, completed=done, total=total)
