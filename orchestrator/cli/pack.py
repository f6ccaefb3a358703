"""Commands about packed data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import app, emit, progress_bars, use_local_cluster

_PUBLISHED, _OWN = "Published datasets", "Your own photographs"


@app.command()
def pack(
    dataset: Annotated[
        str,
        typer.Argument(
            help="A published dataset (docs/datasets.md lists them), pairs (two patterns), synthetic (a folder of "
            "clean photographs) or photographs (those in Python wheels).",
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="s3://bucket/name or a folder.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the raw data.")] = None,
    encoding: Annotated[
        str, typer.Option(help="Lossless tiles, fast (QOI) or compact (WebP); or original: the files' bytes.")
    ] = "fast",
    jpeg: Annotated[
        str, typer.Option(help="keep the bytes of JPEG sources, or tile them: several times the room.")
    ] = "keep",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Pack what is there and record what is missing.")
    ] = False,
    shard_mib: Annotated[int, typer.Option(min=1, help="Size of a shard, about.")] = 64,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, test or all.", rich_help_panel=_PUBLISHED)] = "all",
    list_: Annotated[
        Path | None,
        typer.Option("--list", help="Official list of training files.", rich_help_panel=_PUBLISHED),
    ] = None,
    group: Annotated[
        str, typer.Option(help="cdd11: single, double, triple or all.", rich_help_panel=_PUBLISHED)
    ] = "all",
    crops: Annotated[
        bool,
        typer.Option(
            "--crops", help="gopro: crops of 512, 256 apart, to train on.", rich_help_panel=_PUBLISHED
        ),
    ] = False,
    exclude_leaked: Annotated[
        bool,
        typer.Option(
            "--exclude-leaked", help="Leave out scenes that are test images.", rich_help_panel=_PUBLISHED
        ),
    ] = False,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PART=N",
            help="Pairs of a part, for a subset made on purpose.",
            rich_help_panel=_PUBLISHED,
        ),
    ] = None,
    degraded: Annotated[
        str | None, typer.Option(help="pairs: pattern, input/{key}_*.png.", rich_help_panel=_OWN)
    ] = None,
    clean: Annotated[
        str | None, typer.Option(help="pairs: pattern, target/{key}.png.", rich_help_panel=_OWN)
    ] = None,
    degradation: Annotated[
        list[str] | None,
        typer.Option(
            help="pairs: what harmed the files. synthetic: what to make; repeatable.", rich_help_panel=_OWN
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option(help="synthetic: photograph kept for evaluation; repeatable.", rich_help_panel=_OWN),
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="pairs: share kept for evaluation, 0 to 1.", rich_help_panel=_OWN)
    ] = 0.0,
    variants: Annotated[
        int,
        typer.Option(min=1, help="synthetic: draws per training photograph.", rich_help_panel=_OWN),
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of the synthetic degradations.", rich_help_panel=_OWN)] = 0,
    licence: Annotated[
        str, typer.Option(help="Of the photographs, for the manifest.", rich_help_panel=_OWN)
    ] = "not stated",
) -> None:
    """Pack raw photographs into verified WebDataset shards. Killed, it goes on when it is called again."""
    use_local_cluster()
    from orchestrator.data.datasets import PackCallbacks, pack_dataset
    from orchestrator.errors import PlanError
    from shards.processes import available_cores

    kinds = degradation or []
    if dataset == "pairs" and len(kinds) > 1:
        raise PlanError(
            f"--degradation: pairs are of one kind, and {len(kinds)} are named: {', '.join(kinds)}."
        )
    spec: dict[str, object] = {
        **{"source": dataset, "root": root and str(root), "encoding": encoding, "jpeg": jpeg},
        **{"shard_mib": shard_mib},
        **{"allow_partial": allow_partial, "split": split, "list_file": list_ and str(list_), "group": group},
        **{"crops": crops, "exclude_leaked": exclude_leaked, "expected": _counts(expect or [])},
        **{
            "degraded": degraded,
            "clean": clean,
            "held_out": held_out or (),
            "held_out_share": held_out_share,
        },
        **{"variants": variants, "seed": seed, "licence": licence},
    }
    if kinds:
        spec |= {"degradation": kinds[0]} if dataset == "pairs" else {"degradations": kinds}
    with progress_bars("looking", "packing", "hashing") as advance:
        manifest, uri = pack_dataset(spec, out, PackCallbacks(*advance), jobs or available_cores())
    emit(
        f"{uri}: {len(manifest.rows)} samples in {len(manifest.shards)} shards, manifest {manifest.digest[:16]}"
    )
    for split_, counts in manifest.counts().items():
        for kind, count in counts.items():
            emit(f"  {split_:<5} {kind:<13} {count:>7,}")
    for missing in manifest.provenance.get("missing", []):
        emit(f"  left out: {missing['what']}")
    before, after = manifest.provenance["jpeg_tiled_bytes"]
    if before:
        emit(
            f"  JPEG sources as tiles take {after / before:.1f} times their bytes: {before:,} became {after:,}"
        )


def _counts(texts: list[str]) -> dict[str, int]:
    from orchestrator.errors import PlanError

    found = {}
    for text in texts:
        name, equals, number = text.rpartition("=")
        if not equals or not number.isdigit():
            raise PlanError(
                f"--expect {text!r}: write the part and how many pairs it has, for example OTS=350."
            )
        found[name] = int(number)
    return found
