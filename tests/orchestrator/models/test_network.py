"""A user-defined model is trained by the same job and evaluated like a MIRAGE."""

from __future__ import annotations

import argparse
import io
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from orchestrator.config.job_types import AnyJob
from orchestrator.config.loader import job_from_mapping
from orchestrator.errors import JobFileError, ModelError
from orchestrator.evaluation.summary import read_summary
from orchestrator.models import user_model
from orchestrator.runner import plan_any, run_any
from shards.dataset import Dataset
from tests.orchestrator.conftest import SMALL

NETWORK = """
import torch

class Residual(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.into = torch.nn.Conv2d(3, width, 3, padding=1)
        self.out = torch.nn.Conv2d(width, 3, 3, padding=1)
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, x):
        return x + self.out(self.into(x).relu())

class Halving(Residual):
    def forward(self, x):
        return super().forward(x)[..., ::2]
"""


def training(folder: Path, storage: Path, name: str = "Residual", **changes: object) -> AnyJob:
    """A short training of a class in `folder`."""
    module = f"user_{folder.name.replace('-', '_')}"
    (folder / f"{module}.py").write_text(NETWORK)
    model = {"class": f"{module}:{name}", "path": str(folder), "arguments": {"width": 6}}
    values = {
        **SMALL,
        "storage": str(storage),
        "model": model,
        "loss": {"spd_weight": 0},
        "track": {"experiment": "tests", "every_steps": 2},
        **changes,
    }
    return job_from_mapping(values)


def test_a_user_defined_model_is_trained_and_evaluated_like_a_mirage(
    small_data: Dataset, at_home: Path, tmp_path: Path
) -> None:
    store = at_home.parent / "store"
    job = training(tmp_path, store)
    assert "Residual: 333 parameters" in plan_any(job)
    said: list[str] = []
    assert run_any(job, said.append, in_process=True).status == "finished"
    assert any("improvement [dB]" in line for line in said)
    (result,) = [
        path for path in (store / "runs").glob("small-*/result.json") if "Residual" in _class_of(path)
    ]
    weights = result.parent / json.loads(result.read_bytes())["weights"]
    tensors = safetensors.torch.load_file(weights)
    assert set(tensors) == {"into.weight", "into.bias", "out.weight", "out.bias"}
    assert tensors["out.weight"].abs().sum() > 0  # it has moved

    evaluation = job_from_mapping(
        {
            "name": "evaluate-user-model",
            "kind": "evaluate",
            "storage": str(tmp_path),
            "model": {
                "class": job.model.class_,  # type: ignore[union-attr]
                "path": str(tmp_path),
                "arguments": {"width": 6},
                "weights": str(weights),
            },
            "data": {"manifests": small_data.uris[0]},
            "evaluate": {"degradations": ["rain"]},
            "track": {"experiment": "tests"},
        }
    )
    assert run_any(evaluation, said.append, in_process=True).status == "finished"
    (line,) = (line for line in said if line.startswith("summary.json"))
    summary = read_summary(Path(line.split()[1]))
    assert (summary.model.name, summary.model.recipe, summary.model.weights) == ("Residual", "fast", "EMA")
    assert (summary.parameters, summary.macs) == (333, None)


def _class_of(result: Path) -> str:
    """Return the class that the weights of a run name in their header."""
    from mirage.weights import read_metadata

    weights = result.parent / json.loads(result.read_bytes())["weights"]
    return read_metadata(weights.read_bytes()).get("class", "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"loss": {"spd_weight": 0.05}}, "the SPD term needs a MIRAGE.*Set it to 0"),
        ({"train": {**SMALL["train"], "activation_checkpointing": "all"}}, "train.activation_checkpointing"),  # type: ignore[dict-item]
        ({"train": {**SMALL["train"], "compile": "blocks"}}, "train.compile"),  # type: ignore[dict-item]
    ],
)
def test_settings_that_only_a_mirage_has_are_refused_with_the_reason(
    at_home: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    with pytest.raises(JobFileError, match=says):
        training(tmp_path, tmp_path, **changes)


def test_keys_of_a_mirage_and_of_a_class_do_not_mix(at_home: Path, tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match=r"model.dim +is a key of MIRAGE"):
        training(tmp_path, tmp_path, model={"class": "a:B", "dim": 8})
    with pytest.raises(JobFileError, match=r"model.path +needs model.class"):
        training(tmp_path, tmp_path, model={"path": "somewhere"})
    with pytest.raises(JobFileError, match=r"model.class +is 'B'"):
        training(tmp_path, tmp_path, model={"class": "B"})


def test_a_class_that_changes_the_size_is_one_clear_error(
    small_data: Dataset, at_home: Path, tmp_path: Path
) -> None:
    job = training(tmp_path, at_home.parent / "store", name="Halving")
    with pytest.raises(ModelError, match=r"returned images of shape"):
        run_any(job, lambda line: None, in_process=True)


def _layouts(state: dict[str, torch.Tensor], raw: dict[str, torch.Tensor]) -> dict[str, object]:
    """Files as public repositories write them: `state` is to be loaded, `raw` is not averaged."""

    def under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in tensors.items()}

    loss = {"loss_fn.vgg.weight": torch.zeros(2)}
    return {
        "plain": state,
        "DDP": under("module.", state),
        "BasicSR": {"params": state},
        "BasicSR with EMA": {"params": raw, "params_ema": state},
        "Lightning": {
            "state_dict": under("net.", state) | loss,
            "epoch": 3,
            "hyper_parameters": argparse.Namespace(lr=1e-4),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
        },
        "Lightning with EMA": {"state_dict": under("net.", raw) | under("ema_net.", state)},
        "compiled, in DDP": {"model": under("module._orig_mod.", state)},
        "profiled by thop": {
            "state_dict": state | {"total_ops": torch.zeros(1), "body.total_params": torch.zeros(1)}
        },
    }


def test_checkpoints_of_every_layout_load_and_the_averaged_weights_are_preferred() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    state = {name: torch.rand_like(t.float()).to(t.dtype) for name, t in network.state_dict().items()}
    raw = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for layout, content in _layouts(state, raw).items():
        file = io.BytesIO()
        torch.save(content, file)
        network.load_state_dict(raw)
        user_model.load_weights(network, file.getvalue(), layout)
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, state[name]), (layout, name)


def test_what_does_not_fit_is_told_tensor_by_tensor() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 3, 1))
    given = {
        "0.weight": torch.zeros(8, 3, 1, 1),
        "0.bias": torch.zeros(4),
        "1.bias": torch.zeros(3),
        "head": torch.zeros(2),
    }
    file = io.BytesIO()
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in given.items()}}, file)
    with pytest.raises(ModelError) as caught:
        user_model.load_weights(network, file.getvalue(), "model.ckpt")
    assert str(caught.value).splitlines() == [
        "model.ckpt: the tensors do not fit the network:",
        "  0.weight is 8 x 3 x 1 x 1 there and 4 x 3 x 1 x 1 here",
        "  1.weight 3 x 4 x 1 x 1 is missing",
        "  head 2 is unknown",
    ]


class _Runs:
    """An object whose unpickling runs a function."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("exit 3",))


def test_a_checkpoint_with_code_is_refused() -> None:
    file = io.BytesIO()
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(more=_Runs())}, file)
    with pytest.raises(ModelError, match="Pickled code is never run"):
        user_model.load_weights(torch.nn.Conv2d(3, 3, 1), file.getvalue(), "model.ckpt")
