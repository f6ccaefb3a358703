from __future__ import annotations

import pytest

from orchestrator.errors import RegistryError
from orchestrator.serving import active_model
from orchestrator.serving.active_model import ActiveModel
from orchestrator.serving.alias_watcher import AliasWatcher
from orchestrator.serving.served_model import DegradationPsnr, ServedModel, psnr_scores


def model(version: str) -> ServedModel:
    return ServedModel("m", version, f"digest-{version}", b"", 1)


class Registry:
    """A registry with one alias, some bad versions, and a list of the versions that were loaded."""

    def __init__(self) -> None:
        self.version = "1"
        self.problems: dict[str, str] = {}
        self.unreachable = False
        self.corrupt: set[str] = set()
        self.loaded: list[str] = []

    def current_version(self) -> str:
        if self.unreachable:
            raise RegistryError("no answer")
        return self.version

    def load_model(self) -> ServedModel:
        self.loaded.append(self.version)
        if self.version in self.corrupt:
            raise RegistryError("not what was registered")
        return model(self.version)

    def smoke_test(self, candidate: ServedModel) -> str:
        return self.problems.get(candidate.version, "")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def active() -> ActiveModel:
    return ActiveModel(model("1"))


@pytest.fixture
def watcher(registry: Registry, active: ActiveModel) -> AliasWatcher:
    return AliasWatcher(active, registry.current_version, registry.load_model, registry.smoke_test)


def test_an_alias_that_does_not_move_loads_nothing(registry: Registry, watcher: AliasWatcher) -> None:
    watcher.poll()
    assert registry.loaded == []


def test_a_promotion_activates_the_new_version(
    registry: Registry, active: ActiveModel, watcher: AliasWatcher
) -> None:
    registry.version = "2"
    watcher.poll()
    assert active.current.version == "2"
    assert active.previous == model("1")


@pytest.mark.parametrize("how", ["corrupt", "problem"])
def test_a_bad_version_is_rejected_once_and_the_old_one_stays_active(
    registry: Registry, active: ActiveModel, watcher: AliasWatcher, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.version = "2"
    if how == "corrupt":
        registry.corrupt.add("2")
    else:
        registry.problems["2"] = "not finite"
    watcher.poll()
    watcher.poll()
    assert active.current.version == "1"
    assert active.rejected is not None
    assert active.rejected.version == "2"
    assert registry.loaded == ["2"]

    monkeypatch.setattr(active_model, "RETRY_AFTER_SECONDS", 0.0)
    watcher.poll()
    assert registry.loaded == ["2", "2"]

    registry.version = "1"
    watcher.poll()
    assert active.rejected is None
    registry.version = "3"
    watcher.poll()
    assert active.current.version == "3"


def test_a_registry_that_does_not_answer_changes_nothing(
    registry: Registry, active: ActiveModel, watcher: AliasWatcher
) -> None:
    registry.unreachable = True
    watcher.poll()
    assert active.current.version == "1"
    assert watcher.last_error == "no answer"
    registry.unreachable = False
    watcher.poll()
    assert watcher.last_error == ""


def test_a_model_that_fails_in_use_is_rolled_back(
    registry: Registry, active: ActiveModel, watcher: AliasWatcher
) -> None:
    first = active.current
    registry.version = "2"
    watcher.poll()
    second = active.current
    assert active.roll_back(second, "not finite")
    assert active.current is first
    assert active.roll_back(second, "not finite")  # a request that still used it finds another model
    watcher.poll()
    assert active.current is first
    assert not active.roll_back(first, "not finite")


def test_a_version_that_failed_in_use_is_not_tried_again(
    registry: Registry, active: ActiveModel, watcher: AliasWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(active_model, "RETRY_AFTER_SECONDS", 0.0)
    registry.version = "2"
    watcher.poll()
    active.roll_back(active.current, "not finite")
    watcher.poll()
    assert active.current.version == "1"
    assert registry.loaded == ["2"]
    registry.version = "3"
    watcher.poll()
    assert active.current.version == "3"


def test_scores_are_read_from_the_tags_of_a_version() -> None:
    tags = {
        "metric.test/average/input_psnr": "18",
        "metric.test/average/psnr": "22",
        "metric.test/blur/input_psnr": "25.5",
        "metric.test/blur/psnr": "24.5",
        "metric.test/rain/psnr": "24.5",
        "recipe": "fast",
    }
    found = psnr_scores(tags)
    assert found == (DegradationPsnr("blur", 25.5, 24.5), DegradationPsnr("average", 18.0, 22.0))
    assert [figure.gain for figure in found] == [-1.0, 4.0]
