"""`mirage analyse`: the paper's Figures 3 to 6 and B for any MIRAGE and any images, as numbers and figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirage import MIRAGE, analysis
from orchestrator.errors import ModelError, PhotoError, RegistryError
from orchestrator.evaluation.feature_statistics import AS_GIVEN, FeatureStatistics, ScaleStatistics
from orchestrator.imaging.photos import read_photo
from orchestrator.masking import without_password
from orchestrator.outputs import write_output
from orchestrator.registry.resolve import find_model
from orchestrator.run_files import RUN_TAG
from orchestrator.tracking import background, runs
from orchestrator.tracking.uri import resolve_tracking_uri
from shards.degrade import SYNTHETIC, degrade
from shards.noise import add_noise
from shards.progress import ProgressCallback, counted, ignore
from shards.sample import SIGMA


def analyse(
    models: Sequence[str],
    images: Sequence[Path],
    degradations: Sequence[str],
    crop: int,
    out: Path,
    run: str | None,
    on_progress: ProgressCallback = ignore,
) -> Iterator[str]:
    """Yield the statistics as lines of text; write figures and analysis.json to `out` and to the MLflow run `run`.

    degradations: applied to the images first; none: the images are used as they are.
    crop: side of the centre crop that is analysed [px].
    run: name or MLflow id of a run, or None.
    """
    _check_degradations(degradations)
    if run is not None:
        _run_id(run)  # raises before the work starts
    loaded = [(name, _mirage(name)) for name in models]
    clean = [(path, _centre_crop(read_photo(path).pixels, crop)) for path in images]
    found = [
        feature_statistics(
            name, model, degradation, [_degraded(degradation, path, image) for path, image in clean]
        )
        for (name, model), degradation in counted(
            list(product(loaded, degradations or [AS_GIVEN])), on_progress
        )
    ]
    for one in found:
        yield from _lines(one)
    from orchestrator.evaluation.feature_figures import draw

    content = [as_json(one) for one in found]
    write_output(out / "analysis.json", json.dumps(content, indent=1))
    files = [out / "analysis.json", *draw(found, out)]
    if run is not None:
        yield _track(run, found, files)
    yield "written: " + ", ".join(str(file) for file in files if file.suffix != ".pdf")
    if len(images) < 2:
        yield "Figures 5 and 6 compare images, so they need at least two."


def _mirage(name: str) -> MIRAGE:
    module = find_model(name).load(torch.device("cpu")).module
    if not isinstance(module, MIRAGE):
        raise ModelError(f"{name}: the analyses are of the stages of a MIRAGE, and this is another network.")
    return module


def feature_statistics(
    name: str, model: MIRAGE, degradation: str, images: Sequence[Tensor]
) -> FeatureStatistics:
    """Return the statistics of `model` over float images (3, h, w)."""
    found = [analysis.features(model, image) for image in images]
    stages = {stage: [one.stages[stage] for one in found] for stage in analysis.SCALES}
    stages["reduced latent"] = [one.latent for one in found]
    matrices: dict[str, Tensor] = {}
    alignment = None
    if len(images) > 1:
        if model.config.alignment not in ("none", "geodesic"):
            pairs = [analysis.embeddings(model, one) for one in found]
            matrices["shallow_latent"] = analysis.cosines(
                torch.stack([s for s, _ in pairs]), torch.stack([z for _, z in pairs])
            )
        for kind, describe in _DESCRIPTORS.items():
            latents = torch.stack([describe(one.latent) for one in found])
            matrices[kind] = analysis.cosines(latents, latents)
        shallow, latent = (
            torch.stack([F.normalize(analysis.covariance_descriptor(x), dim=0) for x in maps])
            for maps in ([one.shallow for one in found], [one.latent for one in found])
        )
        alignment = analysis.kernel_alignment(shallow, latent)
    return FeatureStatistics(
        model=name,
        degradation=degradation,
        images=len(images),
        scales=tuple(_scale(stage, maps) for stage, maps in stages.items()),
        attention=tuple(
            _scale(stage, [one.attention[stage] for one in found]) for stage in found[0].attention
        ),
        similarity={
            stage: torch.stack([analysis.channel_similarity(x) for x in maps]).mean(0)
            for stage, maps in stages.items()
        },
        matrices=matrices,
        kernel_alignment=alignment,
    )


def as_json(found: FeatureStatistics) -> dict[str, Any]:
    """Return the statistics as JSON values; of the channel similarities only the mean off the diagonal."""
    similarity = {stage: _off_diagonal(matrix.abs()) for stage, matrix in found.similarity.items()}
    return {
        "model": found.model,
        "degradation": found.degradation,
        "images": found.images,
        "scales": [asdict(scale) for scale in found.scales],
        "attention": [asdict(scale) for scale in found.attention],
        "mean_channel_similarity": similarity,
        "matrices": {name: matrix.tolist() for name, matrix in found.matrices.items()},
        "contrast": {name: asdict(analysis.contrast(matrix)) for name, matrix in found.matrices.items()},
        "kernel_alignment": found.kernel_alignment,
    }


_DESCRIPTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "euclidean": analysis.mean_descriptor,
    "spd": analysis.covariance_descriptor,
}


def _scale(name: str, maps: Sequence[Tensor]) -> ScaleStatistics:
    cumulative = torch.stack([analysis.cumulative_variance(x) for x in maps])
    spectra = torch.stack([analysis.spectrum(x) for x in maps])
    components = [analysis.components_for(c) for c in cumulative]
    channels = maps[0].shape[1]
    return ScaleStatistics(
        name=name,
        channels=channels,
        components_90=float(np.mean(components)),
        rank_ratio=float(np.mean(components)) / channels,
        entropy_rank=float(np.mean([analysis.entropy_rank(x) for x in maps])),
        cumulative_variance=tuple(cumulative.mean(0).tolist()),
        spectrum=tuple(spectra.mean(0).tolist()),
    )


def _lines(found: FeatureStatistics) -> Iterator[str]:
    yield f"{found.model}, {found.degradation}, mean over {found.images} image{'s' if found.images > 1 else ''}"
    for kind, scales in (("stage", found.scales), ("attention", found.attention)):
        for scale in scales:
            yield (
                f"  {kind:<9} {scale.name:<14} {scale.channels:>4} channels  {scale.components_90:6.1f} components for "
                f"90 %  rank ratio {100 * scale.rank_ratio:5.1f} %  entropy rank {scale.entropy_rank:6.1f}"
            )
    for name, matrix in found.matrices.items():
        c = analysis.contrast(matrix)
        yield f"  {name:<24} diagonal {c.diagonal:.3f}  off-diagonal {c.off_diagonal:.3f}  ratio {c.ratio:.2f}"
    if found.kernel_alignment is not None:
        yield f"  CKA of shallow and latent covariances {found.kernel_alignment:.3f}"


def _check_degradations(degradations: Sequence[str]) -> None:
    known = (*SYNTHETIC, *SIGMA)
    for name in degradations:
        if name not in known:
            raise PhotoError(f"--degradation {name}: one of {', '.join(known)}.")


def _centre_crop(pixels: Any, side: int) -> Tensor:
    image = torch.from_numpy(np.ascontiguousarray(pixels)).float()
    height, width = image.shape[1:]
    top, left = max(height - side, 0) // 2, max(width - side, 0) // 2
    return image[:, top : top + side, left : left + side].contiguous()


def _degraded(degradation: str, path: Path, image: Tensor) -> Tensor:
    """Return the degraded image; random parts are seeded by the file's name."""
    if degradation == AS_GIVEN:
        return image
    clean = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    if degradation in SIGMA:
        key = torch.tensor([sum(path.name.encode())])
        return add_noise(clean[None], torch.tensor([float(SIGMA[degradation])]), key, 0)[0].float() / 255
    degraded = degrade(np.ascontiguousarray(clean.permute(1, 2, 0).numpy()), degradation, 0, path.name)
    return torch.from_numpy(np.ascontiguousarray(degraded)).permute(2, 0, 1).float() / 255


def _off_diagonal(matrix: Tensor) -> float:
    n = matrix.shape[0]
    return float((matrix.sum() - matrix.diagonal().sum()) / max(n * (n - 1), 1))


def _track(run: str, found: Sequence[FeatureStatistics], files: Sequence[Path]) -> str:
    """Log figures and numbers to the run; return where they are."""
    uri, run_id = resolve_tracking_uri(), _run_id(run)
    values = {
        f"analysis/{one.degradation.replace(' ', '_')}/{scale.name.replace(' ', '_')}/rank_ratio": scale.rank_ratio
        for one in found[:1]
        for scale in one.scales
    }
    background.log_metrics(uri, run_id, 0, values)
    runs.log_artifacts(uri, run_id, {f"analysis/{file.name}": file for file in files})
    return f"logged to run {run_id} of {without_password(uri)}"


def _run_id(run: str) -> str:
    """Return the MLflow id of the run with this name or id. Raises RegistryError."""
    uri = resolve_tracking_uri()
    found = runs.find_run(uri, RUN_TAG, run)
    if found is None:
        raise RegistryError(f"--run {run}: no run of that name or id is tracked at {without_password(uri)}.")
    return found.id
