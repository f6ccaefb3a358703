"""`python -m orchestrator.bench`, which is what `mirage bench` runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.bench.errors import BenchError

if TYPE_CHECKING:
    from orchestrator.bench.environment import Setting


def parser() -> argparse.ArgumentParser:
    """Every option of the benchmarks."""
    top = argparse.ArgumentParser(prog="mirage bench", description="Measure this model beside others.")
    kinds = top.add_subparsers(dest="kind", required=True)

    model = kinds.add_parser("model", help="speed, memory, parameters and multiply-adds")
    model.add_argument("--release", type=Path, metavar="PATH", help="checkout of Amazingren/MIRAGE")
    model.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="checkout of PromptIR, MoCE-IR, AdaIR, Restormer or OneRestore; repeatable",
    )
    model.add_argument("--size", choices=("tiny", "small", "base"), default="tiny")
    model.add_argument("--what", choices=("both", "train", "infer"), default="both")
    model.add_argument("--crop", type=_multiple_of_8, default=128, help="side of the images in pixels")
    model.add_argument("--batch", type=_positive, default=2)
    model.add_argument("--repeats", type=_positive, default=5, help="paired runs, after one that warms up")
    model.add_argument("--compile", action="store_true", help="compile the blocks of ours and the release")
    model.add_argument(
        "--graphs", action="store_true", help="inference of ours is replayed from CUDA graphs (needs a GPU)"
    )
    model.add_argument(
        "--align",
        type=_positive,
        default=1,
        help="pad hidden widths of ours to multiples of this; --what infer",
    )
    model.add_argument(
        "--recompute",
        choices=("none", "full_resolution", "all"),
        default="none",
        help="blocks of ours that run again",
    )
    model.add_argument("--threads", type=_positive, default=1, help="on a CPU")

    parity = kinds.add_parser("train-parity", help="train ours and the release side by side")
    parity.add_argument("--release", type=Path, metavar="PATH", required=True)
    parity.add_argument("--size", choices=("tiny", "small"), default="tiny")
    parity.add_argument("--steps", type=_positive, default=50)
    parity.add_argument("--crop", type=_multiple_of_8, default=64)
    parity.add_argument("--batch", type=_positive, default=2)
    parity.add_argument("--learning-rate", type=float, default=2e-4)
    parity.add_argument("--photos", type=Path, help="folder of photographs; default: those in Python wheels")
    parity.add_argument("--threads", type=_positive, default=2, help="on a CPU")

    loader = kinds.add_parser(
        "loader", help="training samples per second, beside the release's dataset class"
    )
    loader.add_argument("--release", type=Path, metavar="PATH", required=True)
    loader.add_argument("--photos", type=Path, help="folder of photographs; default: those in Python wheels")
    loader.add_argument(
        "--images", type=_positive, default=32, help="samples of each dataset that are laid out"
    )
    loader.add_argument(
        "--batches", type=_positive, default=2, help="of 32 samples, per measurement of the release"
    )
    loader.add_argument("--repeats", type=_positive, default=5, help="paired runs, after one that warms up")
    loader.add_argument("--encoding", choices=("fast", "compact", "original"), default="fast")
    loader.add_argument("--jpeg", choices=("keep", "tile"), default="keep", help="what becomes of JPEG files")
    loader.add_argument(
        "--s3", action=argparse.BooleanOptionalAction, default=True, help="over a real S3 server as well"
    )
    loader.add_argument("--work", type=Path, metavar="FOLDER", help="where to lay the files out, for a while")
    loader.add_argument("--seed", type=int, default=0)
    loader.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    loader.add_argument("--threads", type=_positive, default=1)
    loader.add_argument("--device", choices=("cpu",), default="cpu")
    loader.add_argument("--precision", choices=("fp32",), default="fp32", help="of the floats")

    scaling = kinds.add_parser("scaling", help="a step on 1, 2 and more workers, and a model of many")
    scaling.add_argument(
        "--workers", type=_positive, nargs="+", help="default: 1, 2, 4 … as there are cores or GPUs"
    )
    scaling.add_argument("--size", choices=("demo", "tiny", "small", "base"), default="tiny")
    scaling.add_argument("--batch", type=_positive, default=8, help="images of a step, over all workers")
    scaling.add_argument("--crop", type=_multiple_of_8, default=64)
    scaling.add_argument("--steps", type=_positive, default=5, help="timed ones of each sort")
    scaling.add_argument("--preemptions-per-hour", type=float, default=0.05, help="of one worker; assumed")
    scaling.add_argument("--checkpoint-steps", type=_positive, default=500)
    scaling.add_argument(
        "--checkpoint-seconds", type=float, default=0.1, help="that training stands still for one"
    )
    scaling.add_argument(
        "--restart-seconds", type=float, default=60.0, help="from a lost worker to the next step"
    )
    scaling.add_argument("--rate-rule", choices=("fixed", "linear", "sqrt"), default="linear")
    scaling.add_argument("--figure", type=Path, metavar="FILE", help="draw the curves there, as PNG")
    scaling.add_argument("--threads", type=_positive, default=1, help="of a worker, on a CPU")
    scaling.add_argument("--precision", choices=("fp32",), default="fp32")
    scaling.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    scaling.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")

    checkpoint = kinds.add_parser("checkpoint", help="what a checkpoint costs, in a folder and on S3")
    checkpoint.add_argument("--size", choices=("demo", "tiny", "small", "base"), default="tiny")
    checkpoint.add_argument("--batch", type=_positive, default=8, help="images of a step")
    checkpoint.add_argument("--crop", type=_multiple_of_8, default=64)
    checkpoint.add_argument("--steps", type=_positive, default=3, help="of each half of a turn")
    checkpoint.add_argument("--repeats", type=_positive, default=5, help="turns, after one checkpoint more")
    checkpoint.add_argument(
        "--s3", action=argparse.BooleanOptionalAction, default=True, help="on a real S3 server as well"
    )
    checkpoint.add_argument("--threads", type=_positive, default=1, help="of a step, on a CPU")
    checkpoint.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    checkpoint.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    checkpoint.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")

    for each in (model, parity):
        each.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
        each.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        each.add_argument("--seed", type=int, default=0)
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; return the exit status."""
    options = parser().parse_args(arguments)
    from orchestrator.bench import environment

    try:
        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise BenchError(f"--json {options.json}: its folder does not exist.")
        where = environment.prepare(options.device, options.threads, options.precision)
        result = _kind(options.kind)(options, where, print)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        record = {**environment.describe(where), "command": environment.command(options), **result}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def _kind(name: str) -> Callable[[argparse.Namespace, Setting, Callable[[str], object]], dict[str, Any]]:
    """The benchmark of this name; each imports what it needs alone."""
    if name == "model":
        from orchestrator.bench.model import run
    elif name == "scaling":
        from orchestrator.bench.scaling import run
    elif name == "checkpoint":
        from orchestrator.bench.checkpoint import run
    elif name == "loader":
        from orchestrator.bench.loader import run
    else:
        from orchestrator.bench.parity import run
    return run


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return value


def _multiple_of_8(text: str) -> int:
    value = int(text)
    if value < 16 or value % 8:
        raise argparse.ArgumentTypeError(f"{text}: a multiple of 8, at least 16")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
