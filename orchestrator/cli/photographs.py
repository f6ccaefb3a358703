"""Commands that restore photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, complain, say, use_local_cluster


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
    use_local_cluster()
    from orchestrator.restorer import Settings, open_restorer
    from orchestrator.restoring import restore_files

    failures = 0
    settings = Settings(mode=mode, tile=tile, overlap=overlap)  # type: ignore[arg-type]  # checked in there
    for line in restore_files(photographs, open_restorer(model, device, settings), out):
        failures += line.failed
        (complain if line.failed else say)(line.text)
    if failures:
        raise typer.Exit(1)
