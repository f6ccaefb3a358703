"""Promotion: a registered version passes every gate, then an alias moves to it.

    judge (no lease; minutes) ─► store the gate table ─► lease ─► is the champion still the same?
            ▲                                                       │ no: judged again against the new one
            └───────────────────────────────────────────────────────┘
                                                                    │ yes: previous ← champion, champion ← version

So two promotions at once do not lose one another: the second is judged against what the first has promoted. What the
lease guarantees is told in `lease`. Whoever moves the aliases by hand, on MLflow's page, takes no lease: a move between
the last look and the write, a request apart, would be overwritten.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pydantic import ValidationError

from orchestrator.config.renamed import with_current_names
from orchestrator.config.schema import Promote
from orchestrator.errors import EvaluationError, ExportError, RegistryError
from orchestrator.paper.tables import published_averages
from orchestrator.promotion import gates
from orchestrator.promotion.gates import GateVerdict, VersionScores
from orchestrator.promotion.inference_cost import measure_inference_cost
from orchestrator.promotion.scores import version_scores
from orchestrator.registry import versions
from orchestrator.registry.lease import lease
from orchestrator.registry.versions import ModelVersion
from orchestrator.run_files import JOB
from orchestrator.tracking import runs

CHAMPION = "champion"
ATTEMPTS = 5
"""How often a promotion is judged anew because another one came first."""


@dataclass(frozen=True)
class Promotion:
    """What became of a request to move an alias."""

    name: str
    version: int
    alias: str
    before: int | None
    """ModelVersion that held the alias."""
    moved: bool
    verdicts: tuple[GateVerdict, ...]
    refusal: str | None = None
    """Why the models were not compared at all."""

    @property
    def passed(self) -> bool:
        """Whether every gate was passed."""
        return self.refusal is None and all(verdict.passed for verdict in self.verdicts)

    def render(self) -> str:
        """Return the gate table and what follows from it."""
        against = f"against version {self.before}" if self.before else "the first to hold it"
        lines = [f"{self.name} version {self.version} to {self.alias}, {against}", ""]
        if self.refusal:
            lines += [f"not compared: {self.refusal}", ""]
        if self.verdicts:
            lines += [gates.gate_table(self.verdicts), ""]
        if not self.passed:
            return "\n".join([*lines, f"refused: {self.alias} stays where it is"])
        kept = f", version {self.before} is kept as {previous_of(self.alias)}" if self.before else ""
        return "\n".join([*lines, f"passed: {self.alias} is version {self.version}{kept}"])


def promote(
    model: str,
    tracking_uri: str,
    given: Mapping[str, object] | None = None,
    alias: str = CHAMPION,
    results: Sequence[Path] = (),
) -> Promotion:
    """Move `alias` to the version that `model` names if it passes every gate; store the gate table with its run.

    `model` is models:/NAME/VERSION, NAME@ALIAS, or NAME, which stands for NAME@candidate. The gates are those of
    the job that trained the version (`orchestrator.config.schema.Promote`), but for what is `given`. Scores are
    those that
    versions carry, or those in `results`, folders of evaluations. Raises RegistryError, EvaluationError, TrackingError.
    """
    if alias.startswith("previous"):
        raise RegistryError(f"--to {alias}: what an alias pointed to before is kept by promotion itself.")
    candidate = versions.find(_whole_name(model), tracking_uri)
    limits = limits_of(candidate, tracking_uri, given or {})
    for _ in range(ATTEMPTS):
        holder = versions.aliases(tracking_uri, candidate.name).get(alias)
        if holder == candidate.version:
            raise RegistryError(f"{candidate.uri} is {alias} already.")
        outcome = _judge(candidate, holder, alias, tracking_uri, limits, results)
        _store(outcome, candidate, tracking_uri)
        if not outcome.passed:
            return outcome
        if _move(candidate, alias, holder, tracking_uri):
            return replace(outcome, moved=True)
    raise RegistryError(
        f"{candidate.name}: {alias} moved {ATTEMPTS} times while {candidate.uri} was judged. Try again."
    )


def limits_of(version: ModelVersion, tracking_uri: str, given: Mapping[str, object]) -> Promote:
    """Return what the job that trained a version asks of it, but for what is given. Raises RegistryError."""
    job, _ = with_current_names(yaml.safe_load(versions.read_file(version, JOB, tracking_uri)))
    try:
        return Promote.model_validate({**job.get("promote", {}), **given})
    except ValidationError as error:
        told = "; ".join(f"promote.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RegistryError(f"{version.uri}: no such gates: {told}") from error


def previous_of(alias: str) -> str:
    """Return the alias of the version that held `alias` before: each alias has its own."""
    return "previous" if alias == CHAMPION else f"previous-{alias}"


def rollback(name: str, tracking_uri: str, alias: str = CHAMPION) -> tuple[int, int]:
    """Exchange `alias` and the one before it; return the version that held it and the one that holds it now.

    A second call takes the first one back. Raises RegistryError.
    """
    name, previous = name.removeprefix("models:/"), previous_of(alias)
    with lease(tracking_uri, name) as held:
        now = versions.aliases(tracking_uri, name)
        if alias not in now or previous not in now or now[alias] == now[previous]:
            told = ", ".join(f"{key} is version {value}" for key, value in sorted(now.items())) or "no alias"
            raise RegistryError(f"{name}: nothing to roll back to ({told}).")
        held.check()
        versions.set_aliases(tracking_uri, name, {previous: now[alias], alias: now[previous]})
    return now[alias], now[previous]


def _whole_name(model: str) -> str:
    name = model.removeprefix("models:/")
    return f"models:/{name if '@' in name or '/' in name else name + '@candidate'}"


# --- judging -------------------------------------------------------------------------------------------------


def _judge(
    candidate: ModelVersion,
    holder: int | None,
    alias: str,
    tracking_uri: str,
    limits: Promote,
    results: Sequence[Path],
) -> Promotion:
    ours = version_scores(candidate, tracking_uri, results)
    outcome = Promotion(candidate.name, candidate.version, alias, holder, moved=False, verdicts=())
    if holder is None:
        verdicts = [gates.beats_input(ours)]
    else:
        champion = versions.find(f"models:/{candidate.name}/{holder}", tracking_uri)
        theirs = version_scores(champion, tracking_uri, results)
        refusal = gates.incomparable_reason(ours, theirs)
        if refusal:
            told = f"{refusal} Judge both by one job of kind evaluate, and give the folders as --results."
            return replace(outcome, refusal=told)
        verdicts = [
            gates.beats_champion(ours, theirs, limits.margin_db),
            gates.no_degradation_lost(ours, theirs, limits.max_drop_db),
        ]
    if limits.reference_db is not None:
        verdicts.append(gates.near_reference(ours, limits.reference_db, limits.max_below_reference_db))
    if limits.paper_row is not None:
        verdicts.append(_near_paper(ours, limits.paper_row, limits.max_below_reference_db))
    weights = versions.weights_file(candidate.uri, tracking_uri)
    verdicts += [_parity(weights, form) for form in limits.parity]
    if limits.latency_seconds is not None or limits.memory_gib is not None:
        measured = measure_inference_cost(weights, limits.side_pixels)
        verdicts += gates.within_limits(measured, limits.latency_seconds, limits.memory_gib)
    return replace(outcome, verdicts=tuple(verdicts))


def _near_paper(ours: VersionScores, row: str, max_below_db: float) -> GateVerdict:
    """Whether the average comes near that of a published row; only over the row's degradations, by its protocol."""
    found = published_averages(row)
    for reference in found:
        if reference.degradations == tuple(sorted(ours.psnr)) and reference.protocol == ours.protocol:
            return gates.near_reference(ours, reference.psnr, max_below_db, reference.label)
    told = "; ".join(f"{one.label} is of {', '.join(one.degradations)} by {one.protocol}" for one in found)
    raise EvaluationError(
        f"paper row {row!r}: {told}. {ours.name} was measured on {', '.join(sorted(ours.psnr))} by {ours.protocol}."
    )


def _parity(weights: Path, form: str) -> GateVerdict:
    from mirage import load
    from orchestrator.models.export import FORMATS, export

    if form not in FORMATS:
        raise ExportError(f"parity: no format {form!r}; use some of {', '.join(FORMATS)}.")
    with tempfile.TemporaryDirectory(prefix="mirage-parity-") as folder:
        try:
            parity = export(load(weights), Path(folder, "model").with_suffix(FORMATS[form].suffix), form)
        except ExportError as error:
            return GateVerdict(f"the same as {form}", False, str(error), "the same numbers")
    return GateVerdict(
        f"the same as {form}", True, f"{parity.worst:.1e} apart", f"at most {parity.tolerance:.0e} apart"
    )


# --- keeping and moving --------------------------------------------------------------------------------------


def _store(outcome: Promotion, candidate: ModelVersion, tracking_uri: str) -> None:
    """Keep the gate table with the candidate's run, before anything moves."""
    when = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    place = f"promotions/{when}-version-{candidate.version}-to-{outcome.alias}"
    record = {**asdict(outcome), "passed": outcome.passed, "time": when}
    del record["moved"]  # not known yet; the aliases say it
    files: dict[str, bytes | Path] = {
        f"{place}.json": json.dumps(record, indent=1).encode(),
        f"{place}.txt": (outcome.render() + "\n").encode(),
    }
    runs.log_artifacts(tracking_uri, candidate.run_id, files)


def _move(candidate: ModelVersion, alias: str, judged_against: int | None, tracking_uri: str) -> bool:
    """Move the alias, unless it moved since the candidate was judged; return whether it did."""
    with lease(tracking_uri, candidate.name) as held:
        if versions.aliases(tracking_uri, candidate.name).get(alias) != judged_against:
            return False
        held.check()
        moves = {} if judged_against is None else {previous_of(alias): judged_against}
        versions.set_aliases(tracking_uri, candidate.name, {**moves, alias: candidate.version})
        if versions.aliases(tracking_uri, candidate.name).get(alias) != candidate.version:
            raise RegistryError(
                f"{candidate.name}: {alias} was moved by somebody else at the same time. Look again."
            )
    return True
