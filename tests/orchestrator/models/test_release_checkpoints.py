"""`mirage import-checkpoint` and `export-checkpoint`, as a shell runs them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mirage import MIRAGE, ModelConfig, load, save

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=1, heads=(1, 1, 1, 2))


def mirage(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    save(MIRAGE(CONFIG), path)
    return path


def test_weights_go_to_the_release_and_back_unchanged(weights: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there.ckpt", tmp_path / "new" / "back.safetensors"
    assert mirage("export-checkpoint", weights, "-o", there).returncode == 0
    said = mirage("import-checkpoint", there, "-o", back)
    assert said.returncode == 0, said.stderr
    assert "dim 6" in said.stdout
    before, after = load(weights).state_dict(), load(back).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_exported_checkpoint_has_the_releases_names_and_no_code(weights: Path, tmp_path: Path) -> None:
    mirage("export-checkpoint", weights, "-o", tmp_path / "there.ckpt")
    state = torch.load(tmp_path / "there.ckpt", weights_only=True)["state_dict"]
    assert state["net.latent.0.attn.gatedcnn.gic1.weight"].dim() == 4
    assert "net.spd_proj_latent.bias" in state


@pytest.mark.parametrize(
    ("source", "out", "message"),
    [
        ("absent.ckpt", "out.safetensors", "no such file"),
        ("weights.safetensors", "out.safetensors", "not a PyTorch checkpoint"),
        ("weights.safetensors", "out.pth", "a .safetensors file"),
        ("weights.safetensors", "weights.safetensors", "already exists"),
    ],
)
def test_what_cannot_be_imported_is_refused_and_nothing_is_written(
    weights: Path, tmp_path: Path, source: str, out: str, message: str
) -> None:
    before = weights.read_bytes()
    said = mirage("import-checkpoint", tmp_path / source, "-o", tmp_path / out)
    assert said.returncode == 2
    assert message in said.stderr
    assert "Traceback" not in said.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    assert weights.read_bytes() == before


def test_a_network_that_the_release_lacks_is_not_exported(tmp_path: Path) -> None:
    save(MIRAGE(ModelConfig(dim=8, blocks=(1, 1, 1, 1), branch_ratios=(2, 1, 1))), tmp_path / "w.safetensors")
    said = mirage("export-checkpoint", tmp_path / "w.safetensors", "-o", tmp_path / "w.ckpt")
    assert said.returncode == 2
    assert "branch_ratios=(2, 1, 1)" in said.stderr
    assert not (tmp_path / "w.ckpt").exists()
