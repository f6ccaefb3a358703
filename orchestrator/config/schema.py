"""The schema of a training job: every key that its file may hold, with its unit, range and meaning.

A `Job` is fully resolved: recipe, setting and defaults are already in it, so it says all that a run does. How a
file becomes one is in `jobfile`; what the named recipes and settings stand for is in `recipes`; the other kinds of
jobs, which share these sections, are in `kinds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from mirage import ModelConfig
    from mirage.loss import LossWeights

Degradation = Literal[
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


def as_tuple(value: Any) -> Any:
    """Return a name that stands alone as a list of one."""
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
"""Several names; one alone may be written without brackets."""


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]


PackSource = Literal[
    "photographs",
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
"""A name of `recipes.SETTINGS`."""


class Section(BaseModel):
    """A part of a job: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True
    )


CLASS_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""How a class is named: package.module:Class."""


class UserModel(Section):
    """A network of anybody's, in place of a MIRAGE."""

    class_: str | None = Field(default=None, alias="class", pattern=CLASS_PATTERN)
    """package.module:Class of another network; unset: a MIRAGE."""
    path: str | None = None
    """Folder that `class` is imported from; unset: what Python finds by itself."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of `class`."""
    stride: int = Field(default=8, ge=1)
    """Sides that `class` takes are multiples of this many pixels; images are continued by reflection up to them."""
    tile: int | None = Field(default=None, ge=64)
    """Side in pixels of the tiles in which `class` restores a larger image; unset: whole images only."""


class Model(UserModel):
    """The network. `variant` names a published size; any other key given replaces that size's value.

    With `class` it is another network, and the keys of a MIRAGE are not given.
    """

    variant: Literal["tiny", "small", "base"] = "tiny"
    """Published size, tiny (T, 6.2 M parameters) or small (S, 9.7 M), or ours of the peers' size, base (28.3 M)."""
    dim: int | None = Field(default=None, ge=2)
    """Embedding width: channels at full resolution."""
    blocks: tuple[int, int, int, int] | None = None
    """Blocks in encoder 1, 2, 3 and the latent; the decoders mirror the encoders."""
    refinement_blocks: int | None = Field(default=None, ge=0)
    """Blocks after the last decoder."""
    heads: tuple[int, int, int, int] | None = None
    """Attention heads per level."""
    ffn_expansion: float | None = Field(default=None, gt=0)
    """Hidden width of the feed-forward network over its input."""
    branch_ratios: tuple[int, int, int] | None = None
    """Attention : convolution : MLP shares of the channels."""
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    """Share of images for which a convolution branch is dropped in training."""
    shallow_tap: Literal["encoder1", "patch_embed"] | None = None
    """Where the SPD term looks at shallow features: the release's code or the paper's appendix C.3."""
    batch_norm: Literal["synced", "local"] | None = None
    """Statistics over the global batch, or over each worker's own share as the release does."""
    kernels: Literal["dynamic", "static"] | None = None
    """7x7 kernels generated from each image, or learned ones (the paper's ablation)."""
    fusion: Literal["gated", "concatenation"] | None = None
    """How the branches meet: each opens the others' gates, or side by side (the paper's ablation)."""
    alignment: Literal["spd", "euclidean", "log_euclidean", "geodesic", "none"] | None = None
    """What contrastive learning compares; `none` (with spd_weight 0) leaves its heads out."""

    def build(self) -> ModelConfig:
        """Return the `mirage.ModelConfig` this section describes; ValueError when it is impossible."""
        from dataclasses import replace

        from mirage import ModelConfig

        base: ModelConfig = getattr(ModelConfig, self.variant)()
        return replace(base, **self.changes())

    def changes(self) -> dict[str, Any]:
        """Return the given keys that replace a value of the variant's."""
        own = set(UserModel.model_fields) | {"variant"}
        return self.model_dump(exclude=own, exclude_none=True)


class LossConfig(Section):
    """Weights of the combined loss: L1 + Fourier + SPD contrastive."""

    l1_weight: float = Field(default=1.0, ge=0)
    fourier_weight: float = Field(default=0.1, ge=0)
    spd_weight: float = Field(default=0.01, ge=0)
    temperature: float = Field(default=0.1, gt=0)
    """Of the contrastive term."""

    def build(self) -> LossWeights:
        """Return the weights as `mirage.loss` takes them."""
        from mirage.loss import LossWeights

        return LossWeights(
            l1=self.l1_weight, fourier=self.fourier_weight, spd=self.spd_weight, temperature=self.temperature
        )


class Pack(Section):
    """How to pack the data when no manifest is at `data.manifests` yet."""

    source: PackSource
    """`photographs`: those that ship in Python wheels. `synthetic`: degrade a folder of clean photographs. `pairs`:
    a folder of pairs of your own. Any other: that published dataset; docs/datasets.md has what is expected."""
    root: str | None = None
    """Folder of the raw data (not for `photographs`)."""
    encoding: Literal["fast", "compact", "original"] = "fast"
    """Lossless tiles, QOI (fast) or WebP (compact), or the bytes of the source files."""
    jpeg: Literal["keep", "tile"] = "keep"
    """Whether JPEG sources keep their bytes, or become tiles, which take several times the room."""
    shard_mib: int = Field(default=64, ge=1)
    """Size at which a shard is closed, about."""
    allow_partial: bool = False
    """Pack what is there; what is missing is recorded in the manifest."""

    degradations: tuple[Degradation, ...] = ("noise25", "rain", "haze", "blur", "lowlight")
    """Which degradations to make (`photographs`, `synthetic`). Noise is drawn when a sample is read, never stored."""
    held_out: Names = ()
    """Photographs kept for evaluation, by their names without suffix (`synthetic`)."""
    variants: int = Field(default=4, ge=1)
    """Different draws of each degradation per training photograph (`photographs`, `synthetic`)."""
    seed: Seed = 0
    """Of the synthetic degradations."""

    degraded: str | None = None
    """Pattern of the degraded files below `root` (`pairs`): input/{key}_*.png."""
    clean: str | None = None
    """Pattern of the clean files below `root` (`pairs`): target/{key}.png."""
    degradation: Degradation | None = None
    """What harmed the degraded files (`pairs`)."""
    held_out_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the clean files kept for evaluation (`pairs`)."""
    licence: str = "not stated"
    """Of the photographs (`pairs`, `synthetic`); it is written into the manifest."""

    split: Literal["train", "test", "all"] = "all"
    """Which split of a published dataset."""
    group: Literal["single", "double", "triple", "all"] = "all"
    """Which degradations of `cdd11`."""
    list_file: str | None = None
    """File with the official list of training files, one per line, for example hazy_outside.txt of OTS."""
    crops: bool = False
    """Cut the training frames of `gopro` into crops of 512, 256 apart."""
    exclude_leaked: bool = False
    """Leave out training scenes that are test images."""
    expected: dict[str, int] = {}
    """Pairs of each part of a published dataset instead of the published number, for a subset made on purpose."""


class CropStage(Section):
    """From one step or epoch on, crops of another size, and a batch of another size with them."""

    from_step: int | None = Field(default=None, ge=0)
    from_epoch: float | None = Field(default=None, ge=0)
    """Give this or `from_step`; the first stage starts at 0."""
    pixels: int = Field(ge=8)
    batch: int | None = Field(default=None, ge=1)
    """Images per step over all workers; unset: `train.global_batch_size`."""


class Data(Section):
    """What is trained on, and in which order."""

    manifests: Annotated[Names, Field(min_length=1)]
    """Packed datasets: URIs, or names below `storage`."""
    pack: Pack | None = None
    mixture: dict[Degradation, Annotated[int, Field(ge=1)]]
    """Degradation -> how many times each of its samples comes in an epoch."""
    weights: dict[Degradation, Annotated[float, Field(gt=0)]] | None = None
    """Degradation -> its share of an epoch, in place of the repeats; any positive numbers."""
    samples_per_epoch: int | None = Field(default=None, ge=1)
    """Length of an epoch that is shared by weights; unset: what the repeats would give."""
    sampling: Literal["permutation", "replacement"] = "permutation"
    tail: Literal["drop", "carry"] = "drop"
    """The samples that do not fill the last batch of an epoch: dropped as the release does, or carried over."""
    shuffle_window: int | None = Field(default=None, ge=1)
    """For data larger than the cache: shards that samples come from at a time. Unset: from all of them."""
    crop_pixels: Annotated[int, Field(ge=8)] | tuple[CropStage, ...] = 128
    """Side of the square crops, or a list of stages for progressive training."""
    crop_multiple: Literal[16, 1] = 16
    """Images are cut to multiples of this, centred, before a crop is drawn; the CDD-11 loader uses them whole."""
    noise: Literal["release", "float"] = "release"
    """Noisy images are clipped and truncated to 8 bits as the release does, or neither."""
    augmentation: Literal["release", "paper", "none"] = "release"
    """One of the release's 7 non-identity dihedral transforms, the paper's flips, or none."""
    readers: int = Field(default=0, ge=0)
    """Data-loading subprocesses per worker; 0 reads in the worker itself."""
    cache_gib: float = Field(default=20.0, gt=0)
    """Bound of each node's shard cache."""
    on_corrupt: Literal["fail", "skip"] = "fail"
    """A damaged or missing sample stops the run, or another one stands in for it, counted and logged."""
    ledger: bool = False
    """Write the id of every sample that is consumed to the run's folder: `mirage ledger` checks it."""


class Train(Section):
    """How long and how the weights move."""

    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    """Optimiser updates; give this or `epochs`."""
    global_batch_size: int = Field(default=32, ge=1)
    """Images per step over all workers."""
    micro_batches: int = Field(default=1, ge=1)
    """Forward-backward passes per step. Belongs to the job: statistics and negatives are the micro-batch's."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(default=2e-4, gt=0)
    lr_scaling: Literal["fixed", "linear", "sqrt"] = "fixed"
    """What the rate becomes with a batch other than the published 32: itself, times batch / 32, or its root."""
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["release", "cosine"] = "release"
    """`release`: its epoch-wise warm-up and cosine, including the two epochs at rate 0; `cosine`: per step."""
    schedule_epochs: float | None = Field(default=None, gt=0)
    """Length that the release's cosine is drawn over (150 in its code, whatever `epochs` says)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Linear warm-up of the `cosine` schedule."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """tf32 rounds what goes into matrix products and convolutions on NVIDIA GPUs; bf16 and fp16 compute the model in
    16 bits, fp16 with a scaled loss. Weights, loss and optimiser are fp32 in all."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest gradient norm; longer gradients are scaled down."""
    activation_checkpointing: Literal["none", "full_resolution", "all"] = "none"
    """Blocks that run again in the backward pass: less memory for more time, the same numbers."""
    compile: Literal["none", "blocks"] = "none"
    """Whether training steps run blocks through torch.compile: the same numbers to rounding, after long compiling.
    Where nothing can be compiled they stay eager, after one warning."""
    deterministic: bool = False
    """On GPUs, take only algorithms that repeat to the bit, at some speed; on CPUs steps repeat anyway."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Exponential moving average of the weights per step; evaluated and registered instead of the raw ones."""


class EngineChoice(Section):
    """Who synchronises the workers. The losses are the same to rounding, so a run may go on under another one."""

    name: Literal["ddp", "deepspeed"] = "ddp"
    """A model of this size needs no more than `ddp`; `deepspeed` is for larger ones and for those who measure it."""
    zero_stage: int = Field(default=1, ge=0, le=3)
    """What DeepSpeed's workers share out: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 weights too."""


class WorkerResources(Section):
    """Processes that share the work of a job, and what each one holds."""

    min: int = Field(default=1, ge=1)
    max: int = Field(default=1, ge=1)
    """As many workers start as the cluster has room for, from `min` to `max`."""
    gpus: float = Field(default=0, ge=0)
    cpus: float = Field(default=1, gt=0)
    startup_timeout_seconds: float = Field(default=600, gt=0)
    """How long to wait for resources that other jobs hold, or for nodes that come on demand, before giving up."""
    max_runtime_hours: float | None = Field(default=None, gt=0)
    """Longest time the work may take before it is stopped, in such a way that it can go on later."""


class Workers(WorkerResources):
    """Training processes."""

    images_per_second: float | None = Field(default=None, gt=0)
    """What one worker alone trains of this job, if you know: `mirage plan` then needs no earlier run and no guess."""
    memory_gib: float | None = Field(default=None, gt=0)
    """What one worker may hold: `mirage plan` warns of more, and leaves such shapes out."""

    max_failures: int = Field(default=3, ge=0)
    """Worker deaths without a new checkpoint between them that are survived by resuming from the newest one."""
    collective_timeout_seconds: float = Field(default=300, ge=1)
    """Longest time that a worker waits for the others in one exchange; then one is wedged, and all start anew."""
    scale_up_delay_seconds: float = Field(default=60, gt=0)
    """How long there must have been room for more workers, up to `max`, before the run is handed over to more."""


class Prices(Section):
    """What a run is charged. `mirage plan --prices FILE` takes the same keys from a file beside a cluster's."""

    currency: str = "USD"
    worker_hour: float | None = Field(default=None, ge=0)
    """One worker with its share of a machine."""
    head_hour: float = Field(default=0.0, ge=0)
    """What runs beside the workers for as long: the head."""
    egress_gib: float | None = Field(default=None, ge=0)
    """Each GiB that leaves the store."""


class Checkpoint(Section):
    """When the run is written down."""

    every_steps: int = Field(default=500, ge=1)
    keep: int = Field(default=3, ge=1)
    """Newest checkpoints kept."""
    keep_best: int = Field(default=1, ge=0)
    """Best checkpoints kept besides, by `metric`."""
    metric: str = Field(default="val/psnr", pattern=r"^val/[a-z0-9_/]+$")
    """A metric of validation: val/psnr, the mean over the degradations, or one of theirs, val/5deg/haze/ssim."""
    order: Literal["max", "min"] = "max"
    """Whether larger or smaller values of `metric` are better."""
    keep_hours: float = Field(default=0.0, ge=0)
    """All checkpoints younger than this are kept besides."""


class Validation(Section):
    """A quick look during training, on centre crops of held-out photographs."""

    every_steps: int = Field(default=5000, ge=1)
    photographs: int = Field(default=4, ge=1)
    """Held-out photographs per degradation."""
    crop_pixels: int = Field(default=256, ge=8)


class Evaluate(Section):
    """The judgement at the end, on whole held-out photographs."""

    degradations: tuple[Degradation, ...]
    protocol: Literal["rgb-crop16", "rgb"] = "rgb-crop16"


class Tracking(Section):
    """Where the run is followed."""

    experiment: str
    uri: str | None = None
    """MLflow tracking URI; unset: MLFLOW_TRACKING_URI, else SQLite in the home folder."""


class Track(Tracking):
    """Where the run is followed and its model is registered."""

    register_as: Name | None = None
    """Registered-model name; the new version gets the alias `candidate`."""
    every_steps: int = Field(default=10, ge=1)
    system_metrics_seconds: float = Field(default=15, gt=0)
    """How often each node's load is looked at, at the earliest; only together with the other numbers."""
    log: Literal["text", "json"] = "text"
    """What the driver prints: lines for people, or one JSON object per event."""


class Profile(Section):
    """A trace by torch's profiler, once at each start of the run, of worker 0."""

    steps: int = Field(default=20, ge=1)
    skip_first: int = Field(default=5, ge=0)
    """Steps that are let pass first: the beginning is not typical."""


class Promote(Section):
    """What a model must show before `mirage promote` moves an alias to it; unset leaves a gate out."""

    margin_db: float = Field(default=0.0, ge=0)
    """Lower bound of the gain over the champion; at 0 the bound must lie above it."""
    max_drop_db: float = Field(default=0.1, ge=0)
    """Most that one degradation may lose on average."""
    reference_db: float | None = None
    """A published average PSNR that the paper's tables do not hold."""
    paper_row: str | None = None
    """A row of the paper's tables, TABLE:METHOD, for example T2:MIRAGE-T; `mirage report` prints them."""
    max_below_reference_db: float = Field(default=0.3, ge=0)
    """How far below either of them the average may be."""
    parity: tuple[Literal["safetensors", "torchscript", "onnx", "release"], ...] = ("torchscript",)
    """Formats in which the exported model must be the same."""
    latency_seconds: float | None = Field(default=None, gt=0)
    """Longest time that one image may take."""
    memory_gib: float | None = Field(default=None, gt=0)
    """Most memory that one image may take."""
    side_pixels: int = Field(default=512, ge=1)
    """Side of the square image on which latency and memory are measured."""


class Example(Section):
    """One held-out photograph that the registered model restores to a PNG at the end."""

    photograph: str
    degradation: Degradation


class Training(Section):
    """All that says how a model is trained, of a job that trains one and of a sweep that trains many."""

    name: Name
    recipe: Literal["authors", "paper", "fast"] = "authors"
    """The authors' code, the paper's text, or ours. A number always says which."""
    setting: SettingName
    """Published benchmark combination: fixes mixture, degradations and protocol. `own`: data.mixture,
    evaluate.degradations and the length are the job's to say."""
    init_from: str | None = None
    """Weights to begin from: models:/NAME@ALIAS, a run, or a file. Looked up once, when the run starts."""
    seed: Seed = 0
    storage: str = ".mirage/folder"
    """Where relative manifests and the runs live: `s3://bucket[/prefix]` or a folder."""
    model: Model = Model()
    loss: LossConfig = LossConfig()
    data: Data
    train: Train = Train()
    engine: EngineChoice = EngineChoice()
    workers: Workers = Workers()
    prices: Prices = Prices()
    checkpoint: Checkpoint = Checkpoint()
    validation: Validation = Validation()
    evaluate: Evaluate
    track: Track
    promote: Promote = Promote()
    profile: Profile | None = None
    example: Example | None = None


class Job(Training):
    """A job of kind `train`, resolved: pack what is missing, train, judge, register."""

    kind: Literal["train"] = "train"


# Keys that say where and how fast a job runs, not what it computes: they do not make it another run.
NON_IDENTITY_KEYS = frozenset(
    {
        *("engine", "workers", "prices", "track", "storage", "checkpoint", "promote", "profile", "example"),
        *("data.readers", "data.cache_gib", "data.on_corrupt", "data.ledger"),
        *("train.activation_checkpointing", "train.compile", "train.deterministic"),
    }
)
