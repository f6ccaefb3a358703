"""Export of a model to other formats. Each file is read back and compared with the model before it is put in place.

    safetensors    weights and configuration, read by `mirage.load`; or weights and code of a user-defined network
    torchscript    one file for torch.jit.load in Python or C++, without this project
    onnx           one file for ONNX Runtime and others, with free batch, height and width (opset 17)
    release        a checkpoint in the layout of the authors' scripts, of a MIRAGE

TorchScript and ONNX take float32 RGB in [0, 1], (b, 3, h, w), of any size: they contain the reflection to multiples
of the stride, the crop and the clamp. They restore whole images, without strips or tiles that bound the memory.
"""

from __future__ import annotations

import copy
import io
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]

from mirage import MIRAGE, load_release
from mirage.kernels.onnx_export import exportable
from mirage.weights import save_release
from orchestrator.errors import ExportError
from orchestrator.models.network_file import RestoringNetwork, dumps, loads, restoring
from orchestrator.models.user_network import same_draws
from orchestrator.outputs import write_output
from shards.progress import ProgressCallback

RestoreFunction = Callable[[Tensor], Tensor]
"""A function from degraded images (b, 3, h, w) to restored ones."""

SHAPES = ((1, 3, 64, 64), (2, 3, 33, 45), (1, 3, 40, 97), (2, 3, 16, 9))
"""Shapes on which the difference is measured: one image and two, square and not, multiples of 8 and not."""

OPSET = 17


@dataclass(frozen=True)
class ExportFormat:
    """How one format is written and read back."""

    write: Callable[[RestoringNetwork, Path], None]
    read: Callable[[Path], RestoreFunction]
    suffix: str
    tolerance: float
    """Largest accepted difference, for values in [0, 1]; 0 means identical bits."""


@dataclass(frozen=True)
class ExportParity:
    """The difference between an exported model and the model."""

    worst: float
    """Largest absolute difference, for values in [0, 1]."""
    shape: tuple[int, ...]
    """Shape of the images with this difference."""
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.worst <= self.tolerance

    def __str__(self) -> str:
        """Describe the measurement."""
        where = " x ".join(map(str, self.shape))
        return f"largest difference {self.worst:.1e} at {where}, tolerance {self.tolerance:.0e}"


def export(
    model: MIRAGE | RestoringNetwork, out: Path, form: str, on_progress: ProgressCallback | None = None
) -> ExportParity:
    """Write `model` to `out` in a format and return the difference measured on the file.

    `on_progress` is called when the file is written, and when it is compared on each of `SHAPES`.
    Raises ExportError and leaves no file if the format cannot hold the model or the file computes something else.
    """
    if form not in FORMATS:
        raise ExportError(f"format {form!r}: must be one of {', '.join(FORMATS)}.")
    chosen = FORMATS[form]
    if out.suffix != chosen.suffix:
        raise ExportError(
            f"{out}: the format {form} is a {chosen.suffix} file; give -o a name with this suffix."
        )
    if out.exists():
        raise ExportError(f"{out} already exists: remove it, or give -o another name.")
    network = restoring(model)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            partial = Path(folder, out.name)
            if on_progress:
                on_progress(0, 1 + len(SHAPES), f"writing {out.name}")
            chosen.write(network, partial)
            with _refusals_of(network, form):
                run = chosen.read(partial)

            def checked(degraded: Tensor) -> Tensor:
                with _refusals_of(network, form):
                    return run(degraded)

            parity = measure(network, checked, chosen.tolerance, on_progress)
            if not parity.holds:
                why = "" if isinstance(network.module, MIRAGE) else f" {_cause(network)} {_INSTEAD}"
                raise ExportError(
                    f"{out}: not written: the {form} file differs from the model: {parity}.{why}"
                )
            partial.replace(out)
    except OSError as error:
        raise ExportError(f"{out}: cannot write the file ({error.strerror or error}).") from error
    return parity


def measure(
    network: MIRAGE | RestoringNetwork,
    run: RestoreFunction,
    tolerance: float,
    on_progress: ProgressCallback | None = None,
) -> ExportParity:
    """Compare `run` with `network` on images of each of `SHAPES`, restored as a whole."""
    network = restoring(network)
    worst, worst_shape = -1.0, SHAPES[0]
    for number, shape in enumerate(SHAPES, 1):
        if on_progress:
            on_progress(number, 1 + len(SHAPES), f"comparing on {' x '.join(map(str, shape))}")
        degraded = torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
        expected, found = network.restore(degraded, "whole"), run(degraded)
        same_shape = found.shape == expected.shape
        difference = float((found - expected).abs().max()) if same_shape else float("inf")
        if not (difference <= worst or math.isnan(worst)):  # NaN counts as the worst
            worst, worst_shape = difference, shape
    if on_progress:
        on_progress(1 + len(SHAPES), 1 + len(SHAPES), "")
    return ExportParity(worst, worst_shape, tolerance)


class AnySize(nn.Module):
    """The restoration of a whole image as a module, for exporters."""

    def __init__(self, network: MIRAGE | RestoringNetwork) -> None:
        super().__init__()
        network = restoring(network)
        self.stride = network.stride
        self.model = copy.deepcopy(network.module).eval().requires_grad_(False)
        for head in ("spd_shallow", "spd_latent"):  # used in training only
            if hasattr(self.model, head):
                delattr(self.model, head)

    def forward(self, degraded: Tensor) -> Tensor:
        """Restore degraded (b, 3, h, w); the result is in [0, 1]."""
        image = _reflected(_reflected(degraded, 2, self.stride), 3, self.stride)
        restored: Tensor = self.model(image).image
        for axis in (2, 3):
            restored = restored.index_select(axis, _positions(degraded.shape[axis]))
        return restored.clamp(0, 1)


def _reflected(image: Tensor, axis: int, stride: int) -> Tensor:
    """Reflect like `mirage.inference.reflect_to_multiple` along one axis, without a branch that depends on the size."""
    size = image.shape[axis]
    last = _positions(size).amax()  # a tensor: exporters turn numbers into constants
    position = _positions((size + stride - 1) // stride * stride)
    position = torch.remainder(position, (2 * last).clamp(min=1))
    return image.index_select(axis, torch.minimum(position, 2 * last - position))


def _positions(size: int) -> Tensor:
    """Return 0, 1, ..., size - 1; tracing keeps the size free here, unlike in `arange`."""
    return torch.ones(size, dtype=torch.int64).cumsum(0) - 1


def _example() -> Tensor:
    return torch.rand(2, 3, 33, 45, generator=torch.Generator().manual_seed(0))


@contextmanager
def _exporting() -> Iterator[None]:
    """Disable gradients, choose exportable operators, and hide two kinds of warnings.

    Tracing warns that the model's check of its input becomes a constant; the comparison covers that. TorchScript, and
    ONNX through it, warn that they are deprecated: torch.export takes minutes instead of seconds, for the same
    numbers.
    """
    with torch.no_grad(), exportable(), warnings.catch_warnings():
        for category in (TracerWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.onnx.*")
        yield


def _write_torchscript(network: RestoringNetwork, path: Path) -> None:
    with _exporting(), _refusals_of(network, "torchscript"):
        traced = torch.jit.trace(AnySize(network), _example(), check_trace=False)  # type: ignore[no-untyped-call]
        content = io.BytesIO()  # PyTorch ends the process when it cannot write a file
        torch.jit.save(traced, content)
    path.write_bytes(content.getbuffer())


def _read_torchscript(path: Path) -> RestoreFunction:
    with _exporting():
        return _without_gradient(torch.jit.load(str(path)))  # type: ignore[no-untyped-call]


def _write_onnx(network: RestoringNetwork, path: Path) -> None:
    free = {0: "batch", 2: "height", 3: "width"}
    try:
        with _exporting(), _refusals_of(network, "onnx"):
            torch.onnx.export(
                AnySize(network),
                (_example(),),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                input_names=["degraded"],
                output_names=["restored"],
                dynamic_axes={"degraded": free, "restored": free},
            )
    except torch.onnx.OnnxExporterError as error:
        if "not installed" not in str(error):
            raise
        raise ExportError(_MISSING_ONNX) from error


def _read_onnx(path: Path) -> RestoreFunction:
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise ExportError(_MISSING_ONNX) from error
    options = SessionOptions()
    options.log_severity_level = 4  # what fails is raised as well
    session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda degraded: torch.from_numpy(session.run(None, {"degraded": degraded.numpy()})[0])


_MISSING_ONNX = "ONNX needs the packages onnx and onnxruntime: pip install 'mirage-orchestrator[export]'."


@contextmanager
def _refusals_of(network: RestoringNetwork, form: str) -> Iterator[None]:
    """Make one error of what an exporter, or what it wrote, cannot do with a user-defined network."""
    try:
        yield
    except Exception as error:
        packages_lack = isinstance(error, ExportError) or "not installed" in str(error)
        if packages_lack or isinstance(network.module, MIRAGE):
            raise
        detail = (str(error).splitlines() or [type(error).__name__])[-1].strip().rstrip(".")
        raise ExportError(
            f"{form}: not written: this network cannot be traced, or the file fails on other images: {detail}. "
            f"{_cause(network)} {_INSTEAD}"
        ) from error


_INSTEAD = (
    "Export it with -f safetensors, which holds its weights and its code, or serve it with `mirage serve`."
)


def _cause(network: RestoringNetwork) -> str:
    """Return the probable reason for which a trace of a user-defined network is not the network."""
    model, image = AnySize(network), _example()
    with torch.no_grad(), same_draws(network.device):
        try:
            draws = not torch.equal(model(image), model(image))
        except Exception:  # the user's code, whose own error is reported
            draws = False
    if draws:
        return "It draws random numbers when it restores, and a traced file draws others."
    return (
        "A trace has the operations for one image: it cannot choose layers by the content or the size of another, "
        "and it cannot have operators that the format lacks."
    )


def _write_weights(network: RestoringNetwork, path: Path) -> None:
    write_output(path, dumps(network))


def _read_weights(path: Path) -> RestoreFunction:
    network = loads(path.read_bytes(), trusted="all")
    return lambda degraded: network.restore(degraded, "whole")


def _write_release(network: RestoringNetwork, path: Path) -> None:
    if not isinstance(network.module, MIRAGE):
        raise ExportError("release: it is the authors' layout of a MIRAGE, and this is another network.")
    save_release(network.module, path)


def _read_release(path: Path) -> RestoreFunction:
    network = restoring(load_release(path))
    return lambda degraded: network.restore(degraded, "whole")


def _without_gradient(module: RestoreFunction) -> RestoreFunction:
    def run(degraded: Tensor) -> Tensor:
        with torch.no_grad():
            return module(degraded)

    return run


FORMATS = {
    "safetensors": ExportFormat(_write_weights, _read_weights, ".safetensors", 0.0),
    "torchscript": ExportFormat(_write_torchscript, _read_torchscript, ".pt", 1e-4),
    "onnx": ExportFormat(_write_onnx, _read_onnx, ".onnx", 1e-4),
    "release": ExportFormat(_write_release, _read_release, ".ckpt", 0.0),
}
