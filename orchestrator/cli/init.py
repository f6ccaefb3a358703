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
    "mirage init mine --root PHOTOS --degradation real_esrgan",
    "mirage init mine --root PAIRS --degraded 'in/{key}.png' --clean 'gt/{key}.png' --degradation rain",
    "mirage init mine --root PAIRS --degraded '{split}/in/{key}.jpg' --clean '{split}/gt/{key}.png' --degradation jpeg",
)
def init(
    name: Annotated[str, argument("Name of the job, its dataset and its model.")],
    root: Annotated[Path | None, option("Folder of your photographs.", default="asks for it")] = None,
    degraded: Annotated[
        str | None,
        option(
            "For pairs: pattern of the degraded files below the root, in/{key}.png. {split} is train or test.",
            default="no pairs",
        ),
    ] = None,
    clean: Annotated[
        str | None,
        option("For pairs: pattern of the clean files below the root, gt/{key}.png.", default="no pairs"),
    ] = None,
    degradation: Annotated[
        list[str] | None,
        option(
            "Degradation of your pairs, or to make from clean photographs, such as rain, noise25 or the preset "
            "real_esrgan. Repeatable.",
            default="asks for it",
        ),
    ] = None,
    held_out: Annotated[
        list[str] | None,
        option(
            "Photograph for evaluation, by name without suffix, or a file with one name in each line. Repeatable.",
            default="the {split} of the patterns, else one photograph in five",
            metavar="NAME|@FILE",
        ),
    ] = None,
    steps: Annotated[int, option("Number of training steps.", min=20)] = 500,
    gpu: Annotated[bool, option("Train a larger network on one GPU.", "--gpu")] = False,
    out: Annotated[Path | None, option("Job file to write.", "--out", "-o", default="jobs/NAME.yaml")] = None,
) -> None:
    """Write a commented job file for your own photographs or pairs. In a terminal it asks for what is missing."""
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
    pack: dict[str, object] = {"source": "synthetic", "root": str(root), "degradations": kinds}
    presets: dict[str, str] = {}
    if degraded is None and (presets := _presets(kinds)):
        kinds = [*presets, *(kind for kind in kinds if kind not in presets.values())]
        pack = {"source": "clean", "root": str(root)}
    if degraded is not None:
        if len(kinds) > 1:
            raise PlanError(f"--degradation: pairs have one degradation, and {len(kinds)} are named.")
        patterns = {"degraded": degraded, "clean": clean, "degradation": kinds[0]}
        pack = {"source": "pairs", "root": str(root), **patterns}
    pack |= {"held_out": held_out} if held_out else _held_out(root, degraded, clean)
    for given in (str(root), *(held_out or ())):
        _require_utf8(given)
    text = starter_job(name, pack, kinds, presets, path=str(path), steps=steps, gpu=gpu)
    _check(text, path)
    write_output(path, text, executable=True)
    emit(f"written: {path}\nnext:    mirage plan {path}")


def _presets(kinds: list[str]) -> dict[str, str]:
    """Return the job's own name of each preset among `kinds`.

    Raises PlanError if others among them are packed with the photographs.
    """
    from orchestrator.errors import PlanError
    from shards.degradations.presets import PRESETS
    from shards.sample import SIGMA

    presets = {f"like_{kind}": kind for kind in kinds if kind in PRESETS}
    others = [kind for kind in kinds if kind not in PRESETS and kind not in SIGMA]
    if presets and others:
        first = next(iter(presets.values()))
        raise PlanError(
            f"--degradation {others[0]}: beside a preset ({first}) a job of this command has only "
            f"{', '.join(SIGMA)} and other presets. Write a job file for each."
        )
    return presets


def _check(text: str, path: Path) -> None:
    """Raise an error unless the job of `text` can pack its photographs, for example for an unknown degradation."""
    from orchestrator.config.loader import job_from_yaml
    from orchestrator.config.schema import Job
    from orchestrator.data.sources import source_of
    from orchestrator.errors import PlanError

    job = job_from_yaml(text, str(path))
    assert isinstance(job, Job)
    assert job.data.pack is not None
    source = source_of(job.data.pack)
    trained = sum(source.training_counts().values())
    for count, what in ((trained, "train on"), (len(source) - trained, "evaluate")):
        if not count:
            raise PlanError(f"--root {job.data.pack.root}: no photograph is left to {what}.")


def _require_utf8(name: str) -> None:
    """Raise PlanError for a name of other bytes, which no job file and no manifest can hold."""
    from orchestrator.errors import PlanError

    if any("\udc80" <= sign <= "\udcff" for sign in name):
        raise PlanError(f"{name}: this name is not UTF-8. Rename it.")


def _ask(option: str, question: str) -> str:
    """Return the answer to a question. Raises PlanError outside a terminal."""
    from orchestrator.errors import PlanError

    if not sys.stdin.isatty():
        raise PlanError(f"{option} is missing.")
    return str(typer.prompt(question))


def _held_out(root: Path, degraded: str | None, clean: str | None) -> dict[str, object]:
    """Return the keys that keep some photographs for evaluation: every fifth, at least one.

    Patterns with `{split}` need none.
    """
    from orchestrator.errors import PlanError
    from shards.images import list_images
    from shards.sources.pairs import clean_files, has_split

    if degraded is not None and clean is not None:
        if has_split(degraded, clean):
            return {}
        found = len(clean_files(root, degraded, clean))
        share: dict[str, object] = {"held_out_share": max(1 / _EVERY, 1 / found)}
    else:
        for path in list_images(root):
            _require_utf8(str(path))
        names = [path.relative_to(root).with_suffix("").as_posix() for path in list_images(root)]
        found = len(names)
        share = {"held_out": names[::_EVERY] if found >= _EVERY else names[:1]}
    if found < 2:
        raise PlanError(f"--root {root}: has {found} photographs; at least 2 are needed, 1 to evaluate.")
    return share
