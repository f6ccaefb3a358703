"""The command that writes a job file for the user's own photographs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.app import START, argument, command, emit, option

_EVERY = 5
"""One of this many photographs is kept for evaluation."""


@command(
    START,
    "mirage init mine --root PHOTOS --degradation rain --degradation haze",
    "mirage init mine --root PAIRS --degraded 'in/{key}.png' --clean 'gt/{key}.png' --degradation rain",
)
def init(
    name: Annotated[str, argument("Name of the job, its dataset and its model.")],
    root: Annotated[Path | None, option("Folder of your photographs.", default="asks for it")] = None,
    degraded: Annotated[
        str | None,
        option("For pairs: pattern of the degraded files below the root, in/{key}.png.", default="no pairs"),
    ] = None,
    clean: Annotated[
        str | None,
        option("For pairs: pattern of the clean files below the root, gt/{key}.png.", default="no pairs"),
    ] = None,
    degradation: Annotated[
        list[str] | None,
        option(
            "Degradation of your pairs, or to make from clean photographs. Repeatable.", default="asks for it"
        ),
    ] = None,
    steps: Annotated[int, option("Number of training steps.", min=20)] = 800,
    gpu: Annotated[bool, option("Train a larger network on one GPU.", "--gpu")] = False,
    out: Annotated[Path | None, option("Job file to write.", "--out", "-o", default="jobs/NAME.yaml")] = None,
) -> None:
    """Write a commented job file for your own photographs or pairs. In a terminal it asks for what is missing."""
    from orchestrator.config.loader import job_from_yaml
    from orchestrator.config.starter import starter_job
    from orchestrator.errors import PlanError
    from orchestrator.outputs import write_output

    path = out or Path("jobs") / f"{name}.yaml"
    if path.exists():
        raise PlanError(f"{path} exists already. Name another file with --out, or remove it.")
    if root is None:
        root = Path(_ask("--root", "Folder of your photographs"))
        if degraded is None and typer.confirm(
            "Does it hold pairs of degraded and clean photographs?", default=False
        ):
            degraded = typer.prompt("Pattern of the degraded files in it", default="degraded/{key}.png")
            clean = typer.prompt("Pattern of the clean files in it", default="clean/{key}.png")
    if (degraded is None) != (clean is None):
        raise PlanError("--degraded and --clean belong together: give both for pairs, or none.")
    kinds = (
        degradation
        or _ask("--degradation", "Degradations, separated by spaces (rain haze noise25 ...)").split()
    )
    if not root.is_dir():
        raise PlanError(f"--root {root}: no such folder.")
    pack: dict[str, object] = {"root": str(root)}
    if degraded is None:
        pack = {"source": "synthetic", **pack, "degradations": kinds, "held_out": _held_out(root)}
    else:
        pack = {"source": "pairs", **pack, "degraded": degraded, "clean": clean, "degradation": kinds[0]}
        pack["held_out_share"] = 1 / _EVERY
        if len(kinds) > 1:
            raise PlanError(f"--degradation: pairs have one degradation, and {len(kinds)} are named.")
    text = starter_job(name, pack, kinds, path=str(path), steps=steps, gpu=gpu)
    job_from_yaml(text, str(path))  # refuses for example an unknown degradation
    write_output(path, text, executable=True)
    emit(f"written: {path}\nnext:    mirage plan {path}")


def _ask(option: str, question: str) -> str:
    """Return the answer to a question. Raises PlanError outside a terminal."""
    from orchestrator.errors import PlanError

    if not sys.stdin.isatty():
        raise PlanError(f"{option} is missing.")
    return str(typer.prompt(question))


def _held_out(root: Path) -> list[str]:
    """Return the names of the photographs that are kept for evaluation: every fifth, at least one."""
    from orchestrator.errors import PlanError
    from shards.images import list_images

    names = [path.relative_to(root).with_suffix("").as_posix() for path in list_images(root)]
    if len(names) < 2:
        raise PlanError(f"--root {root}: has {len(names)} photographs; at least 2 are needed, 1 to evaluate.")
    return names[::_EVERY] if len(names) >= _EVERY else names[:1]
