"""Combinations of keys that are impossible, each with the nearest possible one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from orchestrator.config import crop_stages
from orchestrator.config.pipelines import pipeline_conflicts
from orchestrator.config.schedule import lr_scale
from orchestrator.config.schema import METRIC, Pack, Train, Training, UserModel, WorkerResources
from orchestrator.errors import EvaluationError
from shards.sample import DEGRADATIONS, SIGMA

if TYPE_CHECKING:
    from orchestrator.config.job_schemas import EvaluateJob, PackJob, RestoreJob

Conflict = tuple[str, str]
"""Key and message."""

STRIDE = 8
"""Total stride of MIRAGE: sides of crops and tiles are multiples of it."""


def training_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield every conflict of a job that trains."""
    yield from _length_conflicts(job)
    yield from _optimizer_conflicts(job.train)
    yield from _schedule_conflicts(job)
    yield from _loss_conflicts(job)
    yield from _crop_conflicts(job)
    yield from _mixture_conflicts(job)
    yield from pipeline_conflicts(job)
    yield from _degradation_conflicts(job)
    yield from _batch_conflicts(job)
    yield from _worker_conflicts(job.workers)
    yield from _speed_conflicts(job)
    yield from _metric_conflicts(job)
    if job.data.pack:
        yield from _data_pack_conflicts(job.data.pack, job.data.manifests)
    if job.promote.paper_row is not None:
        yield from _paper_row_conflicts(job.promote.paper_row)
    yield from _class_conflicts(job.model)
    yield from _mirage_conflicts(job) if job.model.class_ is None else _user_model_conflicts(job)


def _length_conflicts(job: Training) -> Iterator[Conflict]:
    if (job.train.epochs is None) == (job.train.steps is None):
        yield "train.steps", "set exactly one of train.epochs and train.steps."
    if job.train.schedule == "release" and job.train.steps is not None:
        yield (
            "train.schedule",
            "schedule `release` counts epochs. Set train.epochs, or train.schedule=cosine.",
        )


def _optimizer_conflicts(train: Train) -> Iterator[Conflict]:
    yield from _without_meaning(train, "optimizer", _ONLY_FOR_OPTIMIZERS)
    if train.optimizer == "sgd" and train.nesterov and not train.momentum:
        yield "train.nesterov", "needs a momentum above 0. Set train.momentum, or nesterov: false."


def _schedule_conflicts(job: Training) -> Iterator[Conflict]:
    train = job.train
    yield from _without_meaning(train, "schedule", _ONLY_FOR_SCHEDULES)
    peak = train.learning_rate * lr_scale(train.lr_scaling, train.global_batch_size)
    lowest = {"train.minimum_rate": train.minimum_rate} | {
        f"train.cycles.{i}.minimum_rate": cycle.minimum_rate for i, cycle in enumerate(train.cycles)
    }
    for key, rate in lowest.items():
        if rate > peak:
            yield key, f"{rate:g} is above the learning rate, {peak:g}. Lower it."
    if train.schedule in ("restarts", "multistep") and train.steps is None:
        yield (
            "train.schedule",
            f"schedule {train.schedule} counts steps. Set train.steps instead of train.epochs.",
        )
    elif train.schedule == "restarts":
        length = train.warmup_steps + sum(cycle.steps for cycle in train.cycles)
        if length != train.steps:
            warmup = f"{train.warmup_steps:,} steps of warm-up and " if train.warmup_steps else ""
            yield (
                "train.cycles",
                f"{warmup}{len(train.cycles)} cycles have {length:,} steps together, and the training has "
                f"{train.steps:,}. Make them equal.",
            )
    elif train.schedule == "multistep":
        ends = [train.warmup_steps, *train.milestones, train.steps or 0]
        if not train.milestones or ends != sorted(set(ends)):
            yield (
                "train.milestones",
                f"{list(train.milestones)} must be steps in ascending order, after train.warmup_steps "
                f"({train.warmup_steps:,}) and before the end ({train.steps:,}).",
            )
    if train.schedule == "plateau" and train.steps and job.validation.every_steps >= train.steps:
        yield (
            "train.schedule",
            "plateau needs validations before the end. Set validation.every_steps below train.steps "
            f"({train.steps:,}), or another schedule.",
        )


def _without_meaning(
    train: Train, chooser: str, only_for: Mapping[str, tuple[str, ...]]
) -> Iterator[Conflict]:
    """Yield keys that were set and have no meaning for the chosen optimiser or schedule."""
    chosen = getattr(train, chooser)
    for key, those in only_for.items():
        if chosen not in those and getattr(train, key) != Train.model_fields[key].get_default():
            yield (
                f"train.{key}",
                f"is for {' and '.join(those)} only, not for train.{chooser} {chosen}. Remove it.",
            )


_ONLY_FOR_OPTIMIZERS = {"momentum": ("sgd",), "nesterov": ("sgd",)}
_ONLY_FOR_SCHEDULES = {
    "minimum_rate": ("cosine", "plateau"),
    "cycles": ("restarts",),
    "milestones": ("multistep",),
    "rate_factor": ("multistep", "plateau"),
    "patience": ("plateau",),
}
"""Key of `train` -> the optimisers or schedules that it has a meaning for."""


def _loss_conflicts(job: Training) -> Iterator[Conflict]:
    loss = job.loss
    if not any(loss.terms().values()):
        yield "loss", "every term has weight 0, so nothing is learned. Give one a weight."
    if loss.perceptual_weight and loss.perceptual_network is None:
        yield (
            "loss.perceptual_network",
            "is missing: loss.perceptual_weight needs a file with the weights of a VGG-16 or VGG-19.",
        )
    smallest = min((stage.pixels for stage in crop_stages.declared(job)), default=_WINDOW)
    for key in ("ssim_weight", "perceptual_weight"):
        if getattr(loss, key) and smallest < _WINDOW:
            yield f"loss.{key}", f"needs crops of at least {_WINDOW} pixels; data.crop_pixels has {smallest}."


_WINDOW = 16
"""Smallest crop that SSIM's window of 11 pixels, and the four poolings of a VGG, fit into."""


def _crop_conflicts(job: Training) -> Iterator[Conflict]:
    if job.validation.crop_pixels % STRIDE:
        yield "validation.crop_pixels", _not_a_multiple(job.validation.crop_pixels)
    stages = crop_stages.declared(job)
    for stage in stages:
        if stage.pixels % STRIDE:
            yield "data.crop_pixels", _not_a_multiple(stage.pixels)
        if (stage.from_step is None) == (stage.from_epoch is None):
            message = f"the stage of {stage.pixels} pixels needs exactly one of from_step and from_epoch."
            yield "data.crop_pixels", message
    if not stages or stages[0].from_step or stages[0].from_epoch:
        yield "data.crop_pixels", "the first stage must start at step 0: set from_step: 0."
    needs_epochs = job.train.steps is None or job.train.schedule == "release"
    if needs_epochs and set(crop_stages.batches(job)) != {job.train.global_batch_size}:
        yield (
            "data.crop_pixels",
            "stages with their own batch sizes have no epochs of equal steps. Set train.steps and a train.schedule by "
            "steps, such as cosine.",
        )


def _mixture_conflicts(job: Training) -> Iterator[Conflict]:
    weights = job.data.weights
    if weights is None and job.data.samples_per_epoch is not None:
        yield "data.samples_per_epoch", "is the length of an epoch with data.weights. Set data.weights too."
    if weights is not None and set(weights) != set(job.data.mixture):
        unmatched = ", ".join(sorted(set(weights) ^ set(job.data.mixture)))
        yield (
            "data.weights",
            f"must name the same degradations as data.mixture; {unmatched} is in only one of them.",
        )
    if job.data.shuffle_window is not None and job.data.sampling == "replacement":
        yield "data.shuffle_window", "has no meaning with sampling: replacement. Remove it."


def _degradation_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield names of degradations that nothing can have: own names are those of own pairs and of pipelines."""
    pack = job.data.pack
    if pack is not None and pack.degradation in job.degradations:
        yield (
            f"degradations.{pack.degradation}",
            "is also the name of the packed pairs. Give one another name.",
        )
    if job.setting == "own" and pack is None:
        return  # the packed data says which names exist
    pairs = {pack.degradation} if pack is not None and pack.source == "pairs" else set()
    own = pairs.union(job.degradations)
    named = {
        "data.mixture": job.data.mixture,
        "evaluate.degradations": job.evaluate.degradations,
        "example.degradation": [job.example.degradation] if job.example else [],
    }
    for key, names in named.items():
        for name in names:
            if name not in own.union(DEGRADATIONS):
                near = difflib.get_close_matches(name, [*filter(None, own), *DEGRADATIONS], n=1)
                hint = f' Did you mean "{near[0]}"?' if near else ""
                yield (
                    key,
                    f'"{name}" is neither a known degradation ({", ".join(DEGRADATIONS)}) nor that of own pairs '
                    f"or of a pipeline: name those in data.pack or degradations. Packed ones need setting: own.{hint}",
                )


def _batch_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield conflicts between batch, micro-batches, workers and the loss."""
    micro_batches = job.train.micro_batches
    batches = {job.train.global_batch_size, *crop_stages.batches(job)}
    for batch in sorted(batches):
        if batch % micro_batches:
            yield "train.micro_batches", f"{micro_batches} does not divide the global batch of {batch}."
    smallest = min(crop_stages.batches(job), default=job.train.global_batch_size) // micro_batches
    raised = "train.global_batch_size"
    if smallest < job.train.global_batch_size // micro_batches:
        raised = "the smallest batch of data.crop_pixels"
    if job.workers.max > smallest:
        yield (
            "workers.max",
            f"{job.workers.max} workers cannot share a micro-batch of {smallest} images: each needs one. "
            f"Set workers.max to at most {smallest}, or raise {raised}.",
        )
    if job.loss.spd_weight and smallest < 2:
        yield (
            "loss.spd_weight",
            "the SPD term contrasts the images of a micro-batch and vanishes with one image. "
            f"Raise {raised} or set loss.spd_weight to 0.",
        )


def _speed_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield conflicts between precision, compilation, engine and device."""
    if job.train.precision in ("bf16", "fp16") and job.workers.gpus == 0 and job.recipe != "fast":
        yield (
            "train.precision",
            f"{job.train.precision} on CPU workers is slower than fp32. Set train.precision=fp32 or workers.gpus.",
        )
    if job.train.compile != "none" and job.engine.name == "deepspeed" and job.engine.zero_stage == 3:
        yield (
            "train.compile",
            "compiled blocks need whole weights, and ZeRO stage 3 divides them among workers. Set it to none, or "
            "engine.zero_stage to at most 2.",
        )


def _metric_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield a conflict where validation does not compute the metric of the best checkpoints."""
    quantities = ("psnr", "ssim", "input_psnr", "input_ssim", "gain", "baseline_psnr")
    rows = (*job.evaluate.degradations, "average")
    known = {METRIC, *(f"val/{job.setting}/{row}/{quantity}" for row in rows for quantity in quantities)}
    if job.checkpoint.metric not in known:
        near = difflib.get_close_matches(job.checkpoint.metric, sorted(known), 1, 0.0)[0]
        yield (
            "checkpoint.metric",
            f"validation does not compute {job.checkpoint.metric}. Did you mean {near}?",
        )


def _paper_row_conflicts(row: str) -> Iterator[Conflict]:
    # Imported here: the tables know every dataset, which takes a while to import.
    from orchestrator.paper.tables import published_averages

    try:
        published_averages(row)
    except EvaluationError as error:
        yield "promote.paper_row", str(error)


def _mirage_conflicts(job: Training) -> Iterator[Conflict]:
    if job.loss.auxiliary_weights:
        yield (
            "loss.auxiliary_weights",
            "weights terms of another network: set model.class and model.adapter, or remove it.",
        )
    if job.model.alignment == "none" and job.loss.spd_weight:
        yield (
            "loss.spd_weight",
            f"{job.loss.spd_weight:g}, but model.alignment: none leaves nothing to align. Set it to 0.",
        )
    try:
        job.model.build()
    except ValueError as error:
        yield "model", str(error)


def _user_model_conflicts(job: Training) -> Iterator[Conflict]:
    """Yield keys that need a MIRAGE: the SPD term, its sizes and its blocks."""
    other = "and model.class is another network"
    if job.loss.spd_weight:
        yield (
            "loss.spd_weight",
            f"{job.loss.spd_weight:g}, but the SPD term needs a MIRAGE, {other}. Set it to 0.",
        )
    # The recipe sets shallow_tap; batch_norm is also about the BatchNorm layers of other networks.
    for key in sorted(set(job.model.changes()) - {"shallow_tap", "batch_norm"}):
        yield f"model.{key}", f"is a key of MIRAGE, {other}. Remove it."
    for key in ("activation_checkpointing", "compile"):
        if getattr(job.train, key) != "none":
            yield f"train.{key}", f"needs the blocks of a MIRAGE, {other}. Set it to none."
    terms = {"total", *job.loss.model_copy(update={"auxiliary_weights": {}}).terms()}
    for name in sorted(terms & set(job.loss.auxiliary_weights)):
        yield (
            f"loss.auxiliary_weights.{name}",
            "is the name of another term. Call the network's own term otherwise.",
        )
    if job.loss.auxiliary_weights and job.model.adapter is None:
        yield (
            "loss.auxiliary_weights",
            "weights terms that model.adapter returns, and model.adapter is not set.",
        )
    for stage in crop_stages.declared(job):
        if stage.pixels % job.model.stride:
            yield "data.crop_pixels", f"{stage.pixels} is not a multiple of model.stride, {job.model.stride}."


def packing_conflicts(job: PackJob) -> Iterator[Conflict]:
    """Yield every conflict of a job that packs."""
    yield from _data_pack_conflicts(job.data.pack, job.data.manifests)


def _data_pack_conflicts(pack: Pack, manifests: tuple[str, ...]) -> Iterator[Conflict]:
    yield from ((f"data.pack.{key}", message) for key, message in source_conflicts(pack))
    if len(manifests) != 1:
        yield "data.manifests", "must name exactly one dataset when data.pack describes how to make it."


def source_conflicts(pack: Pack) -> Iterator[Conflict]:
    """Yield every conflict within a section `data.pack`; keys are relative to it."""
    if pack.source != "photographs" and not pack.root:
        what = "clean photographs" if pack.source in ("clean", "synthetic") else "the raw data"
        yield "root", f"is missing: name the folder of {what}."
    if pack.source == "pairs":
        if pack.degradation in SIGMA:
            yield (
                "degradation",
                f"is {pack.degradation}, which is added in training. Pairs need another name.",
            )
        for key in ("degraded", "clean", "degradation"):
            if getattr(pack, key) is None:
                yield (
                    key,
                    "is missing: pairs need patterns of the degraded and clean files, and the degradation.",
                )
        yield from _division_conflicts(pack)
    elif pack.held_out and pack.held_out_share:
        yield "held_out_share", "and held_out both divide the photographs. Remove one."
    for key, sources in _ONLY_FOR.items():
        if pack.source not in sources and getattr(pack, key) != Pack.model_fields[key].get_default():
            yield key, f"is for {' and '.join(sources)} only, not for {pack.source}."


def _division_conflicts(pack: Pack) -> Iterator[Conflict]:
    """Yield conflicts between the ways to divide pairs into those for training and those for evaluation."""
    has_split = any(re.search(r"\{split[:}]", pattern or "") for pattern in (pack.degraded, pack.clean))
    if has_split and pack.held_out_share:
        yield (
            "held_out_share",
            "is a share of random pairs, but {split} in a pattern divides them. Remove one.",
        )
    if has_split and pack.held_out:
        yield "held_out", "names pairs for evaluation, but {split} in a pattern divides them. Remove one."
    if pack.held_out and pack.held_out_share:
        yield "held_out_share", "and held_out both divide the pairs. Remove one."


_ONLY_FOR = {
    "held_out": ("clean", "synthetic", "pairs"),
    "held_out_share": ("clean", "pairs"),
    **dict.fromkeys(("degraded", "clean", "degradation"), ("pairs",)),
    "group": ("cdd11",),
    "crops": ("gopro",),
}
"""Key of `data.pack` -> the sources that it has a meaning for."""


def evaluation_conflicts(job: EvaluateJob) -> Iterator[Conflict]:
    """Yield every conflict of a job that evaluates."""
    yield from pipeline_conflicts(job)
    yield from _worker_conflicts(job.workers)
    if job.model.class_ is None and job.model.weights is None:
        yield "model.weights", "is missing: name the model, for example models:/NAME@candidate or a file."
    yield from _class_conflicts(job.model)


def restore_conflicts(job: RestoreJob) -> Iterator[Conflict]:
    """Yield every conflict of a job that restores."""
    yield from _worker_conflicts(job.workers)
    tile, overlap = job.restore.tile, job.restore.overlap
    if tile < STRIDE or tile % STRIDE:
        yield "restore.tile", _not_a_multiple(tile)
    elif not 0 <= overlap <= tile // 2:
        yield "restore.overlap", f"{overlap} must be from 0 to half of the tile, {tile // 2}."


def _class_conflicts(model: UserModel) -> Iterator[Conflict]:
    if model.class_ is None:
        for key in ("path", "arguments", "adapter", "tile"):
            if getattr(model, key):
                yield f"model.{key}", "needs model.class. Set that, or remove this."
    if model.tile and model.tile % model.stride:
        yield "model.tile", f"{model.tile} is not a multiple of model.stride, {model.stride}."


def _worker_conflicts(workers: WorkerResources) -> Iterator[Conflict]:
    if workers.min > workers.max:
        yield "workers.min", f"{workers.min} is more than workers.max, {workers.max}."


def _not_a_multiple(pixels: int) -> str:
    low = pixels - pixels % STRIDE
    nearest = f"{low} or {low + STRIDE}" if low else str(STRIDE)
    return f"{pixels} is not a multiple of {STRIDE}, the model's total stride. Nearest: {nearest}."
