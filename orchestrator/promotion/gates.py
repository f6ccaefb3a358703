"""What a model must show before an alias moves to it, as pure functions of scores and measurements.

A gate is passed or not, and says what was measured and what was required. Two models are compared image by image: on
the same dataset digests and protocol, over the very same photographs, or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator import tables
from orchestrator.evaluation.bootstrap import Interval, over_photographs


@dataclass(frozen=True)
class VersionScores:
    """How one model version did on the held-out photographs."""

    name: str
    protocol: str
    data: tuple[str, ...]
    """Digests of the datasets."""
    psnr: Mapping[str, Mapping[str, float]]
    """Degradation to photograph to PSNR [dB]."""
    input_psnr: Mapping[str, Mapping[str, float]]
    """The same of the degraded input."""


@dataclass(frozen=True)
class InferenceCost:
    """What restoring one image took in a process of its own."""

    seconds: float
    gib: float
    """Highest memory: of the GPU where there is one, else of the whole process."""
    side: int
    """Of the square image [px]."""
    device: str


@dataclass(frozen=True)
class GateVerdict:
    """One gate."""

    gate: str
    passed: bool
    measured: str
    required: str


def incomparable_reason(candidate: VersionScores, champion: VersionScores) -> str | None:
    """Return in one sentence why the two may not be compared, None when they may."""
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
        ours, theirs = (set(e.psnr.get(degradation, {})) for e in (candidate, champion))
        if ours != theirs:
            return (
                f"{degradation}: {candidate.name} was measured on {len(ours)} photographs, {champion.name} on "
                f"{len(theirs)}, and {len(ours ^ theirs)} of them are not the same."
            )
    return None


def beats_champion(candidate: VersionScores, champion: VersionScores, margin_db: float) -> GateVerdict:
    """Whether the average gain over the champion lies above `margin_db` with 95 % confidence."""
    found = paired(candidate.psnr, champion.psnr)
    passed = found.low >= margin_db if margin_db > 0 else found.low > 0
    wanted = f"at least {margin_db:+.3f} dB" if margin_db > 0 else "above 0 dB"
    return GateVerdict(f"better than {champion.name}", passed, str(found), f"lower bound {wanted}")


def beats_input(candidate: VersionScores) -> GateVerdict:
    """Whether the average gain over the degraded input lies above 0 with 95 % confidence."""
    found = paired(candidate.psnr, candidate.input_psnr)
    return GateVerdict("better than the degraded input", found.low > 0, str(found), "lower bound above 0 dB")


def no_degradation_lost(candidate: VersionScores, champion: VersionScores, max_drop_db: float) -> GateVerdict:
    """Whether no degradation lost more than `max_drop_db` on average."""
    changes = {d: _mean_difference(candidate.psnr[d], champion.psnr[d]) for d in sorted(candidate.psnr)}
    worst = min(changes, key=lambda d: changes[d])
    return GateVerdict(
        "no degradation lost",
        changes[worst] >= -max_drop_db,
        f"{worst} {changes[worst]:+.3f} dB",
        f"none below {-max_drop_db:+.3f} dB",
    )


def near_reference(
    candidate: VersionScores, reference_db: float, max_below_db: float, label: str | None = None
) -> GateVerdict:
    """Whether the average PSNR comes within `max_below_db` of a published average; `label` says whose it is."""
    average = float(np.mean([np.mean(list(scores.values())) for scores in candidate.psnr.values()]))
    return GateVerdict(
        "near the paper",
        average >= reference_db - max_below_db,
        f"{average:.2f} dB on average",
        f"at least {reference_db:.2f} - {max_below_db:.2f} dB{f' ({label})' if label else ''}",
    )


def within_limits(
    measured: InferenceCost, latency_seconds: float | None, memory_gib: float | None
) -> Iterator[GateVerdict]:
    """Whether one image restores in the time and in the memory that were allowed."""
    where = f"at {measured.side} x {measured.side} on {measured.device}"
    if latency_seconds is not None:
        yield GateVerdict(
            "latency",
            measured.seconds <= latency_seconds,
            f"{measured.seconds:.3f} s {where}",
            f"at most {latency_seconds:g} s",
        )
    if memory_gib is not None:
        yield GateVerdict(
            "memory",
            measured.gib <= memory_gib,
            f"{measured.gib:.2f} GiB {where}",
            f"at most {memory_gib:g} GiB",
        )


def paired(ours: Mapping[str, Mapping[str, float]], theirs: Mapping[str, Mapping[str, float]]) -> Interval:
    """Return the mean over degradations of the mean difference per photograph, with its interval."""
    return over_photographs(
        [
            {name: value - theirs[degradation][name] for name, value in scores.items()}
            for degradation, scores in sorted(ours.items())
        ]
    )


def gate_table(verdicts: Sequence[GateVerdict]) -> str:
    """Return the gates as aligned text, one line each."""
    rows = [(v.gate, "pass" if v.passed else "FAIL", v.measured, v.required) for v in verdicts]
    return "\n".join(tables.aligned(("gate", "", "measured", "required"), rows))


def _mean_difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    return float(np.mean([value - theirs[name] for name, value in ours.items()]))


def _short(digests: Sequence[str]) -> str:
    return ", ".join(digest[:12] for digest in digests) or "of no digest"
