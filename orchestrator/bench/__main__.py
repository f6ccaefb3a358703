"""`python -m orchestrator.bench`, which `mirage bench` runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from orchestrator.bench.errors import BenchError
from orchestrator.errors import OutputError
from orchestrator.number_limits import MAX_NUMBER, MAX_SEED, MAX_THREADS
from orchestrator.outputs import write_output

if TYPE_CHECKING:
    from orchestrator.bench.environment import Echo, Environment

Number = TypeVar("Number", int, float)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all benchmarks."""
    top = argparse.ArgumentParser(prog="mirage bench", description="Compare this model with others.")
    kinds = top.add_subparsers(dest="kind", required=True)

    model = kinds.add_parser("model", help="measure speed, memory, parameters and multiply-adds")
    add = model.add_argument
    add("--release", type=Path, metavar="PATH", help="checkout of Amazingren/MIRAGE")
    add(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="PromptIR, MoCE-IR, AdaIR, Restormer, NAFNet, BioIR, OneRestore or module:Class, and its folder",
    )
    add("--size", choices=("tiny", "small", "base"), default="tiny")
    add("--what", choices=("both", "train", "infer"), default="both")
    add("--crop", type=_multiple_of_8, default=128, help="side of the images [px]")
    add("--batch", type=_positive, default=2, help="images per batch")
    add("--repeats", type=_positive, default=5, help="paired runs, after one warm-up")
    add("--compile", action="store_true", help="compile the blocks of ours and the release")
    add("--graphs", action="store_true", help="run ours from CUDA graphs (GPU only)")
    add(
        "--align",
        type=_positive,
        default=1,
        help="pad our hidden widths to multiples of this; with --what infer",
    )
    _renamed(
        model,
        "--activation-checkpointing",
        "--recompute",
        choices=("none", "full_resolution", "all"),
        default="none",
        help="blocks of ours whose activations are recomputed in the backward pass",
    )
    add("--threads", type=_threads, default=1, help="CPU threads")

    traffic = kinds.add_parser(
        "traffic", help="count memory traffic, kernel launches and host synchronisations without a GPU"
    )
    add = traffic.add_argument
    add("--release", type=Path, metavar="PATH", help="checkout of Amazingren/MIRAGE")
    add("--peer", action="append", default=[], metavar="NAME=PATH", help="as in `model`; repeatable")
    add("--size", choices=("tiny", "small", "base"), default="tiny")
    add("--blocks", type=_positive, help="blocks of each stage of ours; default: those of the size")
    add("--what", choices=("train", "infer"), default="train")
    add("--compile", action="store_true", help="compile our blocks; the others stay eager")
    add("--crop", type=_multiple_of_8, default=128, help="side of the images [px]")
    add("--batch", type=_positive, default=8, help="images per step")
    add("--bandwidth", type=_number, default=4.3, help="memory bandwidth of the prediction [TB/s]")
    add("--launch-us", type=_number, default=6.0, help="host time of a launch in the prediction [µs]")
    add("--threads", type=_threads, default=1, help=argparse.SUPPRESS)

    parity = kinds.add_parser("train-parity", help="train ours and the release side by side")
    add = parity.add_argument
    add("--release", type=Path, metavar="PATH", required=True)
    add("--size", choices=("tiny", "small"), default="tiny")
    add("--steps", type=_positive, default=50)
    add("--crop", type=_multiple_of_8, default=64, help="side of the images [px]")
    add("--batch", type=_positive, default=2, help="images per step")
    add("--learning-rate", type=_number, default=2e-4)
    add("--photos", type=Path, help="folder of photographs; default: those in Python wheels")
    add("--threads", type=_threads, default=2, help="CPU threads")

    loader = kinds.add_parser("loader", help="compare our training samples per second with the release's")
    add = loader.add_argument
    add("--release", type=Path, metavar="PATH", required=True)
    add("--photos", type=Path, help="folder of photographs; default: those in Python wheels")
    add("--images", type=_positive, default=32, help="samples of each dataset to create")
    add("--batches", type=_positive, default=2, help="batches of 32 samples per measurement of the release")
    add("--repeats", type=_positive, default=5, help="paired runs, after one warm-up")
    add("--encoding", choices=("fast", "compact", "original"), default="fast")
    add("--jpeg", choices=("crop", "keep", "tile"), default="crop", help="how to pack JPEG files")
    _s3(loader)
    add("--work", type=Path, metavar="FOLDER", help="where to create the temporary files")
    add("--seed", type=_seed, default=0)
    add("--threads", type=_threads, default=1, help="CPU threads")

    degradations = kinds.add_parser(
        "degradations",
        help="measure degraded crops per second of one core, by operator and for three pipelines",
    )
    add = degradations.add_argument
    add(
        "--peer",
        type=Path,
        metavar="PATH",
        help="checkout of XPixelGroup/BasicSR, for Real-ESRGAN's second order",
    )
    add("--repeats", type=_positive, default=15, help="paired runs, after one warm-up")
    add("--seed", type=_seed, default=0, help="seed of the peer's draws")
    add("--threads", type=_threads, default=1, help=argparse.SUPPRESS)

    scaling = kinds.add_parser("scaling", help="measure a step on several workers and simulate more of them")
    add = scaling.add_argument
    add(
        "--workers", type=_positive, nargs="+", help="default: 1, 2, 4, ... up to the number of cores or GPUs"
    )
    add("--size", choices=("demo", "tiny", "small", "base"), default="tiny")
    add("--batch", type=_positive, default=8, help="images per step, over all workers")
    add("--crop", type=_multiple_of_8, default=64, help="side of the images [px]")
    add("--steps", type=_positive, default=5, help="timed steps of each kind")
    add("--preemptions-per-hour", type=_number, default=0.05, help="assumed preemptions of one worker")
    add("--checkpoint-steps", type=_positive, default=500, help="steps between checkpoints")
    add("--checkpoint-seconds", type=_number, default=0.1, help="stall of training per checkpoint")
    add("--restart-seconds", type=_number, default=60.0, help="time from a lost worker to the next step")
    _renamed(
        scaling,
        "--lr-scaling",
        "--rate-rule",
        choices=("fixed", "linear", "sqrt"),
        default="linear",
        help="learning rate as a function of the global batch",
    )
    add("--figure", type=Path, metavar="FILE", help="write the curves there as PNG")
    add("--threads", type=_threads, default=1, help="CPU threads per worker")

    checkpoint = kinds.add_parser("checkpoint", help="measure the cost of a checkpoint in a folder and on S3")
    add = checkpoint.add_argument
    add("--size", choices=("demo", "tiny", "small", "base"), default="tiny")
    add("--batch", type=_positive, default=8, help="images per step")
    add("--crop", type=_multiple_of_8, default=64, help="side of the images [px]")
    add("--steps", type=_positive, default=3, help="steps with, and as many without, a checkpoint")
    add("--repeats", type=_positive, default=5, help="repeats, after one warm-up")
    _s3(checkpoint)
    add("--threads", type=_threads, default=1, help="CPU threads per step")
    add("--precision", choices=("fp32", "bf16"), default="fp32")

    scale = kinds.add_parser("scale", help="measure how costs grow with the size of a dataset")
    add = scale.add_argument
    add(
        "--sizes",
        type=_positive,
        nargs=3,
        default=[10_000, 100_000, 1_000_000],
        help="three sizes, for example samples",
    )
    add("--only", default="", metavar="TEXT", help="only the operations with this text in their name")
    add("--work", type=Path, metavar="FOLDER", help="where to create the temporary files")
    add("--threads", type=_threads, default=1, help="CPU threads")

    requests = kinds.add_parser(
        "requests", help="compute what a run asks of the store, MLflow and Ray with many workers and images"
    )
    add = requests.add_argument
    add("--job", type=Path, default=Path("jobs/5deg.yaml"), metavar="FILE", help="a job of kind train")
    add("--workers", type=_positive, nargs="+", default=[8, 64, 1024])
    add("--workers-per-node", type=_positive, default=8)
    add("--images", type=_positive, nargs="+", default=[72_000, 1_000_000, 100_000_000])
    add(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override a key; repeatable",
    )
    add("--image-kib", type=_positive, default=200, help="packed size of an image, degraded and clean")
    add("--images-per-worker", type=_positive, default=4, help="images of a worker in each step")
    add("--threads", type=_threads, default=1, help=argparse.SUPPRESS)

    for each in (model, parity, traffic):
        each.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32")
        each.add_argument("--seed", type=_seed, default=0)
    for each in (loader, degradations, scaling, scale, requests):
        each.add_argument("--precision", choices=("fp32",), default="fp32")
    for each in (loader, degradations, scale, requests, traffic):
        each.add_argument("--device", choices=("cpu",), default="cpu")
    for each in (model, parity, scaling, checkpoint):
        each.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for each in (model, parity, loader, degradations, scaling, checkpoint, scale, requests, traffic):
        each.add_argument("--json", type=Path, metavar="FILE", help="write the results there as well")
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one benchmark; return the exit status."""
    options = parser().parse_args(arguments)
    try:
        if options.kind == "traffic":
            from orchestrator.bench import fake_cuda

            fake_cuda.load()  # before the first import of PyTorch
        from orchestrator.bench import environment

        if options.json is not None and not options.json.absolute().parent.is_dir():
            raise BenchError(f"--json {options.json}: its folder does not exist.")
        where = environment.prepare(options.device, options.threads, options.precision)
        result = _benchmark(options.kind)(options, where, print)
        if options.json is not None:
            record = {**environment.describe(where), "command": environment.command(options), **result}
            write_output(options.json, json.dumps(record, indent=1) + "\n")
    except (BenchError, OutputError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _benchmark(name: str) -> Callable[[argparse.Namespace, Environment, Echo], dict[str, Any]]:
    """Return the function of a benchmark; each module imports only what it needs."""
    match name:
        case "model":
            from orchestrator.bench.model import run
        case "scaling":
            from orchestrator.bench.scaling import run
        case "checkpoint":
            from orchestrator.bench.checkpoint import run
        case "traffic":
            from orchestrator.bench.traffic import run
        case "requests":
            from orchestrator.bench.requests import run
        case "loader":
            from orchestrator.bench.loader import run
        case "degradations":
            from orchestrator.bench.degradations import run
        case "scale":
            from orchestrator.bench.scale import run
        case _:
            from orchestrator.bench.parity import run
    return run


class _OldName(argparse.Action):
    """Stores the value of an option under its old name and prints the new one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        _: str | None = None,
    ) -> None:
        new = f"--{self.dest.replace('_', '-')}"
        print(f"{self.option_strings[0]} is now called {new}. The old name still works.", file=sys.stderr)
        setattr(namespace, self.dest, values)


def _renamed(parser: argparse.ArgumentParser, name: str, old: str, **arguments: Any) -> None:
    action = parser.add_argument(name, **arguments)
    hidden = {**arguments, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS}
    parser.add_argument(old, dest=action.dest, action=_OldName, **hidden)


def _s3(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--s3", action=argparse.BooleanOptionalAction, default=True, help="measure a local S3 server as well"
    )


def _positive(text: str) -> int:
    return _at_most(MAX_NUMBER, int(text), least=1)


def _number(text: str) -> float:
    return _at_most(MAX_NUMBER, float(text))


def _seed(text: str) -> int:
    return _at_most(MAX_SEED, int(text))


def _threads(text: str) -> int:
    return _at_most(MAX_THREADS, int(text), least=1)


def _at_most(most: int, value: Number, least: int = 0) -> Number:
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{value!s:.20}: from {least} to {most:,}")
    return value


def _multiple_of_8(text: str) -> int:
    value = int(text)
    if not 16 <= value <= 65_536 or value % 8:
        raise argparse.ArgumentTypeError(f"{text}: a multiple of 8 from 16 to 65,536")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
