"""Schemas of jobs that pack, evaluate and restore. `kind:` in a file selects the schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from orchestrator.config.schema import (
    Bool,
    Degradation,
    Float,
    Gib,
    Int,
    Name,
    Names,
    Pack,
    Pipelines,
    Section,
    Seed,
    Tracking,
    UserModel,
    WorkerResources,
    Workers,
    as_tuple,
)

Protocol = Literal["rgb-crop16", "rgb-crop16-gaussian", "rgb", "rgb8", "y8", "y-histoformer"]
"""A name of `mirage.metrics.PROTOCOLS`."""


class PackData(Section):
    """What to pack, and where."""

    manifests: Annotated[Names, Field(min_length=1)]
    """The dataset to write: a URI, or a name below `storage`."""
    pack: Pack
    """The raw photographs and how to pack them."""


class PackJob(Section):
    """A job of kind `pack`: write raw photographs as verified shards."""

    name: Name
    """Name of the job."""
    kind: Literal["pack"] = "pack"
    """Kind of the job."""
    storage: str = ".mirage/folder"
    """Storage of relative `manifests`: s3://bucket[/prefix] or a folder."""
    data: PackData


CodeDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 of the code that a model brings."""


class EvaluatedModel(UserModel):
    """The model to evaluate: a MIRAGE by its weights, or a user-defined model."""

    weights: str | None = None
    """models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN, a .safetensors file, or a checkpoint of plain tensors."""
    trust: tuple[CodeDigest, ...] = ()
    """Digests of the code that `weights` may bring and run, without `class`; `mirage network-code` prints them."""
    name: str | None = None
    """Its name in tables; unset: from `class` or `weights`."""
    recipe: str | None = None
    """Its training recipe in tables; unset: from the header of the weights."""


class EvaluationData(Section):
    """Benchmarks: the test splits of packed datasets."""

    manifests: Annotated[Names, Field(min_length=1)]
    """Packed datasets: URIs, or names below `storage`."""
    cache_gib: Gib = 20.0
    """Maximum size of each node's shard cache in GiB."""


class EvaluationOptions(Section):
    """What to measure, and how."""

    degradations: tuple[Degradation, ...] = ()
    """Degradations of the test splits to evaluate; unset: all."""
    protocols: Annotated[tuple[Protocol, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "rgb-crop16",
    )
    """How PSNR and SSIM are computed (docs/evaluation.md). Protocols with the same crop share one restoration."""
    noise: Literal["per-image", "release"] = "per-image"
    """Noise seeded by seed, image and level, or one sequence over all images as in the authors' release."""
    lpips: Literal["none", "alex", "vgg"] = "none"
    """Backbone of the perceptual distance LPIPS; needs the extra `lpips` and its weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model."""
    pictures: Int = Field(default=1, ge=0)
    """Number of best and of worst images of each degradation to show."""


class EvaluateJob(Section):
    """A job of kind `evaluate`: measure a model on benchmarks, image by image."""

    name: Name
    """Name of the job."""
    kind: Literal["evaluate"] = "evaluate"
    """Kind of the job."""
    seed: Seed = 0
    """Random seed of the noise."""
    storage: str = ".mirage/folder"
    """Storage of relative `manifests` and of results: s3://bucket[/prefix] or a folder."""
    model: EvaluatedModel
    degradations: Pipelines = Field(default_factory=dict)
    """Name -> steps that degrade clean photographs, by seed and id (docs/streaming.md)."""
    data: EvaluationData
    evaluate: EvaluationOptions = EvaluationOptions()
    workers: Workers = Workers()
    track: Tracking


class Restoration(Section):
    """What to restore, by which model, and how."""

    model: str
    """A weights file, a checkpoint of the authors, a run, or `models:/NAME@ALIAS`."""
    trust: tuple[CodeDigest, ...] = ()
    """Digests of the code that `model` may bring and run; `mirage network-code` prints them."""
    inputs: Annotated[Names, Field(min_length=1)]
    """Files, folders with everything below them, globs, or s3://bucket/prefix. Relative ones are in the project."""
    out: str
    """Folder or s3://bucket/prefix of the results, which keep their paths below their input."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model."""
    mode: Literal["auto", "whole", "strips", "tiles"] = "auto"
    """`strips` gives the result of `whole` in little memory; `auto` selects one of the two. `tiles` differs."""
    tile: Int = 512
    """Side of a tile in pixels, for mode `tiles`."""
    overlap: Int = 64
    """Pixels that adjacent tiles share."""
    batch_size: Int = Field(default=1, ge=1)
    """Number of photographs of one size restored together. More are faster on a GPU."""
    max_megapixels: Float = Field(default=179, gt=0, le=179)
    """Maximum size of a photograph in megapixels. Larger ones are refused before they are decoded."""
    overwrite: Bool = False
    """Replace existing results. Photographs are never replaced."""


class RestoreJob(Section):
    """A job of kind `restore`: restore photographs, each once, on several workers."""

    name: Name
    """Name of the job."""
    kind: Literal["restore"] = "restore"
    """Kind of the job."""
    restore: Restoration
    workers: WorkerResources = WorkerResources()
