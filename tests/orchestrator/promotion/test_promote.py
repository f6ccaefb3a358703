"""An alias moves only to a version that passed every gate, one promotion at a time, and back."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import uuid
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from mirage import MIRAGE, ModelConfig
from mirage.weights import dumps
from orchestrator.errors import EvaluationError, RegistryError
from orchestrator.evaluation.image_results import ImageResult, to_parquet
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.evaluation.summary import EvaluationSummary, summary_bytes
from orchestrator.promotion.promote import promote, rollback
from orchestrator.promotion.scores import version_scores
from orchestrator.registry import lease, versions
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB, SCORES
from orchestrator.tracking import runs
from orchestrator.tracking.client import connect
from tests.claims import assert_one_clear_error, mirage
from tests.processes import run_processes

if TYPE_CHECKING:
    from tests.orchestrator.mlflow_server import Server
from orchestrator.registry import registration

CONFIG = ModelConfig(dim=6, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), refinement_blocks=0)
QUICK = {"parity": ["safetensors"]}
PHOTOGRAPHS = "abcdef"


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return f"{request.node.name[5:40]}-{uuid.uuid4().hex[:8]}".replace("_", "-").replace("[", "-")


def scored(gain: float, *, haze: float = 0.0, protocol: str = "rgb-crop16", data: str = "d" * 64) -> bytes:
    """Scores `gain` dB above 25 dB, and as much above a degraded input of 20 dB in rain and haze."""
    scores = [
        {
            "photograph": photograph,
            "degradation": degradation,
            "psnr": 25 + gain + 0.1 * i + (haze if degradation == "haze" else 0),
            "input_psnr": 20.0,
        }
        for degradation in ("rain", "haze")
        for i, photograph in enumerate(PHOTOGRAPHS)
    ]
    return json.dumps({"protocol": protocol, "data": [data], "scores": scores}).encode()


def put(uri: str, name: str, scores: bytes, job: bytes = b"{}", seed: int = 0) -> ModelVersion:
    torch.manual_seed(seed)
    return registration.register(
        uri,
        name,
        run_id=runs.start_run(uri, "5deg", "run", {}, {}),
        weights=dumps(MIRAGE(CONFIG)),
        card="# Card",
        metrics={},
        tags={},
        idempotency_key=scores.hex()[-40:] + str(hash(scores)),
        files={SCORES: scores, JOB: job},
    )


def test_the_first_champion_needs_to_beat_the_degraded_input_alone(store: str, name: str) -> None:
    put(store, name, scored(-6.0))
    refused = promote(name, store, QUICK)
    assert not refused.moved
    assert "better than the degraded input" in refused.render()
    assert "champion" not in versions.aliases(store, name)
    put(store, name, scored(1.0))
    assert promote(name, store, QUICK).moved
    assert versions.aliases(store, name) == {"candidate": 2, "champion": 2}


def test_a_first_champion_that_is_worse_than_its_input_in_one_degradation_is_refused(
    store: str, name: str
) -> None:
    put(store, name, scored(2.0, haze=-8.0))  # rain +7 dB, haze -1 dB: better on average
    outcome = promote(name, store, QUICK)
    assert not outcome.moved
    failed = [verdict for verdict in outcome.verdicts if not verdict.passed]
    assert [verdict.gate for verdict in failed] == ["no degradation lost"]
    assert failed[0].measured.startswith("haze -")
    assert promote(name, store, QUICK | {"max_drop_db": 1.5}).moved


def test_every_gate_of_the_docs_has_a_row_for_a_first_champion_and_for_the_next(
    store: str, name: str
) -> None:
    rows = Path("docs/registry.md").read_text().partition("| gate |")[2].partition("\n\n")[0]
    put(store, name, scored(0.0))
    first = promote(name, store, QUICK)
    put(store, name, scored(0.5))
    gates: list[tuple[float, int, str]] = []
    cost = {"parity": [], "latency_seconds": 1000.0, "side_pixels": 16}
    second = promote(name, store, cost, on_progress=lambda *made: gates.append(made))
    assert gates == [(0, 1, "measuring time and memory"), (1, 1, "")]
    for outcome in (first, second):
        assert outcome.moved
        assert len(outcome.verdicts) == 7
        assert [verdict.checked for verdict in outcome.verdicts].count(False) == 4
    required = " ".join(verdict.required for verdict in (*first.verdicts, *second.verdicts))
    for key in ("paper_row", "reference_db", "parity", "latency_seconds", "memory_gib"):
        assert f"`{key}" in rows
        assert f"promote.{key} is not set" in required


def test_a_better_version_moves_the_alias_and_keeps_the_previous(store: str, name: str) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    put(store, name, scored(0.5))
    outcome = promote(f"models:/{name}/2", store, QUICK)
    assert outcome.moved
    assert versions.aliases(store, name) == {"candidate": 2, "champion": 2, "previous": 1}
    assert "passed: champion is version 2, version 1 is previous" in outcome.render()


@pytest.mark.parametrize(
    ("scores", "limits", "gate"),
    [
        (scored(-0.05), {}, "better than version 1"),
        (scored(0.2), {"margin_db": 0.3}, "better than version 1"),
        (scored(1.0, haze=-1.5), {}, "no degradation lost"),
        (scored(1.0), {"reference_db": 30.0}, "near the paper"),
        (scored(1.0), {"memory_gib": 0.001, "side_pixels": 16}, "memory"),
    ],
    ids=["worse", "within the margin", "haze lost", "far from the paper", "too much memory"],
)
def test_one_failed_gate_leaves_every_alias(
    store: str, name: str, scores: bytes, limits: dict[str, object], gate: str
) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    put(store, name, scores)
    outcome = promote(name, store, {**QUICK, **limits})
    assert not outcome.moved
    assert [verdict.gate for verdict in outcome.verdicts if not verdict.passed] == [gate]
    assert versions.aliases(store, name) == {"candidate": 2, "champion": 1}


@pytest.mark.parametrize("other", [{"data": "e" * 64}, {"protocol": "y8"}])
def test_other_data_or_another_protocol_is_refused_in_a_sentence(
    store: str, name: str, other: dict[str, str]
) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    put(store, name, scored(2.0, **other))  # type: ignore[arg-type]
    outcome = promote(name, store, QUICK)
    assert not outcome.passed
    assert "not compared: version 2 was measured" in outcome.render()
    assert versions.aliases(store, name)["champion"] == 1


FIVE = ("haze", "rain", "noise25", "blur", "lowlight")


def scores_on(degradations: tuple[str, ...], psnr: float) -> bytes:
    scores = [
        {"photograph": p, "degradation": d, "psnr": psnr, "input_psnr": 20.0}
        for d in degradations
        for p in PHOTOGRAPHS
    ]
    return json.dumps({"protocol": "rgb-crop16", "data": ["d" * 64], "scores": scores}).encode()


def test_the_papers_row_is_looked_up_and_compared_over_its_own_degradations_alone(
    store: str, name: str
) -> None:
    put(store, name, scores_on(FIVE, 30.2))  # Table 2 prints 30.41 for MIRAGE-T
    near = {**QUICK, "paper_row": "T2:MIRAGE-T"}
    refused = promote(name, store, {**near, "max_below_reference_db": 0.1})
    assert [verdict.gate for verdict in refused.verdicts if not verdict.passed] == ["near the paper"]
    assert "at least 30.41 - 0.10 dB (MIRAGE-T (Ours), Table 2)" in refused.render()
    with pytest.raises(
        EvaluationError, match=r"is of haze, noise15, noise25, noise50, rain by rgb-crop16. version 1"
    ):
        promote(name, store, {**near, "paper_row": "T1:MIRAGE-T"})
    assert promote(name, store, near).moved


def evaluation_folder(folder: Path, version: ModelVersion, uri: str, psnr: float) -> Path:
    """What an evaluation of a version leaves: two datasets hold an image of the same name."""
    digest = hashlib.sha256(versions.weights_file(version.uri, uri).read_bytes()).hexdigest()
    rows = [
        ImageResult(
            *(dataset, digest_of_data, "", "rain", image, protocol, 32, 32),
            *(psnr + i * 0.1, 0.9, None, 20.0, 0.5, 0.1),
        )
        for dataset, digest_of_data in (("one", "a" * 64), ("two", "b" * 64))
        for i, image in enumerate(PHOTOGRAPHS)
        for protocol in ("rgb8", "y8")
    ]
    model = ModelIdentity(version.uri, "release", "raw", digest)
    folder.mkdir()
    (folder / "images.parquet").write_bytes(to_parquet(rows))
    (folder / "summary.json").write_bytes(
        summary_bytes(EvaluationSummary(folder.name, "evaluate", model, 1, None, "0", ()))
    )
    return folder


def test_scores_of_evaluations_decide_where_they_are_given(store: str, name: str, tmp_path: Path) -> None:
    first, second = (put(store, name, scored(0.0, data=d * 64), seed=i) for i, d in enumerate("de"))
    promote(first.uri, store, QUICK)
    assert "give the folders as --results" in promote(second.uri, store, QUICK).render()
    results = [
        evaluation_folder(tmp_path / f"{v.version}", v, store, 25.0 + v.version) for v in (first, second)
    ]
    with pytest.raises(EvaluationError, match=rf"none of these evaluations measured models:/{name}/1"):
        promote(second.uri, store, QUICK, results=results[1:])
    outcome = promote(second.uri, store, QUICK, results=results)
    assert outcome.moved
    assert "+1.000 dB" in outcome.render()
    ours = version_scores(versions.find(second.uri, store), store, results)
    assert (ours.protocol, ours.data, len(ours.psnr["rain"])) == ("rgb8", ("a" * 64, "b" * 64), 12)


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_versions_on_a_server_are_promoted_refused_and_rolled_back(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / "home"))
    for gain in (0.0, 0.5, 0.2):
        put(server.uri, name, scored(gain))
    assert promote(f"{name}/1", server.uri, QUICK).moved
    assert promote(f"{name}/2", server.uri, QUICK).moved
    assert not promote(f"{name}/3", server.uri, QUICK).moved
    assert versions.aliases(server.uri, name) == {"candidate": 3, "champion": 2, "previous": 1}
    assert rollback(name, server.uri) == (2, 1)
    client = connect(server.uri)
    assert client.get_prompt(f"{name}.lease") is None  # the lease is gone
    run_id = client.get_model_version(name, "3").run_id
    assert len(client.list_artifacts(run_id, "promotions")) == 2
    version = versions.find(f"{name}/2", server.uri)
    assert versions.packaged_code_digest(version, server.uri) == version.tags[versions.CODE_TAG]


def assert_versions_are_deleted(uri: str, name: str) -> None:
    """Check `mirage rm` on a model of three versions, of which the second is champion."""
    rm = "rm", "--tracking", uri, "--yes"
    refused = mirage(*rm, f"models:/{name}/2")
    assert_one_clear_error(refused, "the alias champion points to it", "mirage promote")
    assert_one_clear_error(mirage(*rm, f"models:/{name}/7"), "has no version '7'", "1, 2, 3")
    asked = mirage("rm", "--tracking", uri, f"models:/{name}/1")
    assert asked.status == 2
    assert "Nothing was deleted. To delete it: --yes" in asked.text
    assert versions.aliases(uri, name) == {"candidate": 3, "champion": 2}
    for number, aliases in ((1, {"candidate": 3, "champion": 2}), (3, {"candidate": 2, "champion": 2})):
        run = versions.describe(f"models:/{name}/{number}", uri).run_id
        done = mirage(*rm, f"models:/{name}/{number}")
        assert (done.status, done.text) == (0, f"deleted models:/{name}/{number}\n")
        assert versions.aliases(uri, name) == aliases
        assert connect(uri).get_run(run).info.lifecycle_stage == "active"
    assert_one_clear_error(mirage(*rm, f"models:/{name}/3"), "has no version '3'. It has: 2.")
    assert versions.newest(uri, name) == 2
    connect(uri).delete_registered_model_alias(name, "champion")
    assert mirage(*rm, f"models:/{name}/2").status == 0
    assert versions.newest(uri, name) is None


def test_a_version_is_deleted_unless_a_chosen_alias_points_to_it(store: str, name: str) -> None:
    for gain in (0.0, 0.5, 0.7):
        put(store, name, scored(gain))
    versions.set_aliases(store, name, {"champion": 2})
    assert_versions_are_deleted(store, name)


@pytest.mark.slow
@pytest.mark.xdist_group("mlflow")
def test_a_version_on_a_server_is_deleted_as_one_in_a_file_is(server: Server, name: str) -> None:
    for gain in (0.0, 0.5, 0.7):
        put(server.uri, name, scored(gain))
    versions.set_aliases(server.uri, name, {"champion": 2})
    assert_versions_are_deleted(server.uri, name)


def test_the_gate_table_stays_with_the_run_of_the_candidate(store: str, name: str, tmp_path: Path) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    put(store, name, scored(-1.0))
    promote(name, store, QUICK)
    client = connect(store)
    run_id = client.get_model_version(name, "2").run_id
    kept = sorted(Path(file.path).name for file in client.list_artifacts(run_id, "promotions"))
    assert [Path(file).suffix for file in kept] == [".json", ".txt"]
    record = json.loads(
        Path(client.download_artifacts(run_id, f"promotions/{kept[0]}", str(tmp_path))).read_bytes()
    )
    assert record["before"] == 1
    assert not record["passed"]
    assert {verdict["gate"]: verdict["passed"] for verdict in record["verdicts"]}[
        "better than version 1"
    ] is False


def test_the_gates_are_those_of_the_job_unless_others_are_given(store: str, name: str) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    put(store, name, scored(0.5), job=b"promote: {margin_db: 1.0, parity: [safetensors]}")
    assert not promote(name, store).passed
    assert promote(name, store, {"margin_db": 0.25}).passed


def test_rolling_back_twice_is_where_one_was(store: str, name: str) -> None:
    for gain in (0.0, 1.0):
        put(store, name, scored(gain))
        promote(name, store, QUICK)
    assert rollback(name, store) == (2, 1)
    assert versions.aliases(store, name) == {"candidate": 2, "champion": 1, "previous": 2}
    assert rollback(name, store) == (1, 2)
    assert versions.aliases(store, name) == {"candidate": 2, "champion": 2, "previous": 1}


def test_each_alias_has_a_previous_of_its_own(store: str, name: str) -> None:
    for gain in (0.0, 1.0):
        put(store, name, scored(gain))
        promote(name, store, QUICK)
        promote(name, store, QUICK, alias="staging")
    put(store, name, scored(2.0))
    promote(name, store, QUICK, alias="staging")
    assert versions.aliases(store, name) == {
        "candidate": 3,
        "champion": 2,
        "previous": 1,
        "staging": 3,
        "previous-staging": 2,
    }
    assert rollback(name, store) == (2, 1)
    with pytest.raises(RegistryError, match="promotion itself sets"):
        promote(name, store, QUICK, alias="previous")


def test_what_cannot_be_promoted_or_rolled_back_is_told(store: str, name: str) -> None:
    put(store, name, scored(0.0))
    promote(name, store, QUICK)
    with pytest.raises(RegistryError, match="is champion already"):
        promote(name, store, QUICK)
    with pytest.raises(
        RegistryError, match=r"nothing to roll back to .candidate is version 1, champion is version 1"
    ):
        rollback(name, store)
    with pytest.raises(RegistryError, match="has no version '9'"):
        promote(f"{name}/9", store, QUICK)


def in_two_processes(function: Callable[..., None], *arguments: object) -> None:
    """Call function(rank, barrier, *arguments) in two processes, which meet at the barrier."""
    barrier = multiprocessing.get_context("forkserver").Barrier(2)
    run_processes(function, 2, barrier, *arguments, also=["orchestrator.models.export", "mlflow.pyfunc"])


def promoting(rank: int, barrier: Barrier, name: str, store: str, folder: Path) -> None:
    barrier.wait(120)
    moved = promote(f"{name}/{rank + 2}", store, QUICK).moved
    (folder / str(rank + 2)).write_text(str(moved))


@pytest.mark.slow
def test_of_two_promotions_at_once_the_better_version_is_champion(
    store: str, name: str, tmp_path: Path
) -> None:
    for gain in (0.0, 0.5, 1.0):
        put(store, name, scored(gain))
    promote(f"{name}/1", store, QUICK)
    in_two_processes(promoting, name, store, tmp_path)
    moved = {number: (tmp_path / f"{number}").read_text() == "True" for number in (2, 3)}
    now = versions.aliases(store, name)
    assert moved[3]
    assert now["champion"] == 3
    assert now["previous"] == (2 if moved[2] else 1)  # the second was compared with the first


def counting(rank: int, barrier: Barrier, name: str, store: str) -> None:
    client = connect(store)
    barrier.wait(120)
    for _ in range(6):
        with lease.lease(store, name):
            count = int(client.get_registered_model(name).tags["count"])
            client.set_registered_model_tag(name, "count", str(count + 1))


@pytest.mark.slow
def test_two_processes_never_hold_the_lease_together(store: str, name: str) -> None:
    client = connect(store)
    client.create_registered_model(name, tags={"count": "0"})
    in_two_processes(counting, name, store)
    assert client.get_registered_model(name).tags["count"] == "12"
    assert client.get_prompt(f"{name}.lease") is None


def test_a_holder_that_died_is_passed_over_and_one_that_slept_finds_out(
    store: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    with lease.lease(store, name) as slept:
        slept.check()
        with lease.lease(store, name, wait_seconds=30) as second:
            second.check()
            with pytest.raises(RegistryError, match=r"another one took over. No alias was moved"):
                slept.check()
        assert connect(store).get_prompt(f"{name}.lease") is None


def test_a_lease_that_is_held_is_not_listed_among_the_models(store: str, name: str) -> None:
    client = connect(store)
    client.create_registered_model(name)
    with lease.lease(store, name):
        assert client.get_prompt(f"{name}.lease") is not None
        found = client.search_registered_models(f"name LIKE '{name}%'")
        assert [model.name for model in found] == [name]


def test_a_lease_that_is_in_use_is_waited_for_and_then_given_up(store: str, name: str) -> None:
    refusal = pytest.raises(RegistryError, match="has been moving aliases for 1 s")
    with lease.lease(store, name), refusal, lease.lease(store, name, wait_seconds=1):
        raise AssertionError("never held")


def test_a_server_that_is_away_is_one_line(closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{closed_port}"
    away = pytest.raises(RegistryError, match=f"^MLflow at {uri}: no answer\\. Start that server")
    with away, lease.lease(uri, "mine"):
        raise AssertionError("never held")


def registering(
    rank: int, barrier: Barrier, store: str, name: str, run_id: str, weights: bytes, folder: Path
) -> None:
    barrier.wait(120)
    version = registration.register(
        store, name, run_id=run_id, weights=weights, card="", metrics={}, tags={}, idempotency_key="same"
    )
    (folder / str(rank)).write_text(str(version.version))


@pytest.mark.slow
def test_a_registration_by_two_at_once_leaves_one_version(store: str, name: str, tmp_path: Path) -> None:
    run_id = runs.start_run(store, "5deg", "run", {}, {})
    in_two_processes(registering, store, name, run_id, dumps(MIRAGE(CONFIG)), tmp_path)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["1", "1"]
    left = connect(store).search_model_versions(f"name = '{name}'")
    assert [int(version.version) for version in left] == [1]
    assert versions.aliases(store, name) == {"candidate": 1}
