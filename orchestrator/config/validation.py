"""Combinations of keys that cannot be, each with the nearest one that can."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from orchestrator.config import crop_stages
from orchestrator.config.schema import Pack, Training, UserModel, WorkerResources
from orchestrator.errors import EvaluationError

if TYPE_CHECKING:
    from orchestrator.config.job_schemas import EvaluateJob, PackJob, RestoreJob

Conflict = tuple[str, str]
"""Key and message."""


def training_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield what cannot be in a job that trains."""
    yield from _of_crops(job)
    yield from _of_weights(job)
    if job.validation.crop_pixels % 8:
        yield (
            "validation.crop_pixels",
            f"{job.validation.crop_pixels} is not a multiple of 8, the model's total stride.",
        )
    if (job.train.epochs is None) == (job.train.steps is None):
        yield "train.steps", "give the length once: either train.epochs or train.steps."
    batch, micro = min(crop_stages.batches(job), default=job.train.global_batch_size), job.train.micro_batches
    for each in sorted({job.train.global_batch_size, *crop_stages.batches(job)}):
        if each % micro:
            yield "train.micro_batches", f"{micro} does not divide the global batch of {each}."
    if job.model.alignment == "none" and job.loss.spd_weight:
        yield (
            "loss.spd_weight",
            f"{job.loss.spd_weight:g}, but with model.alignment none there is nothing to align. Set it to 0.",
        )
    yield from _of_workers(job.workers)
    if job.workers.max > batch // micro:
        yield (
            "workers.max",
            f"{job.workers.max} workers cannot share a micro-batch of {batch // micro} images: each needs one. "
            f"Set workers.max to at most {batch // micro}, or raise train.global_batch_size.",
        )
    if job.loss.spd_weight and batch // micro < 2:
        yield (
            "loss.spd_weight",
            "the SPD term contrasts the images of a micro-batch and vanishes with one image. "
            "Raise train.global_batch_size or set loss.spd_weight to 0.",
        )
    if job.train.schedule == "release" and job.train.steps is not None:
        yield (
            "train.schedule",
            "the release's schedule counts epochs. Give train.epochs, or train.schedule=cosine.",
        )
    if job.data.pack:
        yield from _of_packing(job.data.pack, job.data.manifests)
    if job.train.precision in ("bf16", "fp16") and job.workers.gpus == 0 and job.recipe != "fast":
        yield (
            "train.precision",
            f"{job.train.precision} on CPU workers is slower than fp32. Set train.precision=fp32 or workers.gpus.",
        )
    yield from _of_checkpoints(job)
    if job.train.compile != "none" and job.engine.name == "deepspeed" and job.engine.zero_stage == 3:
        yield (
            "train.compile",
            "a compiled block needs its weights in place, and ZeRO stage 3 shares them out. Set it to none, or "
            "engine.zero_stage to at most 2.",
        )
    if job.promote.paper_row is not None:
        yield from _of_paper_row(job.promote.paper_row)
    yield from _of_class(job.model)
    if job.model.class_ is not None:
        yield from _of_training_a_class(job)
        return
    try:
        job.model.build()
    except ValueError as error:
        yield "model", str(error)


def _of_paper_row(row: str) -> Iterator[Conflict]:
    # Here, because the tables know every dataset, which takes a while to import.
    from orchestrator.paper.tables import published_averages

    try:
        published_averages(row)
    except EvaluationError as error:
        yield "promote.paper_row", str(error)


def _of_checkpoints(job: Training) -> Iterator[Conflict]:
    """Best checkpoints are told by a metric that validation computes."""
    quantities = ("psnr", "ssim", "input_psnr", "input_ssim", "gain", "baseline_psnr")
    rows = (*job.evaluate.degradations, "average")
    known = {"val/psnr", *(f"val/{job.setting}/{row}/{what}" for row in rows for what in quantities)}
    if job.checkpoint.metric not in known:
        near = difflib.get_close_matches(job.checkpoint.metric, sorted(known), 1, 0.0)[0]
        yield (
            "checkpoint.metric",
            f"{job.checkpoint.metric} is not measured by validation: did you mean {near}?",
        )


def _of_crops(job: Training) -> Iterator[Conflict]:
    stages = crop_stages.declared(job)
    for crop in (stage.pixels for stage in stages):
        if crop % 8:
            low = crop - crop % 8
            yield (
                "data.crop_pixels",
                f"{crop} is not a multiple of 8, the model's total stride. Nearest: {low} or {low + 8}.",
            )
    if not stages or (stages[0].from_step or stages[0].from_epoch):
        yield "data.crop_pixels", "the first stage starts at step 0: give it from_step: 0."
    for stage in stages:
        if (stage.from_step is None) == (stage.from_epoch is None):
            yield (
                "data.crop_pixels",
                f"the stage of {stage.pixels} pixels needs from_step or from_epoch, one of them.",
            )
    by_epoch = job.train.steps is None or job.train.schedule == "release"
    if by_epoch and set(crop_stages.batches(job)) != {job.train.global_batch_size}:
        yield (
            "data.crop_pixels",
            "with batches of their own, stages have no epochs of equal steps. Give train.steps and "
            "train.schedule=cosine.",
        )


def _of_weights(job: Training) -> Iterator[Conflict]:
    weights = job.data.weights
    if weights is None:
        if job.data.samples_per_epoch is not None:
            yield (
                "data.samples_per_epoch",
                "is the length of an epoch that is shared by data.weights. Give them too.",
            )
    elif set(weights) != set(job.data.mixture):
        odd = sorted(set(weights) ^ set(job.data.mixture))
        yield (
            "data.weights",
            f"must name the degradations of data.mixture, each once; {', '.join(odd)} is in one only.",
        )
    if job.data.shuffle_window is not None and job.data.sampling == "replacement":
        yield (
            "data.shuffle_window",
            "is of a permutation; sampling with replacement has no order to keep. Remove it.",
        )


def packing_conflicts(job: PackJob) -> Iterator[Conflict]:
    """Yield what cannot be in a job that packs."""
    yield from _of_packing(job.data.pack, job.data.manifests)


def source_conflicts(pack: Pack) -> Iterator[Conflict]:
    """Yield what cannot be in a description of raw data; keys are those of the section."""
    if pack.source != "photographs" and not pack.root:
        what = "clean photographs" if pack.source == "synthetic" else "the raw data"
        yield "root", f"is missing: name the folder of {what}."
    if pack.source == "pairs":
        for key in ("degraded", "clean", "degradation"):
            if getattr(pack, key) is None:
                yield (
                    key,
                    "is missing: pairs need patterns of the degraded and clean files, and the degradation.",
                )
    for key, sources in _BELONGS.items():
        if pack.source not in sources and getattr(pack, key) != type(pack).model_fields[key].get_default():
            yield key, f"belongs to {' and '.join(sources)}, not to {pack.source}."


_BELONGS = {
    "held_out": ("synthetic",),
    **dict.fromkeys(("degraded", "clean", "degradation", "held_out_share"), ("pairs",)),
    "group": ("cdd11",),
    "crops": ("gopro",),
}
"""Keys that mean something for some sources alone."""


def evaluation_conflicts(job: EvaluateJob) -> Iterator[Conflict]:
    """Yield what cannot be in a job that judges."""
    yield from _of_workers(job.workers)
    model = job.model
    if model.class_ is None and model.weights is None:
        yield (
            "model.weights",
            "is missing: name what is judged, for example models:/NAME@candidate or a file.",
        )
    yield from _of_class(model)


def restore_conflicts(job: RestoreJob) -> Iterator[Conflict]:
    """Yield what cannot be in a job that restores."""
    yield from _of_workers(job.workers)
    tile, overlap = job.restore.tile, job.restore.overlap
    if tile < 8 or tile % 8:
        yield (
            "restore.tile",
            f"{tile} is not a multiple of 8, the model's total stride. Nearest: {max(tile - tile % 8, 8)}.",
        )
    elif not 0 <= overlap <= tile // 2:
        yield "restore.overlap", f"{overlap}: at least 0 and at most half of the tile, {tile // 2}."


def _of_class(model: UserModel) -> Iterator[Conflict]:
    if model.class_ is None:
        for key in ("path", "arguments", "tile"):
            if getattr(model, key):
                yield (
                    f"model.{key}",
                    "belongs to a class, and model.class is missing. Give it, or remove this.",
                )
    if model.tile and model.tile % model.stride:
        yield "model.tile", f"{model.tile} is not a multiple of model.stride, {model.stride}."


def _of_training_a_class(job: Training) -> Iterator[Conflict]:
    """A network of anybody's has no taps for the SPD term, no blocks that we know, and no place in the registry."""
    if job.loss.spd_weight:
        yield (
            "loss.spd_weight",
            f"{job.loss.spd_weight:g}, but the SPD term looks into a MIRAGE, and model.class is another network. "
            "Set it to 0.",
        )
    for key in sorted(set(job.model.changes()) - {"shallow_tap"}):  # a recipe gives the tap
        yield f"model.{key}", "is a key of a MIRAGE, and model.class is another network. Remove it."
    if job.train.activation_checkpointing != "none":
        yield (
            "train.activation_checkpointing",
            "knows a MIRAGE's blocks, and model.class is another network. Set it to none.",
        )
    if job.train.compile != "none":
        yield "train.compile", "knows a MIRAGE's blocks, and model.class is another network. Set it to none."
    if job.track.register_as:
        yield (
            "track.register_as",
            "only a MIRAGE is registered. Remove it: the weights stay in the run's folder, for model.weights.",
        )
    for crop in (stage.pixels for stage in crop_stages.declared(job)):
        if crop % job.model.stride:
            yield "data.crop_pixels", f"{crop} is not a multiple of model.stride, {job.model.stride}."


def _of_workers(workers: WorkerResources) -> Iterator[Conflict]:
    if workers.min > workers.max:
        yield "workers.min", f"{workers.min} is more than workers.max, {workers.max}."


def _of_packing(pack: Pack, manifests: tuple[str, ...]) -> Iterator[Conflict]:
    yield from ((f"data.pack.{key}", message) for key, message in source_conflicts(pack))
    if len(manifests) != 1:
        yield "data.manifests", "name exactly one dataset when data.pack says how to make it."
