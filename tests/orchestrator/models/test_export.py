"""An exported file computes what the model computes, at any size; otherwise it is not written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mirage import MIRAGE, ModelConfig, kernels, restore
from mirage.kernels import onnx_export, reference
from orchestrator.errors import ExportError
from orchestrator.models.export import FORMATS, SHAPES, ExportParity, export, measure
from orchestrator.registry.resolve import find_model
from tests.claims import assert_one_clear_error

SMALL = ModelConfig(dim=12, blocks=(1, 1, 1, 1), heads=(1, 1, 2, 2), refinement_blocks=1)
ODD_SIZES = ((1, 3, 1, 1), (3, 3, 1, 9), (1, 3, 5, 61), (2, 3, 7, 8), (1, 3, 130, 24))


def model(config: ModelConfig = SMALL) -> MIRAGE:
    torch.manual_seed(0)
    network = MIRAGE(config).eval()
    with torch.no_grad():  # no weight that hides an error: new scales and statistics are all ones and zeros
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand_like(tensor)).add_(0.01 * torch.rand_like(tensor))
    return network


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, ExportParity]]:
    """The file of a format, exported once, and the parity that exporting reported."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def export_once(form: str) -> tuple[Path, ExportParity]:
        out = folder / form / f"model{FORMATS[form].suffix}"
        return out, export(model(), out, form)

    return export_once


Written = Callable[[str], tuple[Path, ExportParity]]


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_is_the_model_within_its_tolerance(form: str, written: Written) -> None:
    out, parity = written(form)
    assert parity.holds
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert measure(model(), FORMATS[form].read(out), parity.tolerance) == parity  # of the file itself


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_sizes_are_free_down_to_one_pixel(form: str, written: Written) -> None:
    run = FORMATS[form].read(written(form)[0])
    for shape in ODD_SIZES:
        degraded = torch.rand(shape)
        torch.testing.assert_close(run(degraded), restore(model(), degraded), atol=1e-5, rtol=0)


def test_an_ablation_exports_as_well(tmp_path: Path) -> None:
    config = replace(SMALL, dim=8, branch_ratios=(2, 1, 1), kernels="static", alignment="none")
    assert export(model(config), tmp_path / "model.onnx", "onnx").holds


class SizeDependentModel(MIRAGE):
    """A model that tracing gets wrong: a Python condition on the size decides what it computes."""

    def forward(self, degraded: Tensor, keys: Tensor | None = None):  # type: ignore[no-untyped-def]
        out = super().forward(degraded, keys)
        return out._replace(image=out.image + 0.01) if degraded.shape[2] > 50 else out


@pytest.mark.parametrize("form", ["safetensors", "torchscript", "onnx", "release"])
def test_an_export_that_differs_from_the_model_leaves_no_file(form: str, tmp_path: Path) -> None:
    different = SizeDependentModel(SMALL).eval()
    different.load_state_dict(model().state_dict())
    out = tmp_path / f"different{FORMATS[form].suffix}"
    with pytest.raises(
        ExportError, match=r"not written: .* differs from the model: largest difference 1.0e-02 at 1 x 3 x 64"
    ):
        export(different, out, form)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_and_infinity_are_no_parity(wrong: float) -> None:
    assert not measure(model(), lambda x: torch.full_like(x, wrong), 1e-4).holds
    assert not ExportParity(wrong, SHAPES[0], 1e-4).holds


def test_another_shape_is_no_parity() -> None:
    assert not measure(model(), lambda x: x[..., :8, :8], 1e-4).holds


def test_a_torchscript_file_runs_without_this_project(written: Written) -> None:
    file, _ = written("torchscript")
    code = "import sys, torch; m = torch.jit.load('model.pt'); x = torch.full((1, 3, 9, 20), 0.5)\n"
    code += "assert 'mirage' not in sys.modules; print(float(m(x).mean()))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=file.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = float(restore(model(), torch.full((1, 3, 9, 20), 0.5)).mean())
    assert float(done.stdout) == pytest.approx(expected, abs=1e-5)


def test_onnx_has_free_sizes_by_name(written: Written) -> None:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(written("onnx")[0]), providers=["CPUExecutionProvider"])
    (degraded,), (restored,) = session.get_inputs(), session.get_outputs()
    assert (degraded.name, degraded.shape) == ("degraded", ["batch", 3, "height", "width"])
    assert restored.name == "restored"
    assert session.run(None, {"degraded": np.zeros((1, 3, 4, 4), np.float32)})[0].shape == (1, 3, 4, 4)


def test_a_release_checkpoint_is_found_by_its_name_and_is_the_model(written: Written) -> None:
    ours, again = model(), find_model(str(written("release")[0])).load(torch.device("cpu")).module
    assert all(
        torch.equal(a, b)
        for a, b in zip(ours.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_what_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"")
    (tmp_path / "file").write_bytes(b"")
    cases = {
        ("there.onnx", "onnx"): "already exists",
        ("model.pt", "onnx"): "the format onnx is a .onnx file",
        ("model.pt", "tensorrt"): "must be one of safetensors, torchscript, onnx, release",
        ("file/model.pt", "torchscript"): "cannot write the file",
    }
    for (name, form), says in cases.items():
        with pytest.raises(ExportError, match=says) as refusal:
            export(model(), tmp_path / name, form)
        assert_one_clear_error(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there.onnx"]


def test_the_exportable_dynamic_convolution_equals_the_reference() -> None:
    x, weight = torch.rand(3, 6, 5, 4), torch.rand(3, 4, 7, 7)
    torch.testing.assert_close(
        onnx_export.dynamic_depthwise(x, weight), reference.dynamic_depthwise(x, weight)
    )


def test_exportable_operators_are_active_inside_the_context_only() -> None:
    x, weight = torch.rand(1, 6, 5, 4), torch.rand(4, 3, 3)
    with torch.profiler.profile() as within, onnx_export.exportable():
        kernels.depthwise(x, weight)
    with torch.profiler.profile() as afterwards:
        kernels.depthwise(x, weight)
    assert "mirage::depthwise" not in {event.key for event in within.key_averages()}
    assert "mirage::depthwise" in {event.key for event in afterwards.key_averages()}
