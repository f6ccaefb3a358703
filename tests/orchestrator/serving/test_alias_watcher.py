from __future__ import annotations

import pytest

from orchestrator.errors import RegistryError
from orchestrator.serving import active_model as shelf_module
from orchestrator.serving.active_model import Shelf
from orchestrator.serving.alias_watcher import Follower
from orchestrator.serving.served_model import Figure, Served, figures


def model(version: str) -> Served:
    return Served("m", version, f"digest-{version}", b"", 1)


class Registry:
    """Where the alias points, what is wrong with which version, and what was fetched."""

    def __init__(self) -> None:
        self.version = "1"
        self.problems: dict[str, str] = {}
        self.unreachable = False
        self.corrupt: set[str] = set()
        self.fetched: list[str] = []

    def now(self) -> str:
        if self.unreachable:
            raise RegistryError("away")
        return self.version

    def fetch(self) -> Served:
        self.fetched.append(self.version)
        if self.version in self.corrupt:
            raise RegistryError("not what was registered")
        return model(self.version)

    def try_out(self, candidate: Served) -> str:
        return self.problems.get(candidate.version, "")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def shelf() -> Shelf:
    return Shelf(model("1"))


@pytest.fixture
def follower(registry: Registry, shelf: Shelf) -> Follower:
    return Follower(shelf, registry.now, registry.fetch, registry.try_out)


def test_while_the_alias_stays_nothing_is_fetched(registry: Registry, follower: Follower) -> None:
    follower.step()
    assert registry.fetched == []


def test_a_promotion_moves_the_shelf(registry: Registry, shelf: Shelf, follower: Follower) -> None:
    registry.version = "2"
    follower.step()
    assert shelf.current.version == "2"
    assert shelf.previous == model("1")


@pytest.mark.parametrize("how", ["corrupt", "problem"])
def test_a_bad_version_is_refused_once_and_the_old_one_stays(
    registry: Registry, shelf: Shelf, follower: Follower, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.version = "2"
    if how == "corrupt":
        registry.corrupt.add("2")
    else:
        registry.problems["2"] = "not finite"
    follower.step()
    follower.step()
    assert shelf.current.version == "1"
    assert shelf.refused is not None
    assert shelf.refused.version == "2"
    assert registry.fetched == ["2"]

    monkeypatch.setattr(shelf_module, "SECOND_TRIAL_SECONDS", 0.0)
    follower.step()
    assert registry.fetched == ["2", "2"]

    registry.version = "1"
    follower.step()
    assert shelf.refused is None
    registry.version = "3"
    follower.step()
    assert shelf.current.version == "3"


def test_a_registry_that_is_away_changes_nothing(
    registry: Registry, shelf: Shelf, follower: Follower
) -> None:
    registry.unreachable = True
    follower.step()
    assert shelf.current.version == "1"
    assert follower.problem_now() == "away"
    registry.unreachable = False
    follower.step()
    assert follower.problem_now() == ""


def test_a_model_that_fails_at_work_gives_way_to_the_one_before(
    registry: Registry, shelf: Shelf, follower: Follower
) -> None:
    first = shelf.current
    registry.version = "2"
    follower.step()
    second = shelf.current
    assert shelf.distrust(second, "not finite")
    assert shelf.current is first
    assert shelf.distrust(second, "not finite")  # a request that was still with it finds another model
    follower.step()
    assert shelf.current is first
    assert not shelf.distrust(first, "not finite")


def test_a_version_that_failed_at_work_gets_no_second_trial(
    registry: Registry, shelf: Shelf, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "SECOND_TRIAL_SECONDS", 0.0)
    registry.version = "2"
    follower.step()
    shelf.distrust(shelf.current, "not finite")
    follower.step()
    assert shelf.current.version == "1"
    assert registry.fetched == ["2"]
    registry.version = "3"
    follower.step()
    assert shelf.current.version == "3"


def test_figures_are_read_from_the_tags_of_a_version() -> None:
    tags = {
        "metric.test/average/input_psnr": "18",
        "metric.test/average/psnr": "22",
        "metric.test/blur/input_psnr": "25.5",
        "metric.test/blur/psnr": "24.5",
        "metric.test/rain/psnr": "24.5",
        "recipe": "fast",
    }
    found = figures(tags)
    assert found == (Figure("blur", 25.5, 24.5), Figure("average", 18.0, 22.0))
    assert [figure.gain for figure in found] == [-1.0, 4.0]
