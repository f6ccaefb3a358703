"""The kinds of jobs: `kind:` in a file chooses which schema it is read with.

A kind has a schema, the defaults it takes from what a file names, the combinations it forbids, and the keys that a
file must itself say. What a kind does when it runs is in `dispatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator import conflicts
from orchestrator.config import Job, Name, Names, Pack, Section
from orchestrator.recipes import SETTINGS, defaults

DEFAULT = "train"
"""Kind of a file that names none."""


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


AnyJob = Job | PackJob


@dataclass(frozen=True)
class Kind:
    """What reading a job file needs to know of one kind of job."""

    model: type[Any]
    """Its schema."""
    required: tuple[str, ...]
    """Keys that the file must itself say."""
    conflicts: Callable[[Any], Iterator[conflicts.Conflict]]
    defaults: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda given: {}
    """From what the file gives, the partial job that its words stand for."""


def _training_defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    recipe, setting, train = given.get("recipe", "release"), given.get("setting"), given.get("train")
    steps_given = isinstance(train, Mapping) and train.get("steps") is not None
    if recipe in ("release", "paper", "fast") and isinstance(setting, str) and setting in SETTINGS:
        return defaults(recipe, setting, steps_given=steps_given)
    return {}


KINDS: dict[str, Kind] = {
    "train": Kind(Job, ("name", "setting", "data", "track"), conflicts.of_training, _training_defaults),
    "pack": Kind(PackJob, ("name", "data"), conflicts.of_packing),
}
