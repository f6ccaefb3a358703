"""Promotion: an alias moves to a registered version that passes every gate.

    evaluate the gates (minutes, no lease) ─► store the gate table ─► lease ─► is the champion still the same?
            ▲                                                                    │ no: compare with the new one
            └────────────────────────────────────────────────────────────────────┘
                                                                                 │ yes: previous ← champion,
                                                                                 │      champion ← version

Of two promotions at the same time, the second is compared with the version that the first one promoted. `lease` says
what the lease guarantees. A person who moves aliases on MLflow's page holds no lease: a move between the last check and
the write, which is one request, is overwritten.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from orchestrator.config.renamed import with_current_names
from orchestrator.config.schema import Promote
from orchestrator.config.yaml_text import read_yaml
from orchestrator.errors import EvaluationError, ExportError, RegistryError
from orchestrator.paper.tables import published_averages
from orchestrator.promotion import gates
from orchestrator.promotion.gates import GateVerdict, VersionScores
from orchestrator.promotion.inference_cost import measure_inference_cost
from orchestrator.promotion.scores import version_scores
from orchestrator.registry import versions
from orchestrator.registry.lease import lease
from orchestrator.registry.resolve import ModelFile, find_model
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB
from orchestrator.tracking import runs
from shards.progress import ProgressCallback, ignore

CHAMPION = "champion"
ATTEMPTS = 5
"""How often the gates are evaluated if other promotions move the alias meanwhile."""


@dataclass(frozen=True)
class Promotion:
    """Result of a request to move an alias."""

    name: str
    version: int
    alias: str
    before: int | None
    """Version that the alias pointed to, if any."""
    moved: bool
    verdicts: tuple[GateVerdict, ...]
    refusal: str | None = None
    """Why the models could not be compared, if they could not."""

    @property
    def passed(self) -> bool:
        """Whether every gate passed."""
        return self.refusal is None and all(verdict.passed for verdict in self.verdicts)

    def render(self) -> str:
        """Return the gate table and the decision as text."""
        against = f"against version {self.before}" if self.before else "which no version has yet"
        lines = [f"{self.name} version {self.version} to {self.alias}, {against}", ""]
        if self.refusal:
            lines += [f"not compared: {self.refusal}", ""]
        if self.verdicts:
            lines += [gates.gate_table(self.verdicts), ""]
        if not self.passed:
            return "\n".join([*lines, f"refused: {self.alias} does not move"])
        previous = f", version {self.before} is {previous_alias(self.alias)}" if self.before else ""
        return "\n".join([*lines, f"passed: {self.alias} is version {self.version}{previous}"])


def promote(
    model: str,
    tracking_uri: str,
    given: Mapping[str, object] | None = None,
    alias: str = CHAMPION,
    results: Sequence[Path] = (),
    trust_code: Collection[str] = (),
    on_progress: ProgressCallback = ignore,
) -> Promotion:
    """Move `alias` to the version that `model` names if it passes every gate; store the gate table with its run.

    model: models:/NAME/VERSION, NAME@ALIAS, or NAME, which means NAME@candidate.
    given: limits that replace those of the job that trained the version (`orchestrator.config.schema.Promote`).
    results: folders of evaluations whose scores are compared; none: the scores that the versions carry.
    trust_code: digests of code that the version may bring; gates of parity, latency and memory run it.

    Raises RegistryError, EvaluationError, TrackingError, ModelError.
    """
    if alias.startswith("previous"):
        raise RegistryError(f"--alias {alias}: promotion itself sets the aliases that start with previous.")
    candidate = versions.find(_full_name(model), tracking_uri)
    limits = gate_limits(candidate, tracking_uri, given or {})
    for _ in range(ATTEMPTS):
        holder = versions.alias_holder(tracking_uri, candidate.name, alias)
        if holder == candidate.version:
            raise RegistryError(f"{candidate.uri} is {alias} already.")
        outcome = _evaluate_gates(
            candidate, holder, alias, tracking_uri, limits, results, trust_code, on_progress
        )
        _store(outcome, candidate, tracking_uri)
        if not outcome.passed:
            return outcome
        if _move_alias(candidate, alias, holder, tracking_uri):
            return replace(outcome, moved=True)
    raise RegistryError(
        f"{candidate.name}: {alias} moved {ATTEMPTS} times while {candidate.uri} was evaluated. Try again."
    )


def gate_limits(version: ModelVersion, tracking_uri: str, given: Mapping[str, object]) -> Promote:
    """Return the limits of the job that trained a version, with those `given` in place. Raises RegistryError."""
    try:
        job, _ = with_current_names(read_yaml(versions.read_file(version, JOB, tracking_uri).decode()).value)
        limits = {**job.get("promote", {}), **given}
    except (ValueError, TypeError) as error:
        raise RegistryError(f"{version.uri}: its {JOB} is not the file of a job: {error}.") from error
    try:
        return Promote.model_validate(limits)
    except ValidationError as error:
        problems = "; ".join(f"promote.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RegistryError(f"{version.uri}: no such gates: {problems}") from error


def previous_alias(alias: str) -> str:
    """Return the alias of the version that `alias` pointed to before."""
    return "previous" if alias == CHAMPION else f"previous-{alias}"


def rollback(name: str, tracking_uri: str, alias: str = CHAMPION) -> tuple[int, int]:
    """Exchange `alias` and its previous one; return the version that `alias` pointed to and the one it points to now.

    A second call undoes the first one. Raises RegistryError.
    """
    name, previous = name.removeprefix("models:/"), previous_alias(alias)
    with lease(tracking_uri, name) as held:
        now = versions.aliases(tracking_uri, name)
        if alias not in now or previous not in now or now[alias] == now[previous]:
            listed = (
                ", ".join(f"{key} is version {value}" for key, value in sorted(now.items())) or "no alias"
            )
            raise RegistryError(f"{name}: nothing to roll back to ({listed}).")
        held.check()
        versions.set_aliases(tracking_uri, name, {previous: now[alias], alias: now[previous]})
    return now[alias], now[previous]


def _full_name(model: str) -> str:
    name = model.removeprefix("models:/")
    return f"models:/{name if '@' in name or '/' in name else name + '@candidate'}"


def _evaluate_gates(
    candidate: ModelVersion,
    holder: int | None,
    alias: str,
    tracking_uri: str,
    limits: Promote,
    results: Sequence[Path],
    trust_code: Collection[str],
    on_progress: ProgressCallback,
) -> Promotion:
    ours = version_scores(candidate, tracking_uri, results)
    outcome = Promotion(candidate.name, candidate.version, alias, holder, moved=False, verdicts=())
    if holder is None:
        theirs = gates.degraded_input(ours)
        verdicts = [gates.beats_input(ours)]
    else:
        champion = versions.find(f"models:/{candidate.name}/{holder}", tracking_uri)
        theirs = version_scores(champion, tracking_uri, results)
        reason = gates.incomparable_reason(ours, theirs)
        if reason:
            advice = "Evaluate both by one job of kind evaluate, and give the folders as --results."
            return replace(outcome, refusal=f"{reason} {advice}")
        verdicts = [gates.beats_champion(ours, theirs, limits.margin_db)]
    verdicts.append(gates.no_degradation_lost(ours, theirs, limits.max_drop_db))
    if limits.paper_row is not None:
        verdicts.append(_near_paper(ours, limits.paper_row, limits.max_below_reference_db))
    else:
        verdicts.append(gates.not_checked("near the paper", "paper_row"))
    if limits.reference_db is not None:
        verdicts.append(gates.near_reference(ours, limits.reference_db, limits.max_below_reference_db))
    else:
        verdicts.append(gates.not_checked("near the paper", "reference_db"))
    model = find_model(candidate.uri, tracking_uri, trust_code)
    measured = limits.latency_seconds is not None or limits.memory_gib is not None
    last = len(limits.parity) + measured
    for number, format_name in enumerate(limits.parity):
        on_progress(number, last, f"comparing with {format_name}")
        verdicts.append(_parity(model, format_name))
    if not limits.parity:
        verdicts.append(gates.not_checked("the same when exported", "parity"))
    if measured:
        on_progress(last - 1, last, "measuring time and memory")
        cost = measure_inference_cost(model, limits.side_pixels)
        verdicts += gates.within_limits(cost, limits.latency_seconds, limits.memory_gib)
    for gate, key in (("latency", "latency_seconds"), ("memory", "memory_gib")):
        if getattr(limits, key) is None:
            verdicts.append(gates.not_checked(gate, key))
    on_progress(last, last, "")
    return replace(outcome, verdicts=tuple(verdicts))


def _near_paper(ours: VersionScores, row: str, max_below_db: float) -> GateVerdict:
    """Compare with the average of a published row over the same degradations under the same protocol."""
    found = published_averages(row)
    for published in found:
        if published.degradations == tuple(sorted(ours.psnr)) and published.protocol == ours.protocol:
            return gates.near_reference(ours, published.psnr, max_below_db, published.label)
    listed = "; ".join(f"{one.label} is of {', '.join(one.degradations)} by {one.protocol}" for one in found)
    raise EvaluationError(
        f"paper row {row!r}: {listed}. {ours.name} was measured on {', '.join(sorted(ours.psnr))} by {ours.protocol}."
    )


def _parity(model: ModelFile, format_name: str) -> GateVerdict:
    """Require that the exported model computes the same as the original."""
    import torch

    from orchestrator.models.export import FORMATS, export

    if format_name not in FORMATS:
        raise ExportError(f"parity: no format {format_name!r}; use some of {', '.join(FORMATS)}.")
    gate = f"the same as {format_name}"
    with tempfile.TemporaryDirectory(prefix="mirage-parity-") as folder:
        file = Path(folder, "model").with_suffix(FORMATS[format_name].suffix)
        try:
            parity = export(model.load(torch.device("cpu")), file, format_name)
        except ExportError as error:
            return GateVerdict(gate, False, str(error), "the same numbers")
    return GateVerdict(gate, True, f"{parity.worst:.1e} apart", f"at most {parity.tolerance:.0e} apart")


def _store(outcome: Promotion, candidate: ModelVersion, tracking_uri: str) -> None:
    """Store the gate table with the candidate's run, before an alias moves."""
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = f"promotions/{when}-version-{candidate.version}-to-{outcome.alias}"
    record = {**asdict(outcome), "passed": outcome.passed, "time": when}
    del record["moved"]  # not known yet
    files: dict[str, bytes | Path] = {
        f"{path}.json": json.dumps(record, indent=1).encode(),
        f"{path}.txt": (outcome.render() + "\n").encode(),
    }
    runs.log_artifacts(tracking_uri, candidate.run_id, files)


def _move_alias(candidate: ModelVersion, alias: str, compared_with: int | None, tracking_uri: str) -> bool:
    """Move the alias unless it moved since the candidate was compared; return whether it did."""
    with lease(tracking_uri, candidate.name) as held:
        if versions.alias_holder(tracking_uri, candidate.name, alias) != compared_with:
            return False
        held.check()
        previous = {} if compared_with is None else {previous_alias(alias): compared_with}
        versions.set_aliases(tracking_uri, candidate.name, {**previous, alias: candidate.version})
        if versions.alias_holder(tracking_uri, candidate.name, alias) != candidate.version:
            raise RegistryError(
                f"{candidate.name}: another process moved {alias} at the same time. Check its aliases."
            )
    return True
