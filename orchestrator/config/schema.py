"""The schema of a training job: every key with its type, range, unit and meaning.

A `Job` is resolved: it contains the values of its recipe, its setting and the defaults. `loader` makes one from a
file, `presets` has the recipes and settings, and `job_schemas` the other kinds of jobs, which share these sections.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    TypeAdapter,
    WithJsonSchema,
)

from shards.sample import DEGRADATIONS, OWN_NAME, OWN_NAME_RULE, is_own_name

if TYPE_CHECKING:
    from mirage import ModelConfig
    from mirage.loss import LossWeights

KnownDegradation = Literal[
    "noise15",
    "noise25",
    "noise50",
    "rain",
    "haze",
    "blur",
    "lowlight",
    "snow",
    "low_haze",
    "low_rain",
    "low_snow",
    "haze_rain",
    "haze_snow",
    "low_haze_rain",
    "low_haze_snow",
    "raindrop",
    "underwater",
    "toled",
    "poled",
]
"""A degradation that can be made, or that a published dataset has."""


def _degradation(name: str) -> str:
    """Return the name of a degradation. Raises ValueError unless it is known or can be an own name."""
    if name in DEGRADATIONS or is_own_name(name):
        return name
    raise ValueError(f"neither a known degradation nor an own name; {OWN_NAME_RULE}")


Degradation = Annotated[
    str,
    AfterValidator(_degradation),
    WithJsonSchema({"anyOf": [{"enum": list(DEGRADATIONS)}, {"type": "string", "pattern": f"^{OWN_NAME}$"}]}),
]
"""A known degradation, or an own name: of own pairs, or of a pipeline in `degradations`."""


def as_tuple(value: Any) -> Any:
    """Return a single name as a tuple of one name."""
    return (value,) if isinstance(value, str) else value


def _require_finite(value: Any) -> Any:
    """Return a value of any shape. Raises ValueError if one of its numbers is infinite or NaN."""
    for number in _numbers(value):
        if not math.isfinite(number):
            raise ValueError(f"{number} is not a finite number")
    return value


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


FiniteAny = Annotated[Any, AfterValidator(_require_finite)]
"""A value of any type, whose numbers are finite."""

Pipelines = dict[str, Any]
"""Name of a degradation -> its steps, which `conflicts` checks, finite numbers too (`shards.degradations.parse`)."""


def _as_int(value: Any) -> Any:
    """Return 100000 for 1.0e+5, as a number of steps may be written; leave everything else to the strict type."""
    return int(value) if type(value) is float and value.is_integer() else value


# Strict: pydantic would take text and true for numbers, and "yes" and 1 for true.
Int = Annotated[int, Strict(), BeforeValidator(_as_int)]
Float = Annotated[float, Strict()]
Bool = Annotated[bool, Strict()]

# The upper bounds leave room for any real use; beyond them arithmetic and system calls would overflow.
Seconds = Annotated[Float, Field(gt=0, le=1e8)]
Hours = Annotated[Float, Field(gt=0, le=1e5)]
Epochs = Annotated[Float, Field(gt=0, le=1e6)]
Gib = Annotated[Float, Field(gt=0, le=1e9)]
Price = Annotated[Float, Field(ge=0, le=1e9)]
Decibel = Annotated[Float, Field(ge=0, le=1000)]
Weight = Annotated[Float, Field(ge=0, le=1e9)]

Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
"""Several names. A single one may be written without brackets."""


Seed = Annotated[Int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


PackSource = Literal[
    "photographs",
    "clean",
    "synthetic",
    "pairs",
    "bsd400-wed",
    "bsd68",
    "urban100",
    "kodak24",
    "rain100l",
    "reside-ots",
    "sots-outdoor",
    "gopro",
    "lol-v1",
    "cdd11",
    "allweather",
    "snow100k-s",
    "snow100k-l",
    "outdoor-rain-test1",
    "raindrop-a",
    "raindrop-b",
    "uieb",
    "toled",
    "poled",
]


SettingName = Literal[
    "dehaze",
    "derain",
    "denoise",
    "3deg",
    "5deg",
    "cdd11-single",
    "cdd11-double",
    "cdd11-triple",
    "cdd11-all",
    "allweather",
    "own",
]
"""A name of `presets.SETTINGS`."""


class Section(BaseModel):
    """A section of a job: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


METRIC = "val/psnr"
"""Validation metric that ranks checkpoints and trials; larger is better."""
CLASS_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""Form of the name of a class: package.module:Class."""


class UserModel(Section):
    """A user-defined network instead of MIRAGE."""

    class_: str | None = Field(default=None, alias="class", pattern=CLASS_PATTERN)
    """package.module:Class of a user-defined network; unset: MIRAGE."""
    path: str | None = None
    """Folder to import `class` from; unset: Python's own path."""
    arguments: dict[str, FiniteAny] = Field(default_factory=dict)
    """Keyword arguments of `class`."""
    adapter: str | None = Field(default=None, pattern=CLASS_PATTERN)
    """package.module:function, imported as `class` is, that calls the network: (network, degraded, labels) -> image, or
    (image, {name: loss term}); unset: network(degraded)."""
    stride: Int = Field(default=8, ge=1)
    """Image sides must be multiples of this many pixels for `class`; images are padded by reflection."""
    tile: Int | None = Field(default=None, ge=64)
    """Side in pixels of the tiles in which `class` restores larger images; unset: whole images only."""


class Model(UserModel):
    """The network: a MIRAGE of a size `variant`, whose values the other keys replace, or a user-defined `class`."""

    variant: Literal["tiny", "small", "base"] = "tiny"
    """Published size tiny (T, 6.2 M parameters) or small (S, 9.7 M), or our own size base (28.3 M)."""
    dim: Int | None = Field(default=None, ge=2)
    """Number of channels at full resolution."""
    blocks: tuple[Int, Int, Int, Int] | None = None
    """Number of blocks in encoders 1, 2, 3 and the latent. The decoders have as many as the encoders."""
    refinement_blocks: Int | None = Field(default=None, ge=0)
    """Number of blocks after the last decoder."""
    heads: tuple[Int, Int, Int, Int] | None = None
    """Number of attention heads at each of the four levels."""
    ffn_expansion: Float | None = Field(default=None, gt=0, le=1000)
    """Hidden width of the feed-forward network relative to its input."""
    branch_ratios: tuple[Int, Int, Int] | None = None
    """Ratio of channels between the attention, convolution and MLP branches."""
    drop_path: Float | None = Field(default=None, ge=0, lt=1)
    """Probability of dropping a convolution branch of an image in training."""
    shallow_tap: Literal["encoder1", "patch_embed"] | None = None
    """Shallow features of the SPD term: encoder1 (the authors' code) or patch_embed (the paper's appendix C.3)."""
    batch_norm: Literal["synced", "local"] | None = None
    """Batch-norm statistics over the global batch (synced), or per worker as in the authors' code (local)."""
    kernels: Literal["dynamic", "static"] | None = None
    """7x7 kernels generated from each image (dynamic), or learned (static; the paper's ablation)."""
    fusion: Literal["gated", "concatenation"] | None = None
    """How the branches are combined: by gates, or by concatenation (the paper's ablation)."""
    alignment: Literal["spd", "euclidean", "log_euclidean", "geodesic", "none"] | None = None
    """Space in which the contrastive term compares features. `none` removes its heads; it needs loss.spd_weight 0."""

    def build(self) -> ModelConfig:
        """Return the `mirage.ModelConfig` of this section. Raises ValueError when it is impossible."""
        from dataclasses import replace

        from mirage import ModelConfig

        base: ModelConfig = getattr(ModelConfig, self.variant)()
        return replace(base, **self.changes())

    def changes(self) -> dict[str, Any]:
        """Return the keys that replace a value of the variant."""
        own = set(UserModel.model_fields) | {"variant"}
        return self.model_dump(exclude=own, exclude_none=True)

    @property
    def label(self) -> str:
        """Return the name of the network for people: `MIRAGE custom` where the job changes the size of its variant."""
        size = "custom" if set(self.changes()) - {"shallow_tap"} else self.variant
        return self.class_ or f"MIRAGE {size}"


MIRAGE_KEYS = frozenset(Model.model_fields) - frozenset(UserModel.model_fields) - {"batch_norm"}
"""Keys of the section `model` that only a MIRAGE has. `batch_norm` is also about the layers of other networks."""


TermName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,49}$")]
"""Name of a loss term: lower-case letters, digits and _."""


class LossConfig(Section):
    """Weights of the terms of the loss. A term of weight 0 is not computed."""

    l1_weight: Weight = 1.0
    """Weight of the L1 term."""
    fourier_weight: Weight = 0.1
    """Weight of the Fourier term."""
    spd_weight: Weight = 0.01
    """Weight of the SPD contrastive term."""
    temperature: Float = Field(default=0.1, ge=1e-6, le=1e6)
    """Temperature of the contrastive term."""
    charbonnier_weight: Weight = 0.0
    """Weight of the Charbonnier term, the mean of sqrt(difference^2 + 0.001^2)."""
    mse_weight: Weight = 0.0
    """Weight of the mean squared error."""
    psnr_weight: Weight = 0.0
    """Weight of NAFNet's term, the negative PSNR in dB of each image."""
    ssim_weight: Weight = 0.0
    """Weight of 1 - SSIM, with a Gaussian window of 11 pixels."""
    edge_weight: Weight = 0.0
    """Weight of MPRNet's edge term, the Charbonnier distance of the Laplacians."""
    perceptual_weight: Weight = 0.0
    """Weight of the perceptual term, the L1 distance of VGG features. It needs `perceptual_network`."""
    perceptual_network: str | None = None
    """File with the weights of a VGG-16 or VGG-19 as torchvision publishes them (.pth or .safetensors). It is copied
    into the run's folder when the run starts."""
    perceptual_layers: dict[Annotated[str, Field(pattern=r"^conv[1-5]_[1-4]$")], Weight] = Field(
        default={"conv5_4": 1.0}, min_length=1
    )
    """Weight of each VGG layer, whose features are taken before its ReLU: conv1_1 to conv5_4 (VGG-16: conv5_3)."""
    auxiliary_weights: dict[TermName, Weight] = Field(default_factory=dict)
    """Weight of each loss term that model.adapter returns."""

    def build(self) -> LossWeights:
        """Return the weights for `mirage.loss`."""
        from mirage.loss import LossWeights

        return LossWeights(**self._weights(), temperature=self.temperature)

    def terms(self) -> dict[str, float]:
        """Return the weight of each term by name: L1, Fourier and SPD, and others that have a weight."""
        weights = {name: w for name, w in self._weights().items() if w or name in BASE_TERMS}
        return weights | self.auxiliary_weights

    def describe(self) -> str:
        """Return the terms that have a weight, for people."""
        weights = self.terms().items()
        return " + ".join(f"{weight:g} {_TITLES.get(name, name)}" for name, weight in weights if weight)

    def _weights(self) -> dict[str, float]:
        keys = (key for key in type(self).model_fields if key.endswith("_weight"))
        return {key.removesuffix("_weight"): getattr(self, key) for key in keys}


_TITLES = {
    **{"l1": "L1", "fourier": "Fourier", "spd": "SPD", "charbonnier": "Charbonnier", "mse": "MSE"},
    **{"psnr": "negative PSNR", "ssim": "(1 - SSIM)", "edge": "edge", "perceptual": "perceptual"},
}
BASE_TERMS = ("l1", "fourier", "spd")
"""Terms that are always logged."""


class Pack(Section):
    """How to pack the data, if `data.manifests` does not exist yet."""

    source: PackSource
    """`photographs`: degrade those that ship in Python wheels. `clean`: your own clean photographs as they are.
    `synthetic`: degrade these. `pairs`: your own pairs. Others: published datasets (docs/datasets.md)."""
    root: str | None = None
    """Folder of the raw data (not for `photographs`)."""
    encoding: Literal["fast", "compact", "original"] = "fast"
    """Lossless tiles as QOI (fast) or WebP (compact), or the bytes of the source files (original)."""
    jpeg: Literal["crop", "keep", "tile"] = "crop"
    """Cut JPEG files without loss, so that a crop decodes only its part, keep their bytes, or store them as tiles,
    which take several times the space. Data that was packed with `keep` is used as it is."""
    shard_mib: Int = Field(default=64, ge=1)
    """Approximate size of a shard in MiB."""
    allow_partial: Bool = False
    """Pack what is there, and record what is missing in the manifest."""

    degradations: tuple[KnownDegradation, ...] = ("noise25", "rain", "haze", "blur", "lowlight")
    """Degradations to make (`photographs`, `synthetic`). Noise is added when a sample is read; it is not stored."""
    held_out: Names = ()
    """Photographs for evaluation, by their names without suffix, or @FILE with one name in each line (`clean`,
    `synthetic`, `pairs`)."""
    variants: Int = Field(default=4, ge=1)
    """Random draws of each degradation per training photograph (`photographs`, `synthetic`)."""
    seed: Seed = 0
    """Random seed of the degradations (`photographs`, `synthetic`)."""

    degraded: str | None = None
    """Pattern of the degraded files below `root`, for example input/{key}_*.png (`pairs`). A field {split} in it
    (train, test, val, ...) says which pairs are for evaluation."""
    clean: str | None = None
    """Pattern of the clean files below `root`, for example target/{key}.png (`pairs`)."""
    degradation: Degradation | None = None
    """Degradation of the degraded files (`pairs`): a known one, or an own name."""
    held_out_share: Float = Field(default=0.0, ge=0, le=1)
    """Share of the clean files for evaluation, 0 to 1 (`clean`, `pairs`; without {split} and `held_out`)."""
    licence: str = "not stated"
    """Licence of the photographs, for the manifest (`pairs`, `clean`, `synthetic`)."""

    split: Literal["train", "test", "all"] = "all"
    """Split to pack of a published dataset."""
    group: Literal["single", "double", "triple", "all"] = "all"
    """Degradations to pack of `cdd11`."""
    list_file: str | None = None
    """Official list of training files, one per line, for example hazy_outside.txt of OTS."""
    crops: Bool = False
    """Cut the training frames of `gopro` into 512-pixel crops, 256 apart."""
    exclude_leaked: Bool = False
    """Leave out training scenes that are also test images."""
    expected: dict[str, Int] = {}
    """Part of a published dataset -> its number of pairs, if you packed a subset of it."""


class CropStage(Section):
    """A stage of progressive training: a crop size, and optionally a batch size, from a step or an epoch on."""

    from_step: Int | None = Field(default=None, ge=0)
    """First step of the stage. The first stage starts at 0."""
    from_epoch: Float | None = Field(default=None, ge=0, le=1e6)
    """First epoch of the stage, instead of `from_step`."""
    pixels: Int = Field(ge=8)
    """Side of the crops in pixels."""
    batch: Int | None = Field(default=None, ge=1)
    """Images per step of all workers together; unset: `train.global_batch_size`."""


class Data(Section):
    """The training data and its order."""

    manifests: Annotated[Names, Field(min_length=1)]
    """Packed datasets: URIs, or names below `storage`."""
    pack: Pack | None = None
    """How to pack the dataset if it does not exist yet."""
    mixture: dict[Degradation, Annotated[Int, Field(ge=1)]]
    """Degradation -> repeats of each of its samples in an epoch."""
    weights: dict[Degradation, Annotated[Float, Field(ge=1e-9, le=1e9)]] | None = None
    """Degradation -> its weight in an epoch, instead of the repeats. Any positive numbers."""
    samples_per_epoch: Int | None = Field(default=None, ge=1)
    """Length of an epoch with `weights`; unset: the length that the repeats would give."""
    sampling: Literal["permutation", "replacement"] = "permutation"
    """Draw each sample as often as its repeats say (permutation), or at random (replacement)."""
    tail: Literal["drop", "carry"] = "drop"
    """Samples beyond the last full batch of an epoch: drop them as the authors' code does, or carry them over."""
    shuffle_window: Int | None = Field(default=None, ge=1)
    """Number of shards that samples are drawn from at a time, for data larger than the cache; unset: all."""
    crop_pixels: Annotated[Int, Field(ge=8)] | tuple[CropStage, ...] = 128
    """Side of the square crops in pixels, or a list of stages for progressive training."""
    crop_multiple: Annotated[Literal[16, 1], BeforeValidator(TypeAdapter(Int).validate_python)] = 16
    """Images are centre-cropped to multiples of this before a crop is drawn. 1 is for CDD-11, as in its own loader."""
    margin_pixels: Int = Field(default=0, ge=0, le=128)
    """Pixels around a crop that pipelines see too, so that a blur meets the scene at the border and no mirror image."""
    noise: Literal["release", "float"] = "release"
    """Clip and truncate noisy images to 8 bits as the authors' release does, or keep floats."""
    augmentation: Literal["release", "paper", "none"] = "release"
    """The 7 non-identity flips and rotations of the authors' release, the paper's flips, or none."""
    readers: Int = Field(default=0, ge=0)
    """Data-loading processes per worker. 0 reads in the worker itself."""
    cache_gib: Gib = 20.0
    """Maximum size of each node's shard cache in GiB."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """On a damaged or missing sample, stop the run, or replace it by another one, counted and logged."""
    ledger: Bool = False
    """Write the id of every consumed sample to the run's folder. `mirage ledger` checks it."""


Beta = Annotated[Float, Field(ge=0, lt=1)]


class Cycle(Section):
    """A cycle of schedule `restarts`: a cosine from `weight` times the learning rate down."""

    steps: Int = Field(ge=1, le=10**12)
    """Length in steps."""
    weight: Float = Field(default=1.0, gt=0, le=1e6)
    """Factor of the learning rate above `minimum_rate` in this cycle."""
    minimum_rate: Float = Field(default=0.0, ge=0, le=1e6)
    """Learning rate that the cosine falls to."""


class Train(Section):
    """Length of the training, batch, optimiser, schedule and precision."""

    epochs: Epochs | None = None
    """Length in epochs; set this or `steps`."""
    steps: Int | None = Field(default=None, ge=1, le=10**12)
    """Length in optimiser steps; set this or `epochs`."""
    global_batch_size: Int = Field(default=32, ge=1)
    """Images per step of all workers together."""
    micro_batches: Int = Field(default=1, ge=1)
    """Forward-backward passes per step. Batch-norm statistics and contrastive negatives are those of a micro-batch."""
    optimizer: Literal["adamw", "adam", "sgd", "lion"] = "adamw"
    """Adam with decoupled weight decay (adamw), plain Adam, stochastic gradient descent, or Lion, which needs the
    package lion-pytorch."""
    learning_rate: Float = Field(default=2e-4, gt=0)
    """Highest learning rate of the schedule, before `lr_scaling`."""
    lr_scaling: Literal["fixed", "linear", "sqrt"] = "fixed"
    """Scaling of the learning rate by batch / 32: none (fixed), linear or square root (sqrt)."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay rates of the first and second moments of adamw and adam, or of Lion's update and momentum."""
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    nesterov: Bool = False
    """Use Nesterov's momentum in sgd."""
    weight_decay: Weight = 0.01
    """Weight decay of the optimiser."""
    schedule: Literal["release", "cosine", "restarts", "multistep", "plateau", "constant"] = "release"
    """`release`: as in the authors' release, per epoch, with two epochs at rate 0 and a warm-up. Others go by step.
    `cosine` falls to `minimum_rate`, `restarts` goes through `cycles`. `multistep` multiplies the rate by `rate_factor`
    at each of `milestones`, `plateau` after more than `patience` validations in a row without a higher val/psnr."""
    schedule_epochs: Epochs | None = None
    """Length in epochs of the cosine of schedule `release` (150 in the authors' code, for any `epochs`)."""
    warmup_steps: Int = Field(default=0, ge=0)
    """Number of steps of linear warm-up before any schedule but `release`, which has its own."""
    minimum_rate: Float = Field(default=0.0, ge=0, le=1e6)
    """Learning rate that `cosine` ends at, and that `plateau` does not go below."""
    cycles: tuple[Cycle, ...] = ()
    """Cycles of `restarts`, which follow the warm-up. Together they have as many steps as the training."""
    milestones: tuple[Annotated[Int, Field(ge=1, le=10**12)], ...] = ()
    """Steps, in ascending order, at which `multistep` multiplies the learning rate by `rate_factor`."""
    rate_factor: Float = Field(default=0.1, gt=0, lt=1)
    """Factor of the learning rate at each milestone of `multistep`, and at each plateau."""
    patience: Int = Field(default=5, ge=0)
    """Validations in a row without a higher val/psnr that `plateau` lets pass; the next one reduces the rate."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """tf32 rounds the inputs of matrix products and convolutions on NVIDIA GPUs. bf16 and fp16 compute the model in
    16 bits, fp16 with loss scaling. Weights, loss and optimiser are always fp32, but the network of the perceptual loss
    has convolutions, which tf32 rounds too."""
    clip_norm: Float | None = Field(default=None, gt=0, le=1e30)
    """Maximum gradient norm; larger gradients are scaled down to it."""
    activation_checkpointing: Literal["none", "full_resolution", "all"] = "none"
    """Blocks recomputed in the backward pass: less memory, more time, the same numbers."""
    compile: Literal["none", "blocks"] = "none"
    """Run blocks through torch.compile in training: equal up to rounding, after a long compilation. Where compilation
    is impossible they stay eager, with one warning."""
    cuda_graph: Literal["auto", "off"] = "off"
    """`auto`: on GPUs, record a step as a CUDA graph and replay it, with the same numbers. Where that is impossible
    steps run eagerly, and one line says why. Run `scripts/gpu-check` first: no GPU has run it yet."""
    deterministic: Bool = False
    """Use only bit-reproducible algorithms on GPUs, at some cost of speed. On CPUs steps are always reproducible."""
    ema_decay: Float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average (EMA) of the weights, at most (1 + step) / (10 + step). The
    averaged weights are evaluated and registered instead of the raw ones."""

    @property
    def moments(self) -> tuple[str, ...]:
        """Return the names of what the optimiser keeps for each weight."""
        if self.optimizer == "sgd":
            return ("momentum_buffer",) if self.momentum else ()
        return ("exp_avg",) if self.optimizer == "lion" else ("exp_avg", "exp_avg_sq")


class EngineChoice(Section):
    """Engine that synchronises the workers. Losses are equal up to rounding, so a run may resume with another one."""

    name: Literal["ddp", "deepspeed"] = "ddp"
    """`ddp` is enough for models of this size; `deepspeed` divides the state of larger ones among workers."""
    zero_stage: Int = Field(default=1, ge=0, le=3)
    """What DeepSpeed divides among workers: 0 nothing, 1 optimiser state, 2 also gradients, 3 also weights."""


class WorkerResources(Section):
    """Worker processes of a job and the resources of each."""

    min: Int = Field(default=1, ge=1)
    """Minimum number of workers."""
    max: Int = Field(default=1, ge=1)
    """Maximum number of workers. As many start as the cluster has resources for, at least `min`."""
    gpus: Float = Field(default=0, ge=0, le=1e6)
    """GPUs per worker."""
    cpus: Float = Field(default=1, gt=0, le=1e6)
    """CPUs per worker."""
    startup_timeout_seconds: Seconds = 600
    """Maximum time in seconds to wait for free resources or for autoscaled nodes before the job fails."""
    max_runtime_hours: Hours | None = None
    """Maximum time in hours before the job stops, with its progress saved, so that it can resume."""


class Workers(WorkerResources):
    """Workers that train."""

    images_per_second: Float | None = Field(default=None, ge=1e-6, le=1e9)
    """Training speed of one worker alone in images per second, if you know it, for `mirage plan`."""
    memory_gib: Gib | None = None
    """Memory of one worker in GiB. `mirage plan` warns if the job needs more."""
    gpu_model: Literal["H200", "H100", "A100", "L40S", "L4", "RTX 4090"] | None = None
    """GPU whose datasheet `mirage plan` assumes until a run has measured the speed; by default H100."""

    max_failures: Int = Field(default=3, ge=0)
    """Maximum number of worker failures in a row without a new checkpoint. Each resumes from the newest one."""
    collective_timeout_seconds: Float = Field(default=300, ge=1, le=1e8)
    """Maximum time in seconds that a worker waits for the others in a collective operation. After it one of them counts
    as hung, and all restart. Readers of which nothing comes for half of it are replaced."""
    scale_up_delay_seconds: Seconds = 60
    """Time in seconds for which resources for more workers must be free before the run restarts with more."""


class Prices(Section):
    """Prices, for `mirage plan`, which also takes them from a file: --prices FILE."""

    currency: str = "USD"
    """Currency of all prices."""
    worker_hour: Price | None = None
    """Price of one worker per hour, with its share of a machine."""
    head_hour: Price = 0.0
    """Price of the head node per hour."""
    egress_gib: Price | None = None
    """Price of each GiB read from the store."""


class Checkpoint(Section):
    """When checkpoints are written, and which are kept."""

    every_steps: Int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    keep: Int = Field(default=3, ge=1)
    """Number of newest checkpoints to keep."""
    keep_best: Int = Field(default=1, ge=0)
    """Number of best checkpoints, by `metric`, to keep besides."""
    metric: str = Field(default=METRIC, pattern=r"^val/[a-z0-9_/-]+$")
    """Validation metric: val/psnr, the mean over the degradations, or for example val/5deg/haze/ssim."""
    order: Literal["max", "min"] = "max"
    """Whether larger (max) or smaller (min) values of `metric` are better."""
    keep_hours: Float = Field(default=0.0, ge=0, le=1e6)
    """Age in hours below which every checkpoint is kept."""
    if_all_damaged: Literal["fail", "restart"] = "fail"
    """When no checkpoint of the run is whole: end with an error that names them, or start again at step 0."""
    if_model_changed: Literal["fail", "continue"] = "fail"
    """When the source of `model.class` is not that of the checkpoint: end with an error, or continue with it."""


class ValidationOptions(Section):
    """Validation during training, on centre crops of held-out photographs."""

    every_steps: Int = Field(default=5000, ge=1)
    """Steps between validations."""
    photographs: Int = Field(default=4, ge=1)
    """Number of held-out photographs per degradation."""
    crop_pixels: Int = Field(default=256, ge=8)
    """Side of the centre crops in pixels."""


class Evaluate(Section):
    """Evaluation at the end, on whole held-out photographs."""

    degradations: tuple[Degradation, ...]
    """Degradations to evaluate."""
    protocol: Literal["rgb-crop16", "rgb"] = "rgb-crop16"
    """How PSNR and SSIM are computed (docs/evaluation.md)."""


class Tracking(Section):
    """MLflow tracking."""

    experiment: str
    """Name of the MLflow experiment."""
    uri: str | None = None
    """MLflow tracking URI; unset: the variable MLFLOW_TRACKING_URI, else SQLite in .mirage."""


class Track(Tracking):
    """MLflow tracking, registration and logging of a training run."""

    register_as: Name | None = None
    """Name of the registered model. The new version gets the alias `candidate`."""
    every_steps: Int = Field(default=10, ge=1)
    """Steps between logged metrics."""
    system_metrics_seconds: Seconds = 15
    """Minimum time in seconds between system metrics of a node. They are logged with the other metrics."""
    log: Literal["text", "json"] = "text"
    """Format of the driver's output: text, or one JSON object per event."""
    also: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where metrics and pictures are shown besides MLflow. TensorBoard's files are in the run's folder; W&B is offline
    unless the environment sets WANDB_MODE."""


class Profile(Section):
    """A trace of worker 0 by torch.profiler at each start of the run."""

    steps: Int = Field(default=20, ge=1)
    """Number of steps to trace."""
    skip_first: Int = Field(default=5, ge=0)
    """Number of steps to skip first."""


class Promote(Section):
    """Gates that a model must pass before `mirage promote` moves an alias to it. An unset gate is not checked."""

    margin_db: Decibel = 0.0
    """Minimum gain over the champion in dB, by its lower confidence bound. With 0 the bound must be above 0."""
    max_drop_db: Decibel = 0.1
    """Maximum drop of one degradation on average in dB."""
    reference_db: Decibel | None = None
    """A published average PSNR in dB that is not in the paper's tables."""
    paper_row: str | None = None
    """A row of the paper's tables, TABLE:METHOD, for example T2:MIRAGE-T. `mirage report` prints them."""
    max_below_reference_db: Decibel = 0.3
    """How far the average may be below these two in dB."""
    parity: tuple[Literal["safetensors", "torchscript", "onnx", "release"], ...] = ("torchscript",)
    """Export formats in which the model must compute the same."""
    latency_seconds: Seconds | None = None
    """Maximum time for one image in seconds."""
    memory_gib: Gib | None = None
    """Maximum memory for one image in GiB."""
    side_pixels: Int = Field(default=512, ge=1)
    """Side in pixels of the square image for latency and memory."""


class Example(Section):
    """A held-out photograph that is restored at the end of training and kept as PNG."""

    photograph: str
    """Id of the photograph, or its last part (`Dune` for `degraded/Dune`)."""
    degradation: Degradation
    """Its degradation."""


class Training(Section):
    """The keys of a job that trains a model, and of a sweep, which trains many."""

    name: Name
    """Name of the job and beginning of the names of its runs."""
    recipe: Literal["authors", "paper", "fast"] = "authors"
    """Preset of hyperparameters. `authors` (old name: `release`): those of the authors' code, AdamW at 2e-4 with
    weight decay 0.01, its schedule and augmentation, SPD weight 0.01, fp32. `paper`: those of the paper's text, Adam at
    2e-4, cosine schedule, flips only, SPD weight 0.05, features of the patch embedding, fp32. `fast`: our own, AdamW at
    1e-3 with 500 warm-up steps and a cosine schedule, SPD weight 0.05, bf16, gradient clipping at 1 and EMA 0.999; it
    reproduces no published number. Keys of the job replace those of the recipe. Results state their recipe."""
    setting: SettingName
    """Published benchmark, which sets data.mixture, evaluate.degradations, the protocol and the length. With `own` you
    must set data.mixture, evaluate.degradations and train.steps (or train.epochs) yourself."""
    init_from: str | None = None
    """Initial weights: models:/NAME@ALIAS, a run, or a file. Resolved once, when the run starts."""
    seed: Seed = 0
    """Random seed of weights, sample order, augmentation and noise."""
    storage: str = ".mirage/folder"
    """Storage of relative `manifests` and of runs: s3://bucket[/prefix] or a folder."""
    model: Model = Model()
    loss: LossConfig = LossConfig()
    degradations: Pipelines = Field(default_factory=dict)
    """Name -> steps that degrade clean photographs while they are read (docs/streaming.md)."""
    data: Data
    train: Train = Train()
    engine: EngineChoice = EngineChoice()
    workers: Workers = Workers()
    prices: Prices = Prices()
    checkpoint: Checkpoint = Checkpoint()
    validation: ValidationOptions = ValidationOptions()
    evaluate: Evaluate
    track: Track
    promote: Promote = Promote()
    profile: Profile | None = None
    """Trace the first steps of worker 0 with torch.profiler."""
    example: Example | None = None
    """Restore one held-out photograph at the end of training and keep it as PNG."""


class Job(Training):
    """A job of kind `train`: pack missing data, train, evaluate and register a model."""

    kind: Literal["train"] = "train"
    """Kind of the job."""


NON_IDENTITY_KEYS = frozenset(
    {
        *("engine", "workers", "prices", "track", "storage", "checkpoint", "promote", "profile", "example"),
        *("data.readers", "data.cache_gib", "data.on_corrupt", "data.ledger"),
        *("train.activation_checkpointing", "train.compile", "train.cuda_graph", "train.deterministic"),
    }
)
"""Keys that change where and how fast a job runs, but not what it computes. They are not part of a run's identity."""
LATER_KEYS = (
    *("degradations", "data.margin_pixels", "model.adapter", "loss.auxiliary_weights"),
    *(f"loss.{name}_weight" for name in ("charbonnier", "mse", "psnr", "ssim", "edge", "perceptual")),
    *("loss.perceptual_network", "loss.perceptual_layers"),
    *("train.momentum", "train.nesterov", "train.minimum_rate", "train.cycles", "train.milestones"),
    *("train.rate_factor", "train.patience"),
)
"""Keys that are no part of a run's identity at their default, so that runs from before these keys keep theirs."""
