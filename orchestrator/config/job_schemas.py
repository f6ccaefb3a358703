"""The kinds of jobs: `kind:` in a file chooses which schema it is read with.

A kind has a schema, the defaults it takes from what a file names, the combinations it forbids, and the keys that a
file must itself say. What a kind does when it runs is in `dispatch`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from orchestrator.config.schema import (
    Degradation,
    Name,
    Names,
    Pack,
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
    """What is packed, and where to."""

    manifests: Annotated[Names, Field(min_length=1)]
    """The dataset: a URI, or a name below `storage`."""
    pack: Pack


class PackJob(Section):
    """A job of kind `pack`: raw photographs to verified shards."""

    name: Name
    kind: Literal["pack"] = "pack"
    storage: str = ".mirage/folder"
    """Where relative manifests live: `s3://bucket[/prefix]` or a folder."""
    data: PackData


class EvaluatedModel(UserModel):
    """The model that is judged: one of ours by its weights, or a class of anybody's."""

    weights: str | None = None
    """models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN, a .safetensors file, or a checkpoint of plain tensors."""
    name: str | None = None
    """What tables call it; unset: from `class` or `weights`."""
    recipe: str | None = None
    """How it was trained, for the tables; unset: what the weights say of themselves."""


class EvaluationData(Section):
    """The benchmarks: the test splits of packed datasets."""

    manifests: Annotated[Names, Field(min_length=1)]
    """Packed datasets: URIs, or names below `storage`."""
    cache_gib: float = Field(default=20.0, gt=0)
    """Bound of each node's shard cache."""


class EvaluationOptions(Section):
    """What is measured, and how."""

    degradations: tuple[Degradation, ...] = ()
    """Those of the test splits to judge; none given: all that they hold."""
    protocols: Annotated[tuple[Protocol, ...], BeforeValidator(as_tuple), Field(min_length=1)] = (
        "rgb-crop16",
    )
    """How pairs become numbers. Protocols that crop alike share one restoration."""
    noise: Literal["per-image", "release"] = "per-image"
    """Noise keyed by seed, image and level; or one sequence over all images as the release draws it."""
    lpips: Literal["none", "alex", "vgg"] = "none"
    """Perceptual distance with this backbone; needs the extra `lpips` and its weights."""
    precision: Literal["fp32", "bf16"] = "fp32"
    pictures: int = Field(default=1, ge=0)
    """Best and worst images of each degradation to show, this many of either."""


class EvaluateJob(Section):
    """A job of kind `evaluate`: any model over any benchmark, image by image."""

    name: Name
    kind: Literal["evaluate"] = "evaluate"
    seed: Seed = 0
    storage: str = ".mirage/folder"
    """Where relative manifests and the results live: `s3://bucket[/prefix]` or a folder."""
    model: EvaluatedModel
    data: EvaluationData
    evaluate: EvaluationOptions = EvaluationOptions()
    workers: Workers = Workers()
    track: Tracking


class Restoration(Section):
    """Which photographs are restored, by which model, and how."""

    model: str
    """A weights file, a checkpoint of the authors, a run, or `models:/NAME@ALIAS`."""
    inputs: Annotated[Names, Field(min_length=1)]
    """Files, folders with all below them, globs, or `s3://bucket/prefix`; relative ones stand below the project."""
    out: str
    """A folder or `s3://bucket/prefix`: results keep their paths below their input."""
    precision: Literal["fp32", "bf16"] = "fp32"
    mode: Literal["auto", "whole", "strips", "tiles"] = "auto"
    """`strips` is `whole` in little memory, `auto` chooses between them; `tiles` gives other pixels."""
    tile: int = 512
    """Side of a tile [px], for the mode `tiles`."""
    overlap: int = 64
    """Pixels that neighbouring tiles share."""
    batch_size: int = Field(default=1, ge=1)
    """Photographs of one size that go through the model together; on a GPU more are faster."""
    max_megapixels: float = Field(default=179, gt=0, le=179)
    """A larger photograph is refused before it is unpacked."""
    overwrite: bool = False
    """Replace what stands where a result goes; a photograph never."""


class RestoreJob(Section):
    """A job of kind `restore`: photographs through a model, each once, on as many workers as there is room for."""

    name: Name
    kind: Literal["restore"] = "restore"
    restore: Restoration
    workers: WorkerResources = WorkerResources()
