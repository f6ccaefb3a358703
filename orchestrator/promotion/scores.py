"""Scores of a registered version per image: those that it carries, or those of an evaluation of its weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import EvaluationError, RegistryError
from orchestrator.evaluation.image_results import IMAGES, from_parquet
from orchestrator.evaluation.summary import read_summary
from orchestrator.promotion.gates import VersionScores
from orchestrator.records import RecordError, read_record
from orchestrator.registry import versions
from orchestrator.registry.versions import DIGEST_TAG, ModelVersion
from orchestrator.run_files import SCORES


@dataclass(frozen=True)
class _Score:
    degradation: str
    photograph: str
    psnr: float
    input_psnr: float


@dataclass(frozen=True)
class _Scores:
    protocol: str
    data: list[str]
    scores: list[_Score]
    pipelines: dict[str, str] = field(default_factory=dict)


def version_scores(version: ModelVersion, tracking_uri: str, results: Sequence[Path] = ()) -> VersionScores:
    """Return the scores that a version carries, or, given `results`, those of the evaluation of its weights.

    `results` are folders that jobs of kind `evaluate` wrote. Raises RegistryError and EvaluationError.
    """
    if results:
        return _of_evaluation(version, _evaluation_of(version, results))
    try:
        content = read_record(_Scores, versions.read_file(version, SCORES, tracking_uri))
    except RecordError as error:
        raise RegistryError(f"{version.uri}: its {SCORES} are no scores: {error}.") from error
    rows = ((s.degradation, s.photograph, s.psnr, s.input_psnr) for s in content.scores)
    return _scores(version, content.protocol, content.data, rows, content.pipelines)


def _of_evaluation(version: ModelVersion, folder: Path) -> VersionScores:
    """Return the scores of an evaluation under its first protocol; image names get their dataset as prefix."""
    rows = from_parquet((folder / IMAGES).read_bytes())
    protocol = rows[0].protocol
    rows = [row for row in rows if row.protocol == protocol]
    values = ((row.degradation, f"{row.dataset}/{row.image}", row.psnr, row.input_psnr) for row in rows)
    pipelines = {row.degradation: row.pipeline for row in rows if row.pipeline}
    return _scores(version, protocol, sorted({row.digest for row in rows}), values, pipelines)


def _scores(
    version: ModelVersion,
    protocol: str,
    data: Sequence[str],
    rows: Iterable[tuple[str, str, float, float]],
    pipelines: Mapping[str, str],
) -> VersionScores:
    """Return the scores from rows of (degradation, image, PSNR, PSNR of the degraded input)."""
    psnr: dict[str, dict[str, float]] = defaultdict(dict)
    input_psnr: dict[str, dict[str, float]] = defaultdict(dict)
    for degradation, image, restored, degraded in rows:
        psnr[degradation][image] = restored
        input_psnr[degradation][image] = degraded
    name = f"version {version.version}"
    return VersionScores(name, protocol, tuple(data), dict(psnr), dict(input_psnr), dict(pipelines))


def _evaluation_of(version: ModelVersion, results: Sequence[Path]) -> Path:
    """Return the folder of the evaluation of this version's weights."""
    digest = version.tags[DIGEST_TAG]
    evaluated = {folder: read_summary(folder).model.digest for folder in results}
    found = [folder for folder in results if evaluated[folder] == digest]
    if len(found) != 1:
        listed = ", ".join(f"{folder} is of {of[:12]}" for folder, of in evaluated.items())
        raise EvaluationError(
            f"--results: {'several' if found else 'none'} of these evaluations measured {version.uri}, weights "
            f"{digest[:12]} ({listed}). Name one of the candidate and one of the champion."
        )
    return found[0]
