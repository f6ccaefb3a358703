"""Asynchronous successive halving: a trial goes on from a rung when it is among the best that came there so far.

Nobody waits: the first trial to reach a rung always goes on. A decision depends on the trials that reached the rung
before, so with several trials at a time it depends on who was faster; with one at a time it is always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """Whether a trial stops at a rung, and why."""

    stop: bool
    reason: str


def decide(rung: int, psnr: float, before: Sequence[float], reduction: int) -> Decision:
    """Decide on a trial with `psnr` [dB] at step `rung`, which the trials `before` reached earlier.

    Of n that have come, this one among them, the best n / `reduction` go on, and always the best.
    """
    place = 1 + sum(other > psnr for other in before)
    came = len(before) + 1
    go_on = max(1, came // reduction)
    told = (
        f"{psnr:.2f} dB at step {rung} is place {place} of the {came} that came there; the best {go_on} go on"
    )
    return Decision(place > go_on, told)
