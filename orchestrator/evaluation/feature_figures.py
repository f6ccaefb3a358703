"""Draw the figures of `mirage analyse` for print: PNG at 200 dpi and PDF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mirage.analysis import contrast
from orchestrator.errors import PhotoError
from orchestrator.evaluation.feature_statistics import AS_GIVEN, FeatureStatistics
from orchestrator.outputs import write_output

_NAMES = {"encoder1": "scale 1", "encoder2": "scale 2", "encoder3": "scale 3", "latent": "scale 4"}
_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#e08e0b")
_STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "savefig.bbox": "tight",
    "savefig.dpi": 200,
}


def draw(found: Sequence[FeatureStatistics], out: Path) -> list[Path]:
    """Draw every figure that the statistics allow; return the files. Raises PhotoError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise PhotoError(
            "figures need matplotlib: pip install 'mirage-orchestrator[demo]'. The numbers are in analysis.json."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    files: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        figures = {"figure3-variance": _variance(pyplot, found), "figure4-channels": _channels(pyplot, found)}
        if found[0].images > 1:
            figures["figure5-alignment"] = _alignment(pyplot, found)
            figures["figure6-descriptors"] = _descriptors(pyplot, found)
        for name, figure in figures.items():
            for suffix in ("png", "pdf"):
                files.append(out / f"{name}.{suffix}")
                content = io.BytesIO()
                undated = None if suffix == "png" else {"CreationDate": None}
                figure.savefig(content, format=suffix, metadata=undated)
                write_output(files[-1], content.getvalue())
            pyplot.close(figure)
    return files


def _variance(pyplot: Any, found: Sequence[FeatureStatistics]) -> Any:
    """Draw Figure 3: cumulative variance and singular values per scale, of attention outputs if there are any."""
    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(6.4, 2.5 * len(found)), squeeze=False, layout="constrained"
    )
    for (left, right), one in zip(axes, found, strict=True):
        scales = one.attention or one.scales[:4]
        for scale, colour in zip(scales, _COLOURS, strict=False):
            label = f"{_NAMES[scale.name]} (C = {scale.channels})"
            share = [(i + 1) / scale.channels for i in range(scale.channels)]
            left.plot(share, scale.cumulative_variance, color=colour, label=label, linewidth=1.4)
            left.plot(scale.rank_ratio, 0.9, "o", color=colour, markersize=4)
            right.semilogy(share, [max(v, 1e-7) for v in scale.spectrum], color=colour, linewidth=1.4)
        left.axhline(0.9, color="0.6", linewidth=0.8, linestyle=":")
        left.set(xlabel="share of the principal components", ylabel="cumulative variance")
        left.set(ylim=(0, 1.03), xlim=(0, 1))
        right.set(xlabel="share of the singular values", ylabel=r"$\sigma_i\,/\,\sigma_1$", xlim=(0, 1))
        left.legend(loc="lower right")
        what = "attention outputs" if one.attention else "stage outputs"
        left.set_title(f"{_title(one)}: {what}", loc="left")
        right.set_title(f"mean over {one.images} images" if one.images > 1 else "one image", loc="left")
    return figure


def _channels(pyplot: Any, found: Sequence[FeatureStatistics]) -> Any:
    """Draw Figures 4 and B: channel similarity per scale with the rank ratio below."""
    count = len(found[0].scales)
    figure, axes = pyplot.subplots(
        len(found), count, figsize=(1.6 * count + 0.6, 1.9 * len(found)), squeeze=False, layout="constrained"
    )
    image = None
    for row, one in zip(axes, found, strict=True):
        for axis, scale in zip(row, one.scales, strict=True):
            image = _heatmap(axis, one.similarity[scale.name], -1, "RdBu_r")
            axis.set_title(f"{_NAMES.get(scale.name, scale.name)}, C = {scale.channels}")
            axis.set_xlabel(f"rank ratio {100 * scale.rank_ratio:.1f} %")
        row[0].set_ylabel(_title(one))
    figure.colorbar(image, ax=axes, shrink=0.8, label="cosine of channel maps")
    return figure


def _alignment(pyplot: Any, found: Sequence[FeatureStatistics]) -> Any:
    """Draw Figure 5: cosines between the shallow and the latent embeddings of the images."""
    figure, axes = pyplot.subplots(
        1, len(found), figsize=(2.3 * len(found) + 0.7, 2.7), squeeze=False, layout="constrained"
    )
    drawn = None
    for axis, one in zip(axes[0], found, strict=True):
        matrix = one.matrices.get("shallow_latent")
        axis.set_title(_title(one))
        if matrix is None:
            axis.text(
                0.5, 0.5, "no heads:\nno embeddings", ha="center", va="center", transform=axis.transAxes
            )
            axis.set(xticks=[], yticks=[], xlabel=f"CKA {one.kernel_alignment:.3f}")
            continue
        drawn = _heatmap(axis, matrix, -1, "RdBu_r")
        axis.set_ylabel("shallow")
        axis.set_xlabel(f"latent\n{_contrast_label(one, 'shallow_latent')}\nCKA {one.kernel_alignment:.3f}")
    if drawn is not None:
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine of embeddings")
    return figure


def _descriptors(pyplot: Any, found: Sequence[FeatureStatistics]) -> Any:
    """Draw Figure 6: cosines between the images by means and by covariances of the latent."""
    figure, axes = pyplot.subplots(
        len(found), 2, figsize=(5.2, 2.5 * len(found)), squeeze=False, layout="constrained"
    )
    drawn = None
    for row, one in zip(axes, found, strict=True):
        for axis, kind in zip(row, ("euclidean", "spd"), strict=True):
            drawn = _heatmap(axis, one.matrices[kind], 0, "viridis")
            if one is found[0]:
                axis.set_title({"euclidean": "Euclidean: means", "spd": "SPD: covariances"}[kind])
            axis.set_xlabel(_contrast_label(one, kind))
        row[0].set_ylabel(_title(one))
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="cosine between images")
    return figure


def _heatmap(axis: Any, matrix: Tensor, low: float, colours: str) -> Any:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(True)
    return axis.imshow(matrix.numpy(), vmin=low, vmax=1, cmap=colours, interpolation="nearest")


def _contrast_label(one: FeatureStatistics, kind: str) -> str:
    c = contrast(one.matrices[kind])
    return f"diagonal {c.diagonal:.2f}, others {c.off_diagonal:.2f}\nratio {c.ratio:.2f}"


def _title(one: FeatureStatistics) -> str:
    name = one.model.removeprefix("models:/").rpartition("/")[2].removesuffix(".safetensors")
    return name if one.degradation == AS_GIVEN else f"{name}, {one.degradation}"
