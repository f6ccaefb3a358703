"""`scripts/check-imports`, which `make check` runs, finds what it says that it finds."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "check-imports"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    loader = SourceFileLoader("check_imports", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_a_cycle_is_shown_as_a_path(check: ModuleType) -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}
    path = check.cycle(graph)
    assert path[0] == path[-1]
    assert set(path) == {"a", "b", "c"}
    assert check.cycle({"a": {"b"}, "b": set()}) == []


def test_ray_belongs_in_the_cluster_package_and_in_modules_named_ray(check: ModuleType) -> None:
    names = ("cluster.capacity", "sweeps.ray_trials", "sweeps.job")
    graph = {f"orchestrator.{name}": {"ray"} for name in names}
    assert check.misplaced_ray(graph) == ["orchestrator.sweeps.job"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import ray._private.state", "ray._private.state"),
        ("from ray import _raylet", "ray._raylet"),
        ("from ray.train.torch.config import _TorchBackend", "ray.train.torch.config._TorchBackend"),
        ("def f():\n    import torch as t\n    t._C.f()", "torch._C"),
        ("import ray.experimental.internal_kv as kv", "ray.experimental.internal_kv"),
        ("import deepspeed.ops\ndeepspeed.ops.__compatible_ops__", "deepspeed.ops.__compatible_ops__"),
    ],
)
def test_a_private_name_of_another_package_is_found(check: ModuleType, source: str, name: str) -> None:
    assert name in check.private_names(source)
    (message,) = [m for m in check.undeclared_private({"orchestrator.x": {name}}) if "orchestrator.x" in m]
    assert f"uses {name}, which is private" in message


@pytest.mark.parametrize(
    "source",
    [
        "import os\nos._exit(1)",
        "from orchestrator.cluster.local import _own",
        "import torch\ntorch.__version__",
        "class A:\n    def f(self):\n        return self._x",
    ],
)
def test_our_own_and_the_standard_librarys_names_are_free(check: ModuleType, source: str) -> None:
    assert check.private_names(source) == set()


def test_a_listed_use_that_is_gone_must_leave_the_list(check: ModuleType) -> None:
    uses = {module: check.private_names(source) for module, source in check.sources().items()}
    assert list(check.undeclared_private(uses)) == []
    module = "orchestrator.cluster.ray_internals_nodes"
    (message,) = check.undeclared_private({**uses, module: set()})
    assert message.startswith(f"{module} no longer uses ray._private")


def test_a_class_name_belongs_to_one_module(check: ModuleType) -> None:
    modules = {"a": "class One: ...\nclass _Private: ...", "b": "class One: ...\nclass _Private: ..."}
    assert list(check.repeated_classes(modules)) == [
        "a and b both define a class One: rename one, or share it"
    ]
