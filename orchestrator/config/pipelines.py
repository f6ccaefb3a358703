"""The pipelines of degradations in a job, what contradicts itself in them, and their JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.config import crop_stages
from orchestrator.config.job_schemas import EvaluateJob
from orchestrator.config.schema import Training
from shards.errors import PipelineError

if TYPE_CHECKING:
    from shards.degradations.operator import Parameter
    from shards.degradations.pipeline import Pipeline

# The operators are imported inside functions: few commands need them.


def pipelines_of(job: Training | EvaluateJob) -> dict[str, Pipeline]:
    """Return the pipelines of a job by name. Raises PipelineError."""
    if not job.degradations:
        return {}
    from shards.degradations.parse import parse_pipelines

    return parse_pipelines(job.degradations)


def pipeline_conflicts(job: Training | EvaluateJob) -> Iterator[tuple[str, str]]:
    """Yield the key and message of every problem of the pipelines."""
    if isinstance(job, Training) and job.data.margin_pixels and not job.degradations:
        yield "data.margin_pixels", "is for pipelines, and the job has no section degradations. Remove it."
    try:
        pipelines = pipelines_of(job)
    except PipelineError as error:
        for key, message in error.problems:
            yield ".".join(("degradations", *key)), message
        return
    if isinstance(job, Training):
        yield from _crop_conflicts(job, pipelines)


def _crop_conflicts(job: Training, pipelines: Mapping[str, Pipeline]) -> Iterator[tuple[str, str]]:
    """Yield the key and message of every kernel that is too large for the crops of training or of validation."""
    for name in job.data.mixture:
        if name in pipelines:
            side, cure = smallest_crop(job), "Raise data.crop_pixels or data.margin_pixels"
            yield from large_kernels(
                pipelines[name], side, "the smallest training crop, with its margin,", cure
            )
    for name in job.evaluate.degradations:
        if name in pipelines:
            side, cure = job.validation.crop_pixels, "Raise validation.crop_pixels"
            yield from large_kernels(pipelines[name], side, "a validation crop", cure)


def smallest_crop(job: Training) -> int:
    """Return the smallest side in pixels of the training crops that pipelines get, with their margin."""
    return min(stage.pixels for stage in crop_stages.declared(job)) + 2 * job.data.margin_pixels


def large_kernels(
    pipeline: Pipeline, side: int, image: str, cure: str, *, resized: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the key and message of the kernels whose radius is larger than the side of an image.

    They are those before any resize, or with `resized` those behind one, where the image may be smaller than `side`.
    `image` says what has this side, `cure` how it becomes larger.
    """
    from shards.degradations.kernels import kernels

    for each in kernels(pipeline.steps):
        left = round(side * each.scale)
        if each.resized == resized and each.radius > left:
            size = f"{side} pixels, {left} at the smallest scale before it" if resized else f"{side} pixels"
            yield (
                ".".join(("degradations", pipeline.name, *each.key)),
                f"{each.operator} has a kernel of up to {each.radius} pixels on each side of its centre, but {image} "
                f"has {size}: what is mirrored beyond its border repeats. {cure}, or make the kernel smaller.",
            )


def step_schema() -> dict[str, Any]:
    """Return the JSON Schema of a step, which refers to itself as Step: every operator with its parameters."""
    from shards.degradations.operator import OPERATORS
    from shards.degradations.parse import TIMES

    steps = {"type": "array", "items": {"$ref": "#/$defs/Step"}}
    share = {"type": "number", "minimum": 0, "maximum": 1}
    times = _parameter_schema(TIMES)
    arranging = {
        "shuffle": {**steps, "description": "Apply steps in a random order."},
        "repeat": _object(
            {"times": times, "steps": steps}, "Apply steps several times, each with its own draws."
        ),
        "one_of": {
            "type": "array",
            "items": _object({"steps": steps}, "A branch.", weight={"type": "number", "minimum": 0}),
            "description": "Apply one of several lists of steps, by weight.",
        },
        "maybe": _object({"probability": share, "steps": steps}, "Apply steps with a probability."),
        "use": {"type": "string", "description": "Apply another pipeline."},
    }
    operators = {
        name: {
            **_object(
                {}, each.about, **{key: _parameter_schema(one) for key, one in each.parameters.items()}
            ),
            "required": [key for key, one in each.parameters.items() if one.default is None],
        }
        for name, each in OPERATORS.items()
    }
    bare = [name for name, each in operators.items() if not each["required"]]
    mapping = {
        "type": "object",
        "properties": {**operators, **arranging},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"anyOf": [{"enum": bare}, mapping]}


def _object(required: dict[str, Any], about: str, **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "description": about,
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _parameter_schema(of: Parameter) -> dict[str, Any]:
    """Return the schema of a parameter: a value, or a distribution of values."""
    from shards.degradations.parse import is_switch

    about = ", ".join(filter(None, (of.about, of.unit)))
    default = {} if of.default is None else {"default": of.default}
    value: dict[str, Any] = {"type": "integer" if of.integer else "number"}
    value |= {"minimum": of.minimum, "maximum": of.maximum}
    if of.words:
        value = {"enum": list(of.words)}
    elif is_switch(of):
        value = {"type": ["boolean", "integer"], "minimum": 0, "maximum": 1}
    drawn = [
        _object(
            {"choice": {"type": "array", "items": value, "minItems": 1}}, "One of these.", weights=_WEIGHTS
        )
    ]
    if is_switch(of):
        drawn.append(_object({"probability": {"type": "number", "minimum": 0, "maximum": 1}}, "On with it."))
    elif not of.words:
        pair = {"type": "array", "items": value, "minItems": 2, "maxItems": 2}
        drawn.append(_object({"range": pair}, "Uniformly distributed between two."))
        drawn.append(_object({"log_range": pair}, "Its logarithm uniformly distributed between two."))
    return {"anyOf": [value, *drawn], "description": about, **default}


_WEIGHTS = {"type": "array", "items": {"type": "number", "minimum": 0}}
