import json
import pickle
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor

from mirage import MIRAGE, ModelConfig, load, load_release, save
from mirage.weights import WeightsError, dumps, loads, read_metadata, release_state_dict, to_bytes

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), refinement_blocks=0, heads=(1, 1, 1, 2))
UNEQUAL = ModelConfig(dim=8, blocks=(1, 1, 1, 1), branch_ratios=(2, 1, 1), batch_norm="local")


def a_model(config: ModelConfig = CONFIG) -> MIRAGE:
    torch.manual_seed(0)
    model = MIRAGE(config)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())):
            tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def same_weights(a: MIRAGE, b: MIRAGE) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("config", [CONFIG, UNEQUAL])
def test_a_file_holds_the_model_and_its_configuration(tmp_path: Path, config: ModelConfig) -> None:
    model, path = a_model(config), tmp_path / "weights.safetensors"
    save(model, path, {"run": "demo"})
    found = load(path)
    assert found.config == config
    assert same_weights(model, found)
    assert not found.training
    assert load(path, training=True).training
    assert read_metadata(path.read_bytes())["run"] == "demo"
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_bytes_are_those_of_the_file_and_do_not_vary(tmp_path: Path) -> None:
    model, path = a_model(), tmp_path / "w"
    save(model, path)
    assert path.read_bytes() == dumps(model) == dumps(loads(dumps(model)))


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w"
    save(a_model(), path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(a_model(UNEQUAL), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def header_of(config: dict[str, object]) -> dict[str, str]:
    return {"mirage.config": json.dumps(config)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated: 0 bytes"),
        (b"\xff" * 40, "not a safetensors file"),
        (b"\x02" + b"\0" * 7 + b"{]", "not JSON"),
        (safetensors_save({"x": torch.zeros(1)}), "no configuration"),
        (safetensors_save({"x": torch.zeros(1)}, header_of({"dims": 12})), 'did you mean "dim"'),
        (safetensors_save({"x": torch.zeros(1)}, header_of(CONFIG.to_dict())), "do not fit"),
        (dumps(MIRAGE(CONFIG))[:-100], "unreadable"),
    ],
    # The processes of pytest-xdist must agree on the names, and weights are random.
    ids=["empty", "no header", "no JSON", "no configuration", "misspelt key", "other shapes", "truncated"],
)
def test_an_invalid_weights_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def checkpoint(model: MIRAGE) -> dict[str, object]:
    """What Lightning writes, as far as it matters."""
    state = {f"net.{name}": tensor for name, tensor in release_state_dict(model).items()}
    return {"epoch": 1, "state_dict": state, "optimizer_states": [{"state": {}}], "callbacks": {}}


def test_the_authors_checkpoints_come_and_go_unchanged(tmp_path: Path) -> None:
    model, path = a_model(), tmp_path / "3Deg.ckpt"
    torch.save(checkpoint(model), path)
    found = load_release(path)
    assert found.config == CONFIG
    assert same_weights(model, found)
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(found(images).image, model.eval()(images).image)


@pytest.mark.parametrize(
    ("config", "tensors"), [(ModelConfig.tiny(), 964), (ModelConfig.small(), 991)], ids=["T", "S"]
)
def test_both_published_sizes_are_recognised_from_shapes(
    tmp_path: Path, config: ModelConfig, tensors: int
) -> None:
    saved = checkpoint(MIRAGE(config))
    torch.save(saved, tmp_path / "x.ckpt")
    assert len(saved["state_dict"]) == tensors
    assert load_release(tmp_path / "x.ckpt").config == config


def broken(tmp_path: Path, change: str) -> Path:
    saved, path = checkpoint(a_model()), tmp_path / "x.ckpt"
    state: dict[str, Tensor] = saved["state_dict"]
    if change == "missing":
        del state["net.output.weight"]
    elif change == "extra":
        state["net.prompt.weight"] = torch.zeros(1)
    elif change == "shape":
        state["net.output.weight"] = torch.zeros(3, 12, 1, 1)
    elif change == "other model":
        state.clear()
        state["net.prompt1"] = torch.zeros(1)
    elif change == "prefix":
        state["output.weight"] = state.pop("net.output.weight")
    elif change == "no state":
        del saved["state_dict"]
    elif change == "code":
        saved["hook"] = Path("x")
    torch.save(saved, path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "missing: output.weight"),
        ("extra", "unknown: prompt.weight"),
        ("shape", "output.weight has shape"),
        ("other model", "not weights of the release"),
        ("prefix", "not under `net.`"),
        ("no state", "state_dict"),
        ("code", "not a PyTorch checkpoint of plain tensors"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_release(broken(tmp_path, change))


def test_a_pickle_that_is_no_checkpoint_is_refused_without_running_it(tmp_path: Path) -> None:
    path, trace = tmp_path / "x.ckpt", tmp_path / "trace"

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (trace,)

    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(WeightsError):
        load_release(path)
    assert not trace.exists()


def test_the_release_has_no_unequal_branches() -> None:
    with pytest.raises(ValueError, match="equal shares"):
        release_state_dict(a_model(UNEQUAL))


entries = st.dictionaries(st.text(max_size=12), st.text(max_size=12), max_size=6)


@settings(max_examples=40, deadline=None)
@given(entries, st.randoms(use_true_random=False))
def test_the_same_tensors_and_metadata_give_the_same_bytes_and_read_back(
    metadata: dict[str, str], random: Random
) -> None:
    tensors = {"b": torch.arange(3.0), "a": torch.tensor(7), "c": torch.zeros(2, dtype=torch.half)}
    shuffled = dict(random.sample(sorted(metadata.items()), len(metadata)))
    data = to_bytes(tensors, metadata)
    assert to_bytes(dict(reversed(tensors.items())), shuffled) == data
    assert read_metadata(data) == metadata
    found = safetensors_load(data)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    if len(metadata) < 2:  # files of earlier versions, whose order was not left to chance, keep their digest
        assert data == safetensors_save(tensors, metadata or None)
