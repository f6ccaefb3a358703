"""Commands about models: import, export, promote, trace, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit, use_local_cluster


@app.command()
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt of the authors.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
) -> None:
    """Turn one of the authors' checkpoints into weights of ours; no code in it is run."""
    from orchestrator.models import release_checkpoints

    emit(release_checkpoints.import_checkpoint(checkpoint, out))


@app.command()
def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="A .safetensors file of ours.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .ckpt file to write.")],
) -> None:
    """Turn weights of ours into a checkpoint that the authors' scripts load."""
    from orchestrator.models import release_checkpoints

    emit(release_checkpoints.export_checkpoint(weights, out))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A .safetensors file or models:/NAME@ALIAS.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    form: Annotated[
        str,
        typer.Option("--format", "-f", help="safetensors, torchscript, onnx or release."),
    ],
) -> None:
    """Write a model in another format; a file that does not compute the same is not written."""
    import torch

    from orchestrator.models import export as exporting
    from orchestrator.registry.resolve import find_model

    parity = exporting.export(find_model(model).load(torch.device("cpu")), out, form)
    emit(f"{model} -> {out} ({out.stat().st_size / 2**20:.1f} MiB): {parity}")


@app.command()
def promote(
    model: Annotated[
        str, typer.Argument(help="models:/NAME/VERSION, NAME@ALIAS, or NAME for NAME@candidate.")
    ],
    to: Annotated[str, typer.Option("--to", help="The alias to move.")] = "champion",
    margin_db: Annotated[
        float | None, typer.Option(help="Least gain over the champion, by its bound.")
    ] = None,
    max_drop_db: Annotated[float | None, typer.Option(help="Most that one degradation may lose.")] = None,
    reference_db: Annotated[float | None, typer.Option(help="A published average PSNR.")] = None,
    paper: Annotated[
        str | None, typer.Option(help="A row of the paper's tables, TABLE:METHOD, as T2:MIRAGE-T.")
    ] = None,
    max_below_reference_db: Annotated[float | None, typer.Option(help="How far below it is near.")] = None,
    parity: Annotated[
        list[str] | None, typer.Option(help="Format in which the export must be the same; repeatable.")
    ] = None,
    latency_seconds: Annotated[float | None, typer.Option(help="Longest time for one image.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Most memory for one image.")] = None,
    side_pixels: Annotated[int | None, typer.Option(help="Side of the image for those two.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", "-r", help="Evaluation to take scores from; one of either model."),
    ] = None,
) -> None:
    """Move an alias to a model that passes every gate; the gates are the job's where no option gives another.

    Exit status 1 when it is refused.
    """
    use_local_cluster()
    from orchestrator.promotion import promote as promoting

    given = {
        "margin_db": margin_db,
        "max_drop_db": max_drop_db,
        "reference_db": reference_db,
        "paper_row": paper,
        "max_below_reference_db": max_below_reference_db,
        "parity": parity or None,
        "latency_seconds": latency_seconds,
        "memory_gib": memory_gib,
        "side_pixels": side_pixels,
    }
    told = {key: value for key, value in given.items() if value is not None}
    outcome = promoting.promote(model, track_uri(), told, to, results or ())
    emit(outcome.render())
    if not outcome.moved:
        raise typer.Exit(1)


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="A registered model.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = "champion",
) -> None:
    """Exchange champion, or another alias, and its previous; a second call takes the first one back."""
    use_local_cluster()
    from orchestrator.promotion import promote as promoting

    before, now = promoting.rollback(name, track_uri(), alias)
    emit(f"{name}: {alias} is version {now} again; version {before} is {promoting.previous_alias(alias)}")


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read every shard and raw file, and hash it.")] = False,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder where the raw files lie now; repeatable.")
    ] = None,
) -> None:
    """Follow a model back to its photographs and verify every digest on the way.

    Exit status 1 when something is gone or is not what was written.
    """
    use_local_cluster()
    from orchestrator.maintenance import lineage as tracing

    chain = tracing.trace(model, track_uri(), deep=deep, roots=root or ())
    emit(chain.render())
    if not chain.holds:
        raise typer.Exit(1)


def track_uri() -> str:
    """Return the store that commands about registered models talk to."""
    from orchestrator.tracking.uri import resolve_tracking_uri

    return resolve_tracking_uri()


@app.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
def bench(context: typer.Context) -> None:
    """Measure beside the release and its peers: `bench model`, `train-parity`, `loader`, `scaling`, `checkpoint`."""
    from orchestrator.bench.__main__ import main as run_bench

    raise typer.Exit(run_bench(context.args))
