"""The scores of one evaluation, on disk and as text."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator import tables
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.aggregates import AggregateScore
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.records import RecordError, read_record
from shards.filesystem import read_regular

SUMMARY = "summary.json"


@dataclass(frozen=True)
class EvaluationSummary:
    """The scores of one evaluation and the model that they are of."""

    evaluation: str
    job: str
    model: ModelIdentity
    parameters: int
    macs: int | None
    """Multiply-adds of one 3 x 224 x 224 image as papers count them; None for a user-defined model."""
    code_version: str
    figures: tuple[AggregateScore, ...]


def summary_bytes(summary: EvaluationSummary) -> bytes:
    """Return the summary as JSON; `read_summary` is the inverse."""
    return json.dumps(asdict(summary), indent=1, ensure_ascii=False).encode()


def read_summary(path: Path) -> EvaluationSummary:
    """Return the summary in a file, or in the folder that holds it. Raises EvaluationError."""
    file = path / SUMMARY if path.is_dir() else path
    try:
        return read_record(EvaluationSummary, read_regular(file))
    except OSError as error:
        raise EvaluationError(f"{file}: no results of an evaluation ({error.strerror}).") from error
    except RecordError as error:
        raise EvaluationError(f"{file}: not the summary of an evaluation ({error}).") from error


def render(summary: EvaluationSummary) -> str:
    """Return the scores as aligned text, one line per benchmark, subset, degradation and protocol."""
    head = ("benchmark", "degradation", "n", "protocol", "PSNR [dB], 95 % interval", "SSIM, 95 % interval")
    groups: dict[tuple[str, ...], dict[str, AggregateScore]] = defaultdict(dict)
    for score in summary.figures:
        source = score.source if score.source != score.dataset else ""
        subset = score.subset if score.subset != "all" else ""
        benchmark = " ".join(filter(None, (score.dataset, source, subset)))
        groups[benchmark, score.degradation, str(score.n), score.protocol, score.digest][score.metric] = score
    rows = [
        (
            *key[:4],
            f"{by['psnr'].value:.2f} [{by['psnr'].low:.2f}, {by['psnr'].high:.2f}]",
            f"{by['ssim'].value:.4f} [{by['ssim'].low:.4f}, {by['ssim'].high:.4f}]",
            f"{by['input_psnr'].value:.2f} / {by['input_ssim'].value:.4f}",
            key[4][:12],
        )
        for key, by in groups.items()
    ]
    pipelines = sorted(
        {f"{score.degradation} {score.pipeline[:12]}" for score in summary.figures if score.pipeline}
    )
    noise = sorted({score.noise for score in summary.figures} - {""})
    model = summary.model
    lines = [
        f"{model.name}   {summary.parameters:,} parameters   recipe {model.recipe}   weights {model.weights}   "
        f"sha256 {model.digest[:16] or 'none: initial weights'}",
        *([f"noise drawn {', '.join(noise)}"] if noise else []),
        *([f"pipelines {', '.join(pipelines)}"] if pipelines else []),
        "",
        *tables.aligned((*head, "degraded", "dataset"), rows),
    ]
    return "\n".join(lines)
