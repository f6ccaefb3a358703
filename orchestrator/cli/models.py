"""Commands about models: import, export, promote, trace, bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, say


@app.command()
def import_checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A .ckpt of the authors.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .safetensors file to write.")],
) -> None:
    """Turn one of the authors' checkpoints into weights of ours; no code in it is run."""
    from orchestrator import convert

    say(convert.import_checkpoint(checkpoint, out))


@app.command()
def export_checkpoint(
    weights: Annotated[Path, typer.Argument(help="A .safetensors file of ours.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .ckpt file to write.")],
) -> None:
    """Turn weights of ours into a checkpoint that the authors' scripts load."""
    from orchestrator import convert

    say(convert.export_checkpoint(weights, out))


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

    from orchestrator import export as exporting
    from orchestrator.named import find_model

    parity = exporting.export(find_model(model).load(torch.device("cpu")), out, form)
    say(f"{model} -> {out} ({out.stat().st_size / 2**20:.1f} MiB): {parity}")


@app.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
def bench(context: typer.Context) -> None:
    """Measure the model beside the release and its peers: `bench model`, `bench train-parity`."""
    from orchestrator.bench.__main__ import main as run_bench

    raise typer.Exit(run_bench(context.args))
