"""Commands about registered models and weights: promote, rollback, trace, export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.app import (
    MODELS,
    Trust,
    argument,
    command,
    complete_model,
    emit,
    emit_error,
    option,
    use_local_cluster,
)


def _gate(help_text: str, *names: str, **settings: Any) -> Any:
    panel = "Gates (each replaces the one of the job that trained the model)"
    return option(help_text, *names, rich_help_panel=panel, default=False, **settings)


@command(
    MODELS,
    "mirage promote mirage-demo --alias champion",
    "mirage promote mirage-5deg --alias champion --paper T2:MIRAGE-T --max-drop-db 0.05",
)
def promote(
    model: Annotated[
        str,
        argument(
            "models:/NAME/VERSION or models:/NAME@ALIAS. NAME alone is its candidate.",
            autocompletion=complete_model,
        ),
    ],
    to: Annotated[str, option("Alias to move.", "--alias")] = "champion",
    results: Annotated[
        list[Path] | None,
        option(
            "Folder of an evaluation with the scores to compare, one for each of the two models. Repeatable.",
            "--results",
            "-r",
            default="the scores of training",
        ),
    ] = None,
    margin_db: Annotated[
        float | None,
        _gate("Minimum gain over the champion in dB: the lower bound of its confidence interval."),
    ] = None,
    max_drop_db: Annotated[float | None, _gate("Maximum drop of one degradation on average in dB.")] = None,
    reference_db: Annotated[float | None, _gate("A published average PSNR in dB.")] = None,
    paper_row: Annotated[
        str | None,
        _gate("A row of the paper's tables, for example T2:MIRAGE-T.", "--paper", metavar="TABLE:METHOD"),
    ] = None,
    max_below_reference_db: Annotated[
        float | None, _gate("How far the average may be below --reference-db or --paper in dB.")
    ] = None,
    parity: Annotated[
        list[str] | None, _gate("Format whose export must compute the same. Repeatable.")
    ] = None,
    latency_seconds: Annotated[float | None, _gate("Maximum seconds for one image.")] = None,
    memory_gib: Annotated[float | None, _gate("Maximum memory for one image in GiB.")] = None,
    side_pixels: Annotated[
        int | None, _gate("Side in pixels of the image whose latency and memory are measured.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Move an alias to a model that passes every gate. Exit status 1 when a gate fails."""
    options = locals()
    use_local_cluster()
    from orchestrator.config.schema import Promote
    from orchestrator.progress import progress
    from orchestrator.promotion import promote as promotion

    given = {key: options[key] for key in Promote.model_fields if options[key] not in (None, [])}
    with progress(emit_error, "gates") as (advance,):
        outcome = promotion.promote(model, _tracking_uri(), given, to, results or (), trust or (), advance)
    emit(outcome.render())
    if not outcome.moved:
        raise typer.Exit(1)


@command(MODELS, "mirage rollback mirage-5deg")
def rollback(
    name: Annotated[str, argument("Name of a registered model.")],
    alias: Annotated[str, option("Alias to move back.")] = "champion",
) -> None:
    """Move an alias back to the version that had it before. A second rollback undoes the first."""
    use_local_cluster()
    from orchestrator.promotion import promote as promotion

    before, now = promotion.rollback(name, _tracking_uri(), alias)
    emit(f"{name}: {alias} is version {now} again; version {before} is now {promotion.previous_alias(alias)}")


@command(
    MODELS,
    "mirage trace models:/mirage-5deg@champion",
    "mirage trace models:/mirage-5deg/3 --deep --root RAW",
)
def trace(
    model: Annotated[
        str, argument("models:/NAME@ALIAS or models:/NAME/VERSION.", autocompletion=complete_model)
    ],
    deep: Annotated[
        bool,
        option("Read and hash every shard and raw file; without it, only records are compared.", "--deep"),
    ] = False,
    root: Annotated[
        list[Path] | None,
        option("Folder that holds the raw files now. Repeatable.", default="where they were packed from"),
    ] = None,
) -> None:
    """Trace a model back to its photographs and verify every digest. Exit status 1 when one is missing or differs."""
    use_local_cluster()
    from orchestrator.maintenance import lineage
    from orchestrator.progress import progress

    with progress(emit_error, "reading") as (advance,):
        chain = lineage.trace(model, _tracking_uri(), deep=deep, roots=root or (), on_progress=advance)
    emit(chain.render())
    if not chain.holds:
        raise typer.Exit(1)


@command(
    MODELS,
    "mirage export models:/mirage-demo@candidate -o demo.onnx -f onnx",
    "mirage export weights.safetensors -o model.pt -f torchscript",
)
def export(
    model: Annotated[
        str, argument("A .safetensors file or models:/NAME@ALIAS.", autocompletion=complete_model)
    ],
    out: Annotated[Path, option("File to write.", "--out", "-o", default=False)],
    form: Annotated[
        str,
        option(
            "Format. `release` is a .ckpt for the scripts of MIRAGE's authors.",
            "--format",
            "-f",
            default=False,
            metavar="safetensors|torchscript|onnx|release",
        ),
    ],
    trust: Trust = None,
) -> None:
    """Write a model in another format, after checking that the exported model computes the same."""
    import torch

    from orchestrator.models import export as exporting
    from orchestrator.progress import progress
    from orchestrator.registry.resolve import find_model

    loaded = find_model(model, trust_code=trust or ()).load(torch.device("cpu"))
    with progress(emit_error, "exporting") as (advance,):
        parity = exporting.export(loaded, out, form, advance)
    emit(f"{model} -> {out} ({out.stat().st_size / 2**20:.1f} MiB): {parity}")


@command(MODELS, "mirage network-code models:/promptir@candidate -o code")
def network_code(
    model: Annotated[
        str, argument("A .safetensors file, a run or models:/NAME@ALIAS.", autocompletion=complete_model)
    ],
    out: Annotated[
        Path | None, option("Folder to write the source to.", "--out", "-o", default="write nothing")
    ] = None,
) -> None:
    """Show the code that a model brings, and its digest for --trust. Nothing of it is run."""
    from orchestrator.errors import ModelError
    from orchestrator.outputs import write_output
    from orchestrator.registry.resolve import find_model

    code = find_model(model).code()
    if code is None:
        emit(f"{model}: a MIRAGE, which brings no code.")
        return
    if out and out.exists():
        raise ModelError(f"{out} already exists: remove it, or give -o another name.")
    emit(f"class      {code.class_}")
    emit(f"arguments  {dict(code.arguments)}")
    emit(f"adapter    {code.adapter or 'none'}")
    emit(f"needs      {', '.join(code.requires) or 'nothing'}")
    for path, text in sorted(code.files.items()):
        emit(f"source     {path}, {len(text.splitlines()):,} lines")
        if out:
            write_output(out / path, text)
    emit(f"sha256     {code.digest}")


@command(MODELS, "mirage import-checkpoint 5Deg_tiny.ckpt -o 5deg.safetensors")
def import_checkpoint(
    checkpoint: Annotated[Path, argument("A .ckpt of MIRAGE's authors.")],
    out: Annotated[Path, option("The .safetensors file to write.", "--out", "-o", default=False)],
) -> None:
    """Convert a checkpoint of MIRAGE's authors to .safetensors. No code in the checkpoint is run."""
    from orchestrator.models import release_checkpoints

    emit(release_checkpoints.import_checkpoint(checkpoint, out))


@command(MODELS, "mirage export-checkpoint 5deg.safetensors -o 5deg.ckpt")
def export_checkpoint(
    weights: Annotated[Path, argument("A .safetensors file.")],
    out: Annotated[Path, option("The .ckpt file to write.", "--out", "-o", default=False)],
) -> None:
    """Convert .safetensors weights to a checkpoint that the scripts of MIRAGE's authors load."""
    from orchestrator.models import release_checkpoints

    emit(release_checkpoints.export_checkpoint(weights, out))


def _tracking_uri() -> str:
    from orchestrator.tracking.uri import resolve_tracking_uri

    return resolve_tracking_uri()
