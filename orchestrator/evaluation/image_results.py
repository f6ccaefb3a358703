"""The result of one image under one protocol, and many results as a Parquet file."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial

import torch
from torch import Tensor

from mirage.metrics import PROTOCOLS, measure
from orchestrator.errors import EvaluationError
from orchestrator.imaging.convert import to_float
from shards.evaluation import EvalItem

IMAGES = "images.parquet"
PerceptualDistance = Callable[[Tensor, Tensor], float]
"""Distance of two float (3, h, w) images in [0, 1]."""


@dataclass(frozen=True)
class ImageResult:
    """Quality of one image before and after restoration, under one degradation and one protocol."""

    dataset: str
    digest: str
    """Digest of the dataset's manifest."""
    source: str
    degradation: str
    image: str
    protocol: str
    height: int
    """Height of the restored image [px]."""
    width: int
    psnr: float
    ssim: float
    lpips: float | None
    input_psnr: float
    """PSNR of the degraded image [dB]."""
    input_ssim: float
    seconds: float
    """Time to restore the image."""
    pipeline: str = ""
    """Digest of the pipeline and seed that degraded the image; "" for packed pairs and noise levels."""


def evaluate_image(
    item: EvalItem,
    restore: Callable[[Tensor], Tensor],
    protocols: Sequence[str],
    dataset: tuple[str, str],
    device: torch.device,
    perceptual: PerceptualDistance | None = None,
) -> list[ImageResult]:
    """Restore one image once and measure it under each protocol; `dataset` is its name and digest.

    Raises EvaluationError if the restored image is not finite.
    """
    degraded, clean = to_float(item.degraded, device), to_float(item.clean, device)
    began = time.perf_counter()
    restored = restore(degraded)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    if not bool(restored.isfinite().all()):
        raise EvaluationError(
            f"{dataset[0]}: {item.degradation} of {item.id}: the model's output is not finite, so it has no score. "
            "Evaluate other weights, or with precision fp32."
        )
    result = partial(
        ImageResult,
        *(*dataset, item.source, item.degradation, item.id),
        height=degraded.shape[1],
        width=degraded.shape[2],
        lpips=None if perceptual is None else perceptual(restored, clean),
        seconds=seconds,
        pipeline=item.pipeline,
    )
    results = []
    for protocol in protocols:
        # The restored and the degraded image are measured as one batch of two.
        both = measure(torch.stack((restored, degraded)), torch.stack((clean, clean)), protocol)
        (psnr, input_psnr), (ssim, input_ssim) = both["psnr"].tolist(), both["ssim"].tolist()
        results.append(
            result(protocol=protocol, psnr=psnr, ssim=ssim, input_psnr=input_psnr, input_ssim=input_ssim)
        )
    return results


def protocols_by_crop(protocols: Iterable[str]) -> dict[int, list[str]]:
    """Return the protocols by the multiple of pixels that images are cropped to before they are restored."""
    groups: dict[int, list[str]] = {}
    for name in protocols:
        groups.setdefault(PROTOCOLS[name].crop_multiple, []).append(name)
    return groups


def to_parquet(results: Sequence[ImageResult]) -> bytes:
    """Return the results as a Parquet file with one row each."""
    import pyarrow
    import pyarrow.parquet

    types = {"float": pyarrow.float64(), "float | None": pyarrow.float64(), "int": pyarrow.int32()}
    schema = pyarrow.schema(
        [(field.name, types.get(str(field.type), pyarrow.string())) for field in fields(ImageResult)]
    )
    table = pyarrow.Table.from_pylist([asdict(result) for result in results], schema)
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression="zstd")
    return out.getvalue()


def from_parquet(data: bytes) -> list[ImageResult]:
    """Return the results in a Parquet file that `to_parquet` wrote."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    return [ImageResult(**row) for row in rows]
