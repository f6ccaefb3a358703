"""Refuse weights and scores that are not finite, so that they are never kept, registered or compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from mirage.weights import not_finite
from orchestrator.errors import TrainingError
from orchestrator.evaluation.scores import ImageScore

_ADVICE = "the run has diverged. Lower train.learning_rate, set train.clip_norm, or use precision fp32."


def diverged(what: str) -> TrainingError:
    """Return the error of a run that cannot reach a useful model."""
    return TrainingError(f"{what}: {_ADVICE}")


def require_finite_weights(model: nn.Module, step: int) -> None:
    """Raise TrainingError if the model holds an infinite weight or NaN."""
    if found := not_finite(model):
        raise diverged(f"{len(found)} tensors of the model are not finite at step {step}, first {found[0]}")


def require_finite_scores(scores: Sequence[ImageScore]) -> None:
    """Raise TrainingError if the score of a photograph is not finite.

    The PSNR of an image that equals the clean one is infinite, and right.
    """
    wrong = [s for s in scores if not (math.isfinite(s.ssim) and s.psnr > -math.inf)]
    if wrong:
        one = wrong[0]
        raise diverged(
            f"{len(wrong)} of {len(scores)} scores are not finite, first {one.degradation} of {one.photograph} "
            f"(PSNR {one.psnr})"
        )


def require_taken_steps(skipped: int, steps: int) -> None:
    """Raise TrainingError if most steps of a run were skipped: its model is hardly trained."""
    if 2 * skipped > steps:
        raise diverged(f"{skipped} of {steps} steps were skipped because their gradients were not finite")
