"""Many photographs are recorded by few objects, and a photograph costs the same among few or many."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from orchestrator.restoration import tasks
from orchestrator.restoration.result_index import FOLDER
from orchestrator.restoration.tasks import MAX_WAITING_RESULTS, RestoreWorker, plan
from shards.store import LocalStore
from tests.scale.growth import grows, stays_flat

PHOTOGRAPHS = [64, 192, 640]
METHODS = ("read", "write", "delete", "exists", "list", "create")


class Identity:
    """Stands for the network, whose cost is another matter."""

    def pixels_of_several(self, photos: list[Any], progress: object = None) -> list[Any]:
        return [photo.pixels for photo in photos]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count calls of stores, and let neither a slow disk nor a slow machine change them."""
    counted: Counter[str] = Counter()

    def count(name: str) -> None:
        method = getattr(LocalStore, name)

        def counting(self: LocalStore, *args: Any) -> Any:
            counted[name] += 1
            return method(self, *args)

        monkeypatch.setattr(LocalStore, name, counting)

    for name in METHODS:
        count(name)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(tasks, "MAX_WAITING_SECONDS", 1e9)
    return counted


def restored(folder: Path, number: int) -> Path:
    """Restore `number` photographs; return the folder of the results."""
    inputs, out = folder / f"in-{number}", folder / f"out-{number}"
    inputs.mkdir()
    Image.fromarray(np.full((8, 8, 3), 99, np.uint8)).save(inputs / "0.bmp")
    content = (inputs / "0.bmp").read_bytes()
    for index in range(1, number):
        (inputs / f"{index}.bmp").write_bytes(content[:-1] + bytes([index % 256]))
    worker = RestoreWorker(lambda: Identity(), "settings")  # type: ignore[arg-type,return-value]
    outcomes = []
    for task in plan([str(inputs)], f"{out}/").tasks:
        outcomes += worker.run([task])
    outcomes += worker.finish()
    assert Counter(outcome.status for outcome in outcomes) == {"restored": number}
    return out


def test_one_object_records_many_photographs(tmp_path: Path, requests: Counter[str]):
    def objects(number: int) -> int:
        return len(list((restored(tmp_path, number) / FOLDER).glob("*.jsonl")))

    assert [objects(number) for number in PHOTOGRAPHS] == [
        1 + -(-(number - 1) // MAX_WAITING_RESULTS) for number in PHOTOGRAPHS
    ]


def test_the_requests_of_a_photograph_do_not_grow_with_the_number_of_photographs(
    tmp_path: Path, requests: Counter[str]
):
    def each(number: int) -> float:
        requests.clear()
        restored(tmp_path, number)
        return requests.total() / number

    assert max(stays_flat(each, PHOTOGRAPHS)) < 6


def test_what_is_restored_already_costs_two_requests_a_photograph_and_no_object(
    tmp_path: Path, requests: Counter[str]
):
    def again(number: int) -> int:
        out = restored(tmp_path, number)
        before = sorted(out.rglob("*"))
        requests.clear()
        worker = RestoreWorker(lambda: pytest.fail("no model is needed"), "settings")
        work = plan([str(tmp_path / f"in-{number}")], f"{out}/")
        outcomes = [*worker.run(work.tasks), *worker.finish()]
        assert {outcome.status for outcome in outcomes} == {"skipped"}
        assert sorted(out.rglob("*")) == before
        return requests.total()

    costs = grows(again, PHOTOGRAPHS, at_most=1.02)
    assert costs[-1] <= 3 * PHOTOGRAPHS[-1] + 20
