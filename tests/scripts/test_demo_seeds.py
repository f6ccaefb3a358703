from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import pytest

from orchestrator.evaluation.scores import DegradationScore
from tests.claims import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("MIRAGE_HOME", "MLFLOW_TRACKING_URI"):  # which the script sets for its own process
        monkeypatch.setenv(name, "unused")
    loader = SourceFileLoader("demo_seeds", str(ROOT / "scripts" / "demo-seeds"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def scored(degradation: str, gain: float, over_fit: float = 2.0) -> DegradationScore:
    return DegradationScore(degradation, 4, 20.0, 0.5, 20 + gain, 0.6, gain, 0.0, 9.0, 20 + gain - over_fit)


def test_a_gain_below_its_minimum_is_named_with_its_seed(script: ModuleType) -> None:
    scores = {
        1: [scored("haze", 1.0), scored("average", 4.0, over_fit=1.0)],
        2: [scored("haze", 0.99), scored("average", 3.9, over_fit=0.9)],
        3: [scored("haze", float("nan")), scored("average", 4.5)],
    }
    assert script.below(scores, 1, 4, 1) == [
        "seed 2: haze gains +0.99 dB, less than +1.00",
        "seed 2: average gains +3.90 dB, less than +4.00",
        "seed 2: the average is +0.90 dB over the fit, less than +1.00",
        "seed 3: haze gains +nan dB, less than +1.00",
    ]
    lines = script.table(scores).splitlines()
    assert lines[0].split() == ["degradation", *(["seed", "1", "seed", "2", "seed", "3"]), "smallest"]
    assert lines[-1].split() == [
        "average",
        "+4.00",
        "(+1.00)",
        "+3.90",
        "(+0.90)",
        "+4.50",
        "(+2.00)",
        "+3.90",
    ]
