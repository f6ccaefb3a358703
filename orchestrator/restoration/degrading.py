"""Degrade photographs by a pipeline, each in a way that its name and a seed decide."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from orchestrator.errors import OrchestratorError, PhotoError
from orchestrator.imaging.photos import decode, encode
from orchestrator.restoration.locations import InputPhoto, ObjectLocation, find_photographs, result_locations
from shards.degradations.parse import parse_pipelines
from shards.degradations.pipeline import AppliedOperator, Pipeline, evaluation_key
from shards.degradations.presets import PRESETS
from shards.errors import CorruptObjectError, DegradeError, StoreError


class UnknownPipelineError(OrchestratorError):
    """A name that neither the job nor the presets have."""


@dataclass(frozen=True, slots=True)
class DegradedPhoto:
    """What became of one photograph."""

    source: ObjectLocation
    target: ObjectLocation
    drawn: tuple[AppliedOperator, ...] = ()
    problem: str = ""
    """Why there is no result: a sentence with the name of the file."""

    @property
    def steps(self) -> str:
        """Return the operators with their values in words."""
        return ", ".join(each.words() for each in self.drawn)


def pipeline_named(name: str, pipelines: Mapping[str, Pipeline]) -> Pipeline:
    """Return a pipeline of a job, or a preset. Raises UnknownPipelineError."""
    if name in pipelines:
        return pipelines[name]
    if name in PRESETS:
        return parse_pipelines({name: PRESETS[name]})[name]
    known = [*pipelines, *PRESETS]
    near = difflib.get_close_matches(name, known, n=1)
    meant = f' Did you mean "{near[0]}"?' if near else ""
    own = "" if pipelines else " Name a job file with --job for the pipelines of a job."
    raise UnknownPipelineError(f"--pipeline {name}: is no pipeline.{meant} Known: {', '.join(known)}.{own}")


def degrade_photographs(
    inputs: Sequence[str], out: str, pipeline: Pipeline, seed: int, *, overwrite: bool = False
) -> Iterator[DegradedPhoto | str]:
    """Write a degraded PNG and a record of its draws for each photograph; yield outcomes, and problems as sentences.

    What a photograph gets depends on the pipeline, the seed and its path below the input without its suffix, not on the
    other photographs. Metadata, depth and alpha are kept as far as a PNG can; pixels have 8 bits. Raises PhotoError if
    a result would replace a photograph or be no PNG file, or if two have the same name.
    """
    found = find_photographs(inputs, out)
    yield from found.problems
    named = [InputPhoto(photo.location, _as_png(photo.name)) for photo in found.photos]
    targets = result_locations(named, out)
    if any(PurePosixPath(target.key).suffix.lower() != ".png" for target in targets):
        raise PhotoError(f"-o {out}: results are PNG files. Name a .png file, or a folder.")
    for photo, target in zip(found.photos, targets, strict=True):
        try:
            record = ObjectLocation(target.folder, f"{target.key}.json")
            for each in (target, record):
                if each.store.exists(each.key):
                    if not overwrite:
                        raise PhotoError(f"{each}: exists. Give --overwrite, or name another folder.")
                    each.store.delete(each.key)
            like = decode(photo.location.store.read(photo.location.key), str(photo.location))
            clean = np.rint(like.pixels.transpose(1, 2, 0) * np.float32(255)).astype(np.uint8)
            key = evaluation_key(seed, str(PurePosixPath(photo.name).with_suffix("")))
            degraded = pipeline.degrade(clean, key).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            target.store.write(target.key, encode(degraded, like, "PNG"))
            record.store.write(record.key, _record(photo.location, pipeline, seed, key))
        except DegradeError as error:
            yield DegradedPhoto(photo.location, target, problem=f"{photo.location}: {error}")
        except (PhotoError, StoreError, CorruptObjectError) as error:
            yield DegradedPhoto(photo.location, target, problem=str(error))
        else:
            yield DegradedPhoto(photo.location, target, pipeline.draw(key))


def _as_png(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(".png"))


def _record(photo: ObjectLocation, pipeline: Pipeline, seed: int, key: str) -> bytes:
    """Return what was drawn for a photograph, as JSON."""
    content = {
        "photograph": str(photo),
        "pipeline": pipeline.name,
        "digest": pipeline.digest,
        "seed": seed,
        "key": key,
        "operators": [each.record() for each in pipeline.draw(key)],
    }
    return (json.dumps(content, indent=1) + "\n").encode()
