"""The outcome of one evaluation: its figures, on disk and as text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from orchestrator import tables
from orchestrator.errors import EvaluationError
from orchestrator.evaluation.aggregates import AggregateScore
from orchestrator.evaluation.model_under_test import ModelIdentity


@dataclass(frozen=True)
class EvaluationSummary:
    """What one evaluation found."""

    evaluation: str
    job: str
    model: ModelIdentity
    parameters: int
    macs: int | None
    """Multiply-adds of one 3 x 224 x 224 image as papers count them; None for a class that we cannot count."""
    code_version: str
    figures: tuple[AggregateScore, ...]


def summary_bytes(summary: EvaluationSummary) -> bytes:
    """Return the summary as JSON; `read_summary` is the inverse."""
    return json.dumps(asdict(summary), indent=1, ensure_ascii=False).encode()


def read_summary(path: Path) -> EvaluationSummary:
    """Return the summary in a file, or in the folder that holds it. Raises EvaluationError."""
    file = path / "summary.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
        return EvaluationSummary(
            **{
                **content,
                "model": ModelIdentity(**content["model"]),
                "figures": tuple(AggregateScore(**figure) for figure in content["figures"]),
            }
        )
    except OSError as error:
        raise EvaluationError(f"{file}: no results of an evaluation ({error.strerror}).") from error
    except (ValueError, TypeError, KeyError) as error:
        raise EvaluationError(f"{file}: not the summary of an evaluation ({error}).") from error


def render(summary: EvaluationSummary) -> str:
    """Return the figures as aligned text, one line per benchmark, subset and protocol."""
    head = (
        "benchmark",
        "degradation",
        "n",
        "protocol",
        "PSNR [dB], 95 % interval",
        "SSIM, 95 % interval",
        "degraded",
        "dataset",
    )
    rows = []
    groups: dict[tuple[str, ...], dict[str, AggregateScore]] = {}
    for figure in summary.figures:
        key = (figure.dataset, figure.source, figure.subset, figure.degradation, figure.protocol)
        groups.setdefault(key, {})[figure.metric] = figure
    for (dataset, source, subset, degradation, protocol), by in groups.items():
        psnr, ssim = by["psnr"], by["ssim"]
        rows.append(
            (
                " ".join(
                    (
                        dataset,
                        *([source] if source not in ("", dataset) else []),
                        *([subset] if subset != "all" else []),
                    )
                ),
                degradation,
                str(psnr.n),
                protocol,
                f"{psnr.value:.2f} [{psnr.low:.2f}, {psnr.high:.2f}]",
                f"{ssim.value:.4f} [{ssim.low:.4f}, {ssim.high:.4f}]",
                f"{by['input_psnr'].value:.2f} / {by['input_ssim'].value:.4f}",
                psnr.digest[:12],
            )
        )
    noise = {figure.noise for figure in summary.figures} - {""}
    model = summary.model
    lines = [
        f"{model.name}   {summary.parameters:,} parameters   recipe {model.recipe}   weights {model.weights}   "
        f"sha256 {model.digest[:16] or 'none: as the class makes it'}",
        *([f"noise drawn {', '.join(sorted(noise))}"] if noise else []),
        "",
        *tables.aligned(head, rows),
    ]
    return "\n".join(lines)
