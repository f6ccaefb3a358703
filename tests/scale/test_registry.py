"""A version of a model is found at the same cost among few or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from orchestrator.errors import RegistryError
from orchestrator.registry import versions
from orchestrator.serving.served_model import current_version
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from tests.scale.growth import stays_flat

VERSIONS = [3, 12, 48]


@pytest.fixture(scope="module")
def models(store: str) -> str:
    """A registry with a model of each number of versions; the newest one has the alias `candidate`."""
    client = connect(store)
    run_id = runs.start_run(store, "scale", "run", {}, {})
    for number in VERSIONS:
        client.create_registered_model(f"scale-{number}")
        for index in range(1, number + 1):
            client.create_model_version(
                f"scale-{number}", "file:///nowhere", run_id, tags={versions.KEY_TAG: f"k{index}"}
            )
        client.set_registered_model_alias(f"scale-{number}", "candidate", str(number))
    return store


@pytest.fixture
def rows(models: str) -> Iterator[list[object]]:
    """Hold an entry for each version that MLflow reads from its database."""
    from mlflow.store.model_registry.dbmodels.models import SqlModelVersion
    from sqlalchemy import event

    read: list[object] = []

    def note(target: object, context: object) -> None:
        read.append(target)

    event.listen(SqlModelVersion, "load", note)
    yield read
    event.remove(SqlModelVersion, "load", note)


LOOK_UPS: dict[str, Callable[[str, str, int], Any]] = {
    "by alias": lambda uri, name, number: versions.describe(f"models:/{name}@candidate", uri).version,
    "by number": lambda uri, name, number: versions.describe(f"models:/{name}/{number}", uri).version,
    "holder of an alias": lambda uri, name, number: versions.alias_holder(uri, name, "candidate"),
    "as a service polls": lambda uri, name, number: int(current_version(f"models:/{name}@candidate", uri)),
    "no holder": lambda uri, name, number: versions.alias_holder(uri, name, "champion") or number,
}


@pytest.mark.parametrize("look_up", LOOK_UPS.values(), ids=LOOK_UPS)
def test_a_look_up_reads_one_version_among_any_number(
    models: str, rows: list[object], look_up: Callable[[str, str, int], Any]
):
    def read(number: int) -> int:
        rows.clear()
        assert look_up(models, f"scale-{number}", number) == number
        return len(rows)

    assert max(stays_flat(read, VERSIONS)) <= 2


def test_the_newest_version_of_a_run_is_found_above_one_page(models: str, rows: list[object]):
    run_id = versions.describe(f"models:/scale-{VERSIONS[0]}/1", models).run_id
    rows.clear()
    assert versions.describe(f"runs:/{run_id}", models).version == max(VERSIONS)
    assert len(rows) <= 3


def test_an_error_names_the_newest_versions_only(models: str):
    with pytest.raises(RegistryError, match=r"has no version '99'. Its newest are: 29, 30, .*, 48\.$"):
        versions.describe("models:/scale-48/99", models)
    with pytest.raises(RegistryError, match=r"has no version '99'. It has: 1, 2, 3\.$"):
        versions.describe("models:/scale-3/99", models)


def test_a_model_is_known_however_many_others_there_are(models: str):
    client = connect(models)
    for index in range(101):  # one more than MLflow lists at once
        client.create_registered_model(f"another-{index:03d}")
    with pytest.raises(
        RegistryError, match=r"scale-3 has no alias 'none'. It has: candidate \(version 3\)\.$"
    ):
        versions.describe("models:/scale-3@none", models)
