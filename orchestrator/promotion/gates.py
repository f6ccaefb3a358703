"""Conditions that a model must meet before an alias moves to it, as pure functions of scores and measurements.

Two models are compared image by image, on the same dataset digests, protocol and photographs, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from orchestrator import tables
from orchestrator.evaluation.bootstrap import Interval, mean_over_images
from orchestrator.evaluation.ranking import rank_value

Scores = Mapping[str, Mapping[str, float]]
"""Degradation → photograph → PSNR [dB]."""


@dataclass(frozen=True)
class VersionScores:
    """Scores of one model version on held-out photographs."""

    name: str
    protocol: str
    data: tuple[str, ...]
    """Digests of the datasets."""
    psnr: Scores
    input_psnr: Scores
    """PSNR of the degraded input."""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    """Degradation that a pipeline made → digest of the pipeline and seed."""


@dataclass(frozen=True)
class InferenceCost:
    """Cost of restoring one image, measured in a separate process."""

    seconds: float
    gib: float
    """Peak memory of the GPU if there is one, else of the process."""
    side: int
    """Side of the square image [px]."""
    device: str


@dataclass(frozen=True)
class GateVerdict:
    """Result of one gate."""

    gate: str
    passed: bool
    measured: str
    required: str
    checked: bool = True
    """False if the gate is off, which refuses nothing."""


def incomparable_reason(candidate: VersionScores, champion: VersionScores) -> str | None:
    """Return in one sentence why the two cannot be compared, None if they can."""
    if candidate.protocol != champion.protocol:
        return (
            f"{candidate.name} was measured by {candidate.protocol}, {champion.name} by {champion.protocol}: "
            "PSNR under two protocols does not compare."
        )
    if candidate.data != champion.data:
        return (
            f"{candidate.name} was measured on data {_short(candidate.data)}, {champion.name} on "
            f"{_short(champion.data)}: other photographs do not compare."
        )
    for degradation in sorted(candidate.psnr.keys() | champion.psnr.keys()):
        made = [scores.pipelines.get(degradation, "") for scores in (candidate, champion)]
        if made[0] != made[1]:
            ours_made, theirs_made = (digest[:12] or "none" for digest in made)
            return (
                f"{degradation}: {candidate.name} was measured with pipeline {ours_made}, {champion.name} with "
                f"{theirs_made}: other degradations do not compare. Evaluate both by one job."
            )
        ours, theirs = (set(scores.psnr.get(degradation, {})) for scores in (candidate, champion))
        if ours != theirs:
            return (
                f"{degradation}: {candidate.name} was measured on {len(ours)} photographs, {champion.name} on "
                f"{len(theirs)}, and {len(ours ^ theirs)} of them are not the same."
            )
    return None


def beats_champion(candidate: VersionScores, champion: VersionScores, margin_db: float) -> GateVerdict:
    """Require that the average gain over the champion exceeds `margin_db` with 95 % confidence."""
    gain = paired_difference(candidate.psnr, champion.psnr)
    passed = gain.low >= margin_db if margin_db > 0 else gain.low > 0
    required = f"at least {margin_db:+.3f} dB" if margin_db > 0 else "above 0 dB"
    return GateVerdict(f"better than {champion.name}", passed, str(gain), f"lower bound {required}")


def degraded_input(candidate: VersionScores) -> VersionScores:
    """Return the scores of the candidate's degraded input, with which the first champion is compared."""
    return replace(candidate, name="the degraded input", psnr=candidate.input_psnr)


def beats_input(candidate: VersionScores) -> GateVerdict:
    """Require that the average gain over the degraded input exceeds 0 with 95 % confidence."""
    return beats_champion(candidate, degraded_input(candidate), 0.0)


def no_degradation_lost(candidate: VersionScores, champion: VersionScores, max_drop_db: float) -> GateVerdict:
    """Require that no degradation's mean drops by more than `max_drop_db`."""
    changes = {
        degradation: fmean(psnr - champion.psnr[degradation][name] for name, psnr in scores.items())
        for degradation, scores in sorted(candidate.psnr.items())
    }
    worst = min(changes, key=lambda degradation: rank_value(changes[degradation]))
    return GateVerdict(
        "no degradation lost",
        changes[worst] >= -max_drop_db,
        f"{worst} {changes[worst]:+.3f} dB",
        f"none below {-max_drop_db:+.3f} dB",
    )


def near_reference(
    candidate: VersionScores, reference_db: float, max_below_db: float, label: str | None = None
) -> GateVerdict:
    """Require that the average PSNR is within `max_below_db` of a published one; `label` names its row."""
    average = fmean(fmean(scores.values()) for scores in candidate.psnr.values())
    return GateVerdict(
        "near the paper",
        average >= reference_db - max_below_db,
        f"{average:.2f} dB on average",
        f"at least {reference_db:.2f} - {max_below_db:.2f} dB{f' ({label})' if label else ''}",
    )


def within_limits(
    cost: InferenceCost, latency_seconds: float | None, memory_gib: float | None
) -> Iterator[GateVerdict]:
    """Require that restoring one image takes at most this time and memory; None leaves the gate out."""
    where = f"at {cost.side} x {cost.side} on {cost.device}"
    if latency_seconds is not None:
        yield GateVerdict(
            "latency",
            cost.seconds <= latency_seconds,
            f"{cost.seconds:.3f} s {where}",
            f"at most {latency_seconds:g} s",
        )
    if memory_gib is not None:
        yield GateVerdict(
            "memory", cost.gib <= memory_gib, f"{cost.gib:.2f} GiB {where}", f"at most {memory_gib:g} GiB"
        )


def paired_difference(ours: Scores, theirs: Scores) -> Interval:
    """Return the mean over degradations of the mean difference per photograph, with its interval."""
    return mean_over_images(
        [
            {name: psnr - theirs[degradation][name] for name, psnr in scores.items()}
            for degradation, scores in sorted(ours.items())
        ]
    )


def not_checked(gate: str, key: str) -> GateVerdict:
    """Return the row of a gate that is off because the key of `promote:` is not set."""
    return GateVerdict(gate, True, "not checked", f"promote.{key} is not set", checked=False)


def gate_table(verdicts: Sequence[GateVerdict]) -> str:
    """Return the gates as aligned text, one line each."""
    rows = [(v.gate, _outcome(v), v.measured, v.required) for v in verdicts]
    return "\n".join(tables.aligned(("gate", "", "measured", "required"), rows))


def _outcome(verdict: GateVerdict) -> str:
    if not verdict.checked:
        return "-"
    return "pass" if verdict.passed else "FAIL"


def _short(digests: Sequence[str]) -> str:
    return ", ".join(digest[:12] for digest in digests) or "of no digest"
