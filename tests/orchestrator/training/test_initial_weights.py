"""`init_from`: a run begins from weights that it finds once, on pairs of one's own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mirage import MIRAGE, ModelConfig, save
from mirage.weights import loads
from orchestrator.config.loader import load_job
from orchestrator.errors import ModelError, RegistryError
from orchestrator.models import network
from orchestrator.run_files import RESULT
from orchestrator.runner import run_any
from orchestrator.training.initial_weights import store_weights
from shards.store import LocalStore
from tests.shards.raw import lay_pairs

TINY = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 1))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pairs as jobs/finetune.yaml expects them."""
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    lay_pairs(
        tmp_path / ".mirage/pairs", [(f"degraded/{n}.png", f"clean/{n}.png") for n in range(5)], (40, 48)
    )
    return tmp_path


def small(start: str, *more: str) -> list[str]:
    return [
        *(f"init_from={start}", "storage=store", "data.crop_pixels=16", "train.global_batch_size=2"),
        *("model={dim: 6, blocks: [1, 1, 1, 1], refinement_blocks: 0, heads: [1, 1, 1, 1]}",),
        *("train.steps=1", "train.warmup_steps=0", "validation.crop_pixels=32", "workers.cpus=1"),
        *("track.register_as=null", "train.learning_rate=1e-9", "train.ema_decay=null", *more),
    ]


def run(*overrides: str) -> list[str]:
    said: list[str] = []
    run_any(load_job("jobs/finetune.yaml", overrides), said.append, in_process=True)
    return said


def result(project: Path, name: str = "finetune") -> dict[str, torch.Tensor]:
    (found,) = (project / "store/runs").glob(f"{name}-*/{RESULT}")
    weights = json.loads(found.read_bytes())["weights"]
    return dict(loads((found.parent / weights).read_bytes()).state_dict())


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    learned = [name for name in a if "running" not in name and "batches" not in name]
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in learned)


def start(seed: int = 1) -> MIRAGE:
    torch.manual_seed(seed)
    return MIRAGE(TINY)


def test_a_run_begins_from_a_file_and_keeps_it_though_the_file_changes(project: Path) -> None:
    model = start()
    save(model, project / "weights.safetensors")
    said = run(*small("weights.safetensors"))
    assert any(line.startswith("begins     from weights.safetensors, sha256") for line in said)
    assert near(result(project), dict(model.state_dict()))

    (folder,) = (project / "store/runs").iterdir()
    for kept in (folder / RESULT, *folder.glob("checkpoints/*")):
        kept.unlink()  # as if the run had been stopped before its first checkpoint
    save(start(seed=2), project / "weights.safetensors")
    run(*small("weights.safetensors"))
    assert near(result(project), dict(model.state_dict()))


def test_a_run_begins_from_a_registered_model_and_from_a_run(project: Path) -> None:
    save(start(), project / "weights.safetensors")
    run(*small("weights.safetensors", "name=first", "track.register_as=mine"))
    (first,) = (project / "store/runs").iterdir()
    for again, start_from in (("second", "models:/mine@candidate"), ("third", first.name)):
        said = run(*small(start_from, f"name={again}", "seed=5"))
        assert any(line.startswith(f"begins     from {start_from}, sha256") for line in said)
        assert near(result(project, again), result(project, "first"))


def test_without_it_a_run_begins_elsewhere(project: Path) -> None:
    run(*small("null"))
    assert not near(result(project), dict(start().state_dict()))


def test_weights_of_another_network_are_told_key_by_key(project: Path) -> None:
    save(MIRAGE(ModelConfig(dim=12, blocks=(1, 1, 1, 1), refinement_blocks=0)), project / "other.safetensors")
    with pytest.raises(ModelError, match=r"other.safetensors.*dim is 12 there and 6 here; heads is") as told:
        run(*small("other.safetensors"))
    assert "blocks" not in str(told.value)
    assert {path.name for path in (project / "store/runs").glob("*/*")} == {"owner"}


def test_weights_of_another_class_are_told_with_their_network_and_tensor_by_tensor(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(project / "another account"))
    (project / "initial_plain.py").write_text(
        "from torch import nn\n\nclass Plain(nn.Conv2d):\n    def __init__(self, side):\n"
        "        super().__init__(3, 3, side, padding='same')\n"
    )

    def store(*more: str) -> None:
        job = load_job("jobs/finetune.yaml", small(str(project / "plain.safetensors"), *more))
        store_weights(job, LocalStore(project / "kept"), "sqlite://")

    def of(side: int) -> str:
        return f'model={{class: "initial_plain:Plain", path: {project}, arguments: {{side: {side}}}}}'

    made = network.make(load_job("jobs/finetune.yaml", [of(1)]).model)
    (project / "plain.safetensors").write_bytes(network.dump(made, {}))
    origin = r'plain.safetensors, weights of initial_plain:Plain with arguments {"side": 1}: '
    with pytest.raises(ModelError, match=f"{origin}this job trains a MIRAGE") as told:
        store()
    assert "trust" not in str(told.value)
    with pytest.raises(ModelError, match=f"{origin}the tensors do not fit") as told:
        store(of(3))
    assert "weight is 3 x 3 x 1 x 1 there and 3 x 3 x 3 x 3 here" in str(told.value)
    store(of(1))
    save(start(), project / "plain.safetensors")
    shutil.rmtree(project / "kept")
    with pytest.raises(ModelError, match=r"plain.safetensors, weights of a MIRAGE: the tensors"):
        store(of(1))


def test_heads_of_another_form_stay_as_they_are(project: Path) -> None:
    model = start()
    save(model, project / "weights.safetensors")
    run(*small("weights.safetensors", "model.alignment=euclidean"))
    got = result(project)
    assert near({n: t for n, t in got.items() if not n.startswith("spd_")}, dict(model.state_dict()))


def test_a_name_that_means_nothing_is_one_error(project: Path) -> None:
    with pytest.raises(RegistryError, match=r"nothing.safetensors"):
        run(*small("nothing.safetensors"))
