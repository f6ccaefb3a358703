"""The model card: what a registered model is, what it was trained on, its scores, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.pipelines import pipelines_of
from orchestrator.config.schema import Job, Model
from orchestrator.config.yaml_text import write_yaml
from orchestrator.evaluation.score_table import markdown_report
from orchestrator.evaluation.scores import DegradationScore
from orchestrator.models.network_code import NetworkCode
from shards.dataset import Dataset


def model_card(
    job: Job,
    dataset: Dataset,
    rows: Sequence[DegradationScore],
    how: str,
    run_id: str,
    code_version: str,
    code: NetworkCode | None = None,
) -> str:
    """Return the card as Markdown. `code`: that of a user-defined network."""
    facts = {
        "architecture": _architecture(job.model),
        **(_code_facts(code) if code else {}),
        "setting and recipe": f"{job.setting}, {job.recipe}",
        "loss": job.loss.describe(),
        **({"initial weights": job.init_from} if job.init_from else {}),
        "run": run_id,
        "code": code_version,
        "data": ", ".join(f"{m.name} (sha256 {m.digest[:16]})" for m in dataset.manifests),
    }
    licences = sorted(
        {f"`{source}` {terms}" for m in dataset.manifests for source, terms in m.licences.items()}
    )
    return "\n".join(
        [
            markdown_report(rows, job.track.register_as or job.name, how),
            "## Model",
            "",
            *(f"- {name}: {value}" for name, value in facts.items()),
            "",
            *_pipelines(job),
            "## Licences of the training data",
            "",
            *(f"- {text}" for text in licences),
            "",
            "## Use",
            "",
            "Input and output are RGB in [0, 1] of any size, float32, (b, 3, h, w).",
            "",
            f"    mirage restore photo.jpg -m models:/{job.track.register_as or 'NAME'}@candidate",
            "",
        ]
    )


def _pipelines(job: Job) -> list[str]:
    """Return the section of the pipelines that degraded clean photographs, if there are any."""
    if not job.degradations:
        return []
    steps = write_yaml(job.degradations).splitlines()
    digests = ", ".join(f"{name} sha256 {each.digest[:16]}" for name, each in pipelines_of(job).items())
    return [
        "## Degradations of clean photographs",
        "",
        f"{digests}.",
        "",
        *(f"    {line}" for line in steps),
        "",
    ]


def _code_facts(code: NetworkCode) -> dict[str, str]:
    return {
        "network's code": f"sha256 {code.digest}: {', '.join(f'`{path}`' for path in sorted(code.files))}. Loading the "
        f"model runs it, on another machine with `--trust {code.digest}`",
        "needs": ", ".join(code.requires) or "torch only",
        **({"adapter": code.adapter} if code.adapter else {}),
    }


def _architecture(model: Model) -> str:
    if model.class_ is not None:
        return f"{model.class_} with {model.arguments}"
    config = model.build()
    return f"MIRAGE, dim {config.dim}, blocks {config.blocks}, branch ratios {config.branch_ratios}"
