"""How a registered version did, image by image: from what it carries, or from an evaluation of its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import EvaluationError
from orchestrator.evaluation.image_results import from_parquet
from orchestrator.evaluation.summary import EvaluationSummary, read_summary
from orchestrator.promotion.gates import VersionScores
from orchestrator.registry import versions
from orchestrator.registry.versions import DIGEST_TAG, ModelVersion
from orchestrator.run_files import SCORES

IMAGES = "images.parquet"


def version_scores(version: ModelVersion, tracking_uri: str, results: Sequence[Path] = ()) -> VersionScores:
    """Return the scores that a version carries, or, if `results` are given, those of the one that judged its weights.

    `results` are folders of evaluations, as `kind: evaluate` leaves them. Raises RegistryError and EvaluationError.
    """
    name = f"version {version.version}"
    return _judged(version, name, results) if results else _carried(version, name, tracking_uri)


def _carried(version: ModelVersion, name: str, tracking_uri: str) -> VersionScores:
    content = json.loads(versions.read_file(version, SCORES, tracking_uri))
    psnr: dict[str, dict[str, float]] = {}
    degraded: dict[str, dict[str, float]] = {}
    for score in content["scores"]:
        psnr.setdefault(score["degradation"], {})[score["photograph"]] = score["psnr"]
        degraded.setdefault(score["degradation"], {})[score["photograph"]] = score["input_psnr"]
    return VersionScores(name, content["protocol"], tuple(content["data"]), psnr, degraded)


def _judged(version: ModelVersion, name: str, results: Sequence[Path]) -> VersionScores:
    """The results under the evaluation's first protocol; images of several datasets are told apart by the dataset."""
    found = _evaluation_of(version, results)
    rows = from_parquet((found / IMAGES).read_bytes())
    protocol = rows[0].protocol
    rows = [row for row in rows if row.protocol == protocol]
    psnr: dict[str, dict[str, float]] = {}
    degraded: dict[str, dict[str, float]] = {}
    for row in rows:
        image = f"{row.dataset}/{row.image}"
        psnr.setdefault(row.degradation, {})[image] = row.psnr
        degraded.setdefault(row.degradation, {})[image] = row.input_psnr
    return VersionScores(name, protocol, tuple(sorted({row.digest for row in rows})), psnr, degraded)


def _evaluation_of(version: ModelVersion, results: Sequence[Path]) -> Path:
    digest = version.tags[DIGEST_TAG]
    summaries: list[tuple[Path, EvaluationSummary]] = [(folder, read_summary(folder)) for folder in results]
    found = [folder for folder, summary in summaries if summary.model.digest == digest]
    if len(found) != 1:
        told = ", ".join(f"{folder} is of {summary.model.digest[:12]}" for folder, summary in summaries)
        raise EvaluationError(
            f"--results: {'several' if found else 'none'} of these evaluations judged {version.uri}, weights "
            f"{digest[:12]} ({told}). Name one of the candidate and one of the champion."
        )
    return found[0]
