"""A network of the user's own is one file: it restores, is registered, served, promoted and exported from it."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from mirage.weights import WeightsError, read_metadata, to_bytes
from orchestrator.cli.app import app
from orchestrator.config.schema import Model
from orchestrator.errors import ExportError, ModelError, RegistryError, UntrustedCodeError
from orchestrator.maintenance.lineage import trace
from orchestrator.models import network, trust
from orchestrator.models.export import FORMATS, export
from orchestrator.models.network_code import NetworkCode
from orchestrator.models.network_file import CODE_KEY, code_of, dumps, loads
from orchestrator.models.user_network import UserModelAdapter
from orchestrator.promotion.inference_cost import measure_inference_cost
from orchestrator.promotion.promote import promote
from orchestrator.registry import registration, versions
from orchestrator.registry.resolve import find_model
from orchestrator.restoration.restorer import Restorer, RestoreSettings
from orchestrator.run_files import JOB, SCORES
from orchestrator.serving.served_model import load_model
from orchestrator.tracking import runs
from tests.orchestrator.promotion.test_promote import scored
from tests.orchestrator.serving.inprocess import image_bytes, running

TRAITS = (
    "tuple",
    "dict of terms",
    "batch norm",
    "buffers",
    "shared weights",
    "multiple of 64",
    "lazy import",
    "never used",
    "used by input",
    "label",
    "dropout",
    "draws in evaluation",
)
SOURCES = {
    "net/model.py": """
import random
import numpy as np
import torch
from torch import nn
from net.parts import Block
from .parts import double

class Net(nn.Module):
    def __init__(self, trait, width=6):
        super().__init__()
        self.trait = trait
        self.into, self.out = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.block = Block(width)
        if trait == "batch norm":
            self.norm = nn.BatchNorm2d(width)
        if trait == "shared weights":
            self.again = self.into
        if trait == "buffers":
            self.register_buffer("constant", torch.rand(width, 1, 1))
        if trait == "never used":
            self.spare = nn.Linear(3, 4)
        if trait == "used by input":
            self.experts = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        if trait == "label":
            self.of_label = nn.Embedding(8, width)
        if trait == "dropout":
            self.drop = nn.Dropout2d(0.5)

    def forward(self, x, labels=None):
        if self.trait == "multiple of 64":
            assert x.shape[2] % 64 == x.shape[3] % 64 == 0, x.shape
        f = self.block(self.into(x)).relu()
        if self.trait == "batch norm":
            f = self.norm(f)
        if self.trait == "shared weights":
            f = f + self.again(x)
        if self.trait == "buffers":
            f = f - self.constant
        if self.trait == "lazy import":
            import net.late
            from net import late
            f = net.late.half(late.half(f))
        if self.trait == "used by input":
            f = torch.cat([self.experts[int(image.mean() > 0.5)](row[None]) for image, row in zip(x, f)])
        if self.trait == "label" and labels is not None:
            f = f + self.of_label(labels)[:, :, None, None]
        if self.trait == "dropout":
            f = self.drop(f)
        if self.trait == "draws in evaluation":
            f = f + torch.randn_like(f) * random.random() * float(np.random.rand())
        image = x + 0.1 * double(self.out(f))
        return (image, f) if self.trait in ("tuple", "dict of terms") else image
""",
    "net/parts.py": "from torch import nn\n\ndef double(x):\n    return 2 * x\n\n"
    "class Block(nn.Conv2d):\n    def __init__(self, width):\n        super().__init__(width, width, 1)\n",
    "net/late.py": "def half(x):\n    return x / 2\n",
    "calls.py": "def call(network, degraded, labels):\n    if network.trait == 'label':\n"
    "        return network(degraded, labels)\n    image, f = network(degraded)\n"
    "    return image, {'size': f.square().mean((1, 2, 3))}\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the sources to a folder that is imported from; another account trusts nothing yet."""
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "account"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for path, text in SOURCES.items():
        (tmp_path / "code" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / path).write_text(text)
    forget()
    yield tmp_path / "code"
    forget()
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path / "code")]


def forget() -> None:
    """Take the modules of an earlier folder out of this process."""
    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] in ("net", "calls", "ordered", "hidden", "looking", "odd", "latin")
    ]:
        del sys.modules[name]


def made(folder: Path, trait: str, **changes: object) -> UserModelAdapter:
    values = {"class": "net.model:Net", "path": str(folder), "arguments": {"trait": trait}, **changes}
    values |= {"adapter": "calls:call"} if trait in ("dict of terms", "label") else {}
    values |= {"stride": 64} if trait == "multiple of 64" else {}
    torch.manual_seed(0)
    found = network.make(Model.model_validate(values))
    assert isinstance(found, UserModelAdapter)
    return found.eval()


def test_every_trait_is_read_back_where_the_source_is_gone(folder: Path) -> None:
    degraded = torch.rand(2, 3, 21, 35)
    written = {trait: made(folder, trait) for trait in TRAITS}
    files = {trait: dumps(one, {"recipe": "own"}) for trait, one in written.items()}
    expected = {trait: one.restore(degraded) for trait, one in written.items()}
    in_tiles = {trait: one.restore(degraded, "tiles", tile=16, overlap=4) for trait, one in written.items()}
    for file in sorted(folder.rglob("*.py")):
        file.write_text("raise RuntimeError('the source of the folder runs')")
    live = dict(sys.modules)
    for trait, data in files.items():
        again = loads(data, trusted="all")
        assert torch.equal(again.restore(degraded), expected[trait]), trait
        assert torch.equal(again.restore(degraded, "tiles", tile=16, overlap=4), in_tiles[trait]), trait
        assert read_metadata(data)["recipe"] == "own"
        assert dumps(again, {"recipe": "own"}) == data
    assert {name: m for name, m in sys.modules.items() if name.partition(".")[0] == "net"} == {
        name: m for name, m in live.items() if name.partition(".")[0] == "net"
    }


def test_two_versions_of_one_module_live_in_one_process(folder: Path) -> None:
    first = dumps(made(folder, "lazy import"))
    forget()
    (folder / "net" / "late.py").write_text("def half(x):\n    return x * 0\n")
    second = dumps(made(folder, "lazy import"))
    degraded = torch.rand(3, 16, 16)
    one, other = loads(first, trusted="all"), loads(second, trusted="all")
    different = other.restore(degraded)
    assert not torch.equal(one.restore(degraded), different)
    assert torch.equal(other.restore(degraded), different)


def test_code_runs_only_with_consent_to_its_digest(folder: Path, tmp_path: Path) -> None:
    model = made(folder, "tuple")
    data, code = dumps(model), model.code
    assert code is not None
    file = tmp_path / "weights.safetensors"
    file.write_bytes(data)
    for digests in ((), ("0" * 64,), (code.digest[:16],)):
        asks = rf"mirage network-code {re.escape(str(file))} -o FOLDER.*--trust {code.digest}"
        with pytest.raises(UntrustedCodeError, match=asks):
            find_model(str(file), trust_code=digests).load(torch.device("cpu"))
    find_model(str(file), trust_code=(code.digest,)).load(torch.device("cpu"))
    brought = tmp_path / "home" / "trusted-code" / code.digest  # may come with the weights
    brought.parent.mkdir(parents=True)
    brought.touch()
    with pytest.raises(UntrustedCodeError):
        find_model(str(file)).load(torch.device("cpu"))
    trust.remember(code)  # what publishing a run does
    find_model(str(file)).load(torch.device("cpu"))


def test_code_that_replaces_the_file_after_consent_does_not_run(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    asked, other = (dumps(made(folder, trait)) for trait in ("tuple", "never used"))
    code = code_of(asked)
    assert code is not None
    uses = {
        "load": lambda model: model.load(torch.device("cpu")),
        "weights": lambda model: model.weights(),
        "evaluate": lambda model: model.data(),
        "consent": lambda model: model.require_consent(),
        "promote": lambda model: measure_inference_cost(replace(model, trusted=frozenset()), 16),
    }
    for use in uses.values():
        file.write_bytes(asked)
        model = find_model(str(file), trust_code=(code.digest,))
        model.require_consent()
        file.write_bytes(other)
        with pytest.raises(RegistryError, match="was replaced while it was used"):
            use(model)


def test_the_order_of_layers_in_arguments_is_kept_and_part_of_the_digest(folder: Path) -> None:
    (folder / "ordered.py").write_text(
        "from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, layers):\n        super().__init__()\n"
        "        self.layers = nn.ModuleDict({k: nn.Conv2d(3, 3, 1) for k in layers})\n"
        "        self.relu = dict(layers)\n\n    def forward(self, x):\n        for k, layer in self.layers.items():\n"
        "            x = layer(x).relu() if self.relu[k] else layer(x)\n        return x\n"
    )
    digests = set()
    for layers in ({"z": True, "a": False}, {"a": False, "z": True}):
        model = made(folder, "", **{"class": "ordered:Net", "arguments": {"layers": layers}})
        degraded = torch.rand(3, 8, 8)
        assert torch.equal(loads(dumps(model), trusted="all").restore(degraded), model.restore(degraded))
        digests.add(model.code.digest)
    assert len(digests) == 2


def test_a_network_that_its_carried_source_cannot_build_is_refused_before_it_trains(folder: Path) -> None:
    (folder / "hidden.py").write_text("from torch import nn\nLayer = nn.Conv2d\n")
    (folder / "looking.py").write_text(
        "import importlib\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = importlib.import_module('hid' + 'den').Layer(3, 3, 1)\n"
    )
    model = Model.model_validate({"class": "looking:Net", "path": str(folder)})
    network.make(model)  # it trains
    with pytest.raises(ModelError, match=r"track\.register_as: .*hidden"):
        network.require_registrable(model)


def test_sources_that_python_could_not_import_do_not_stop_a_network(folder: Path) -> None:
    (folder / "latin.py").write_bytes(b"# \xe9\nx = 1\n")
    (folder / "odd.py").write_text(
        "from torch import nn\ntry:\n    from ..above import x\nexcept ImportError:\n    x = 1\n\n"
        "class Net(nn.Conv2d):\n    def __init__(self):\n        super().__init__(3, 3, 1)\n\n"
        "    def never(self):\n        import latin\n"
    )
    model = made(folder, "", **{"class": "odd:Net", "arguments": {}})
    assert set(model.code.files) == {"odd.py"}


@pytest.mark.parametrize(
    "change",
    [
        {"class_": "net.parts:Block"},
        {"adapter": "calls:call"},
        {"arguments": {"trait": "tuple", "width": 7}},
        {"files": {**SOURCES, "net/late.py": "import os\n"}},
    ],
)
def test_the_digest_is_of_all_that_decides_what_runs(folder: Path, change: dict[str, object]) -> None:
    code = made(folder, "tuple").code
    assert code is not None
    changed = NetworkCode.loads(json.dumps({**json.loads(code.dumps()), **change}))
    assert changed.digest != code.digest


@pytest.mark.parametrize(
    "change",
    [
        {"files": {**SOURCES, "../outside.py": "x = 1"}},
        {"files": {**SOURCES, "/tmp/outside.py": "x = 1"}},
        {"files": {**SOURCES, "net/more.py": 1}},
        {"files": {**SOURCES, "net/more.py": "\ud800"}},
        {"class_": "net.model:Net\x1b[2J"},
        {"class_": "os:system"},
        {"requires": ["--index-url=http://host"]},
        {"requires": ["--pre==1"]},
        {"arguments": {"trait": [[]]}},
        {"arguments": [1]},
        {"class_": None},
        {"more": 1},
        {"files": [[]]},
    ],
)
def test_a_malformed_description_is_one_error_and_runs_nothing(
    folder: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    data = dumps(made(folder, "tuple"))
    header, tensors = read_metadata(data), safetensors.torch.load(data)
    text = json.dumps({**json.loads(header[CODE_KEY]), **change})
    header[CODE_KEY] = text.replace("[[]]", "[" * 900 + "]" * 900)
    what = "malformed|cannot be read|no source of os" if "class_" in change else "malformed|cannot be read"
    with pytest.raises(ModelError, match=what):
        loads(to_bytes(tensors, header), trusted="all")
    assert not (tmp_path.parent / "outside.py").exists()


def test_tensors_that_do_not_fit_and_missing_packages_are_clear(folder: Path) -> None:
    model = made(folder, "tuple")
    header = read_metadata(dumps(model))
    with pytest.raises(WeightsError, match=r"the tensors do not fit net\.model:Net"):
        loads(to_bytes({"x": torch.zeros(1)}, header), trusted="all")
    code = {**json.loads(header[CODE_KEY]), "requires": ["einops==0.8.1"]}
    code["files"] = {**code["files"], "net/model.py": "import not_installed"}
    with pytest.raises(ModelError, match=r"needs not_installed: pip install einops==0\.8\.1"):
        loads(to_bytes({"x": torch.zeros(1)}, {**header, CODE_KEY: json.dumps(code)}), trusted="all")


def test_arguments_that_no_file_can_hold_are_refused_when_they_are_registered(folder: Path) -> None:
    model = Model.model_validate(
        {"class": "net.model:Net", "path": str(folder), "arguments": {"trait": "tuple", "width": {1: 2}}}
    )
    with pytest.raises(ModelError, match="text as keys"):
        network.code(model)


def test_large_images_are_restored_in_tiles_and_strips_are_refused(folder: Path) -> None:
    model = made(folder, "lazy import", tile=64, stride=16)
    degraded = torch.rand(3, 70, 150)
    tiled = model.restore(degraded)
    assert torch.equal(tiled, model.restore(degraded, "tiles", tile=64, overlap=32))
    torch.testing.assert_close(tiled[:, :4, :20], model.restore(degraded, "whole")[:, :4, :20])
    with pytest.raises(ModelError, match="Use tiles"):
        Restorer(model, RestoreSettings(mode="strips"))


_NOT_TRACED = {
    "used by input": "cannot choose layers by the content",
    "draws in evaluation": "draws random numbers when it restores",
}
"""Trait of a network whose trace computes something else on other images -> what the error says of it."""


def test_networks_are_exported_with_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    for form in ("safetensors", "torchscript", "onnx"):
        for trait in TRAITS:
            out = tmp_path / f"{trait.replace(' ', '-')}{FORMATS[form].suffix}"
            if form != "safetensors" and trait in _NOT_TRACED:
                with pytest.raises(ExportError, match=f"not written: .*{_NOT_TRACED[trait]}.*-f safetensors"):
                    export(made(folder, trait), out, form)
                assert not out.exists()
                continue
            parity = export(made(folder, trait), out, form)
            assert parity.holds, (trait, form)
            assert form != "safetensors" or parity.worst == 0, trait
    with pytest.raises(ExportError, match="authors' layout of a MIRAGE"):
        export(made(folder, "tuple"), tmp_path / "model.ckpt", "release")


@pytest.mark.parametrize(
    ("layers", "forward"),
    [
        ("nn.Conv2d(3, 3, 1)", "torch.special.i0e(self.layer(x))"),
        ("nn.Conv2d(3, 3, 1).double()", "self.layer(x.double()).float()"),
    ],
    ids=["no such operator in the format", "no such type in its runtime"],
)
def test_what_onnx_cannot_express_is_one_error_that_says_what_works(
    folder: Path, tmp_path: Path, layers: str, forward: str
) -> None:
    (folder / "odd.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        self.layer = {layers}\n\n"
        f"    def forward(self, x):\n        return {forward}\n"
    )
    model = network.make(Model.model_validate({"class": "odd:Net", "path": str(folder)})).eval()
    with pytest.raises(ExportError, match=r"onnx: not written: .*-f safetensors"):
        export(model, tmp_path / "odd.onnx", "onnx")
    assert not (tmp_path / "odd.onnx").exists()


def test_a_network_that_draws_restores_an_image_in_the_same_way_each_time(folder: Path) -> None:
    model = made(folder, "draws in evaluation")
    degraded = torch.rand(3, 16, 16)
    torch.manual_seed(1)
    first, drawn = model.restore(degraded), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn), "restoring an image changes what others draw"
    assert torch.equal(model.restore(degraded), first)


def test_networks_of_every_trait_are_registered_promoted_and_loaded_for_a_service(
    folder: Path, store: str
) -> None:
    degraded = torch.rand(1, 3, 20, 33)
    for trait in TRAITS:
        model = made(folder, trait)
        assert model.code is not None
        trust.remember(model.code)
        name = trait.replace(" ", "-")
        registration.register(
            store,
            name,
            run_id=runs.start_run(store, "5deg", name, {}, {}),
            weights=dumps(model, {"degradations": "rain haze"}),
            card="# Card",
            metrics={},
            tags={},
            idempotency_key=trait,
            files={SCORES: scored(1.0), JOB: b"{}"},
        )
        assert promote(name, store, {"parity": ["safetensors"]}).moved, trait
        served = load_model(f"models:/{name}@champion", store)
        found = loads(served.weights, trusted=(served.code_digest,)).restore(degraded, "whole")
        assert torch.equal(found, model.restore(degraded, "whole")), trait


def test_a_registered_network_is_traced_promoted_served_and_loaded_by_mlflow(
    folder: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    model = made(folder, "dict of terms")
    assert model.code is not None
    trust.remember(model.code)
    name, scores = "own-network", scored(1.0)
    version = registration.register(
        store,
        name,
        run_id=runs.start_run(store, "5deg", "run", {}, {}),
        weights=dumps(model, {"degradations": "rain haze"}),
        card="# Card",
        metrics={},
        tags={},
        idempotency_key="a",
        files={SCORES: scores, JOB: b"{}"},
    )
    link = next(link for link in trace(version.uri, store).below if link.what == "network's code")
    assert (link.state, link.digest) == ("verified", model.code.digest)
    stored = versions.weights_file(version.uri, store).parents[1] / "code" / "network_source"
    assert {p.relative_to(stored).as_posix() for p in stored.rglob("*.py")} == set(SOURCES)
    gates = {"parity": ["safetensors", "torchscript"], "latency_seconds": 1000.0, "side_pixels": 16}
    assert promote(name, store, gates).moved

    forget()  # as on a machine without the folder
    for file in folder.rglob("*.py"):
        file.unlink()
    degraded = np.random.default_rng(0).random((3, 9, 20), np.float32)
    expected = model.restore(torch.from_numpy(degraded)).numpy()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(version.uri).predict(degraded), expected)

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another account"))
    with pytest.raises(UntrustedCodeError):
        load_model(f"models:/{name}@champion", store)
    served = load_model(f"models:/{name}@champion", store, (model.code.digest,))
    with running(served) as service:
        facts = service.get("/model").json()
        assert (facts["network"], facts["code_sha256"]) == ("net.model:Net", model.code.digest)
        assert service.restore(image_bytes()).status == 200


def test_the_code_of_a_model_is_shown_without_running_it(folder: Path, tmp_path: Path) -> None:
    model = made(folder, "tuple")
    file = tmp_path / "weights.safetensors"
    file.write_bytes(dumps(model))
    shown = CliRunner().invoke(app, ["network-code", str(file), "-o", str(tmp_path / "out")])
    assert shown.exit_code == 0, shown.output
    code = code_of(file.read_bytes())
    assert code is not None
    assert code.digest in shown.output
    for path, text in code.files.items():
        assert (tmp_path / "out" / path).read_text() == text
