"""Commands about packed data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, bar, say, use_local_cluster


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
    use_local_cluster()
    from orchestrator.data import pack_dataset

    spec = {"source": dataset, "root": root and str(root), "held_out": held_out or (), "variants": variants}
    with bar("packing") as advance:
        manifest, uri = pack_dataset({**spec, "encoding": encoding, "seed": seed}, out, advance)
    say(
        f"{uri}: {len(manifest.rows)} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    )
    for split, counts in manifest.counts().items():
        for degradation, count in counts.items():
            say(f"  {split:<5} {degradation:<9} {count:>7,}")
