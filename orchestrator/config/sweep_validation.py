"""What cannot be in a sweep, told before anything starts: keys, values, constraints, lengths."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config.constraints import parse
from orchestrator.config.schema import Job
from orchestrator.config.search_space import (
    Draws,
    Values,
    candidate,
    draw,
    grid,
    put,
    trial_content,
    unsearchable,
)
from orchestrator.config.sweep_schema import Domain, Scheduler, SweepJob, rungs
from orchestrator.config.validation import Conflict, training_conflicts

NAME_ROOM = 46
"""Longest name of a sweep: those of its trials' runs are made of it."""

_SAMPLES = 200
"""Candidates looked at to see whether any is possible."""


def of_sweep(job: SweepJob) -> Iterator[Conflict]:
    """Yield what cannot be in a job that sweeps."""
    yield from training_conflicts(job)
    if len(job.name) > NAME_ROOM:
        yield "name", f"has {len(job.name)} letters; trials are named after it, so at most {NAME_ROOM}."
    found = [*_of_knobs(job), *_of_constraints(job), *_of_search(job), *_of_lengths(job), *_of_winner(job)]
    yield from found
    if not found and not any(candidate(job, values).job for values in _samples(job)):
        first = candidate(job, next(_samples(job)))
        yield "sweep.space", f"no candidate is possible; of the first one: {first.impossible}"


def _of_knobs(job: SweepJob) -> Iterator[Conflict]:
    earlier: set[str] = set()
    for knob, domain in job.sweep.space.items():
        where = f"sweep.space.{knob}"
        for key, values in _keys(knob, domain).items():
            if why := unsearchable(key):
                yield where, f"{why}. Remove it."
                continue
            for value in values:
                if problem := _refused(job, key, value):
                    yield where, problem
                    break
        for other in domain.when or {}:
            if other not in earlier:
                yield where, f'depends on "{other}", and no knob above it is called so.'
        earlier.add(knob)


def _keys(knob: str, domain: Domain) -> dict[str, list[Any]]:
    """Return every key that a knob sets, with values that stand for all."""
    if domain.variants is not None:
        found: dict[str, list[Any]] = {}
        for settings in domain.variants.values():
            for key, value in settings.items():
                found.setdefault(key, []).append(value)
        return found
    ends = domain.choice or domain.range or domain.log_range or domain.integer or ()
    return {knob: [*ends, *([domain.otherwise] if domain.otherwise is not None else [])]}


def _refused(job: SweepJob, key: str, value: Any) -> str:
    """Return what the schema has against the value under that key, "" when nothing.

    That a value does not go with others is no problem of the file: such candidates are rejected one by one.
    """
    content = trial_content(job)
    put(content, key, value)
    try:
        Job.model_validate(content)
    except ValidationError as error:
        for one in error.errors():
            place = ".".join(str(part) for part in one["loc"])
            if place != key and not place.startswith(f"{key}.") and not key.startswith(f"{place}."):
                continue
            if one["type"] == "extra_forbidden":
                return _unknown(key)
            message = str(one["msg"])
            return f"{value!r}: {message[0].lower()}{message[1:]}."
    return ""


def _unknown(key: str) -> str:
    known = list(_all_keys(Job))
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"is no key of a training job, and its domain has no variants.{hint}"


def _all_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
        if inner is None:
            yield f"{prefix}{field.alias or name}"
        else:
            yield from _all_keys(inner, f"{prefix}{name}.")


def _of_constraints(job: SweepJob) -> Iterator[Conflict]:
    for index, text in enumerate(job.sweep.constraints):
        try:
            made = parse(text)
        except ValueError as error:
            yield f"sweep.constraints.{index}", f"{error}."
            continue
        if job.model.class_ is not None and made.quantity in ("macs_224", "training_memory"):
            yield (
                f"sweep.constraints.{index}",
                f"{made.quantity} of a class of your own cannot be counted. Remove it.",
            )


def _of_search(job: SweepJob) -> Iterator[Conflict]:
    search = job.sweep.search
    if search.method == "grid":
        for knob, domain in job.sweep.space.items():
            if domain.values is None:
                yield (
                    f"sweep.space.{knob}",
                    "has no end of values, and a grid needs one: say into how many `points`.",
                )
    if search.against is not None:
        if search.method != "tpe":
            yield "sweep.search.against", f"a second objective is for method tpe, not for {search.method}."
        if job.sweep.scheduler.name == "asha":
            yield (
                "sweep.scheduler",
                "asha compares PSNR alone and would stop the small models of the front: with search.against, none.",
            )
        if search.against == "macs_224" and job.model.class_ is not None:
            yield "sweep.search.against", "multiply-adds of a class of your own cannot be counted."


def _of_lengths(job: SweepJob) -> Iterator[Conflict]:
    every, sweep = job.validation.every_steps, job.sweep
    for key, steps in (("sweep.steps", sweep.steps), ("sweep.scheduler.first_steps", _first(job))):
        if steps is not None and steps % every:
            low = steps - steps % every
            nearest = f"{low} or {low + every}" if low else f"{every}"
            yield key, f"{steps} is not a multiple of validation.every_steps, {every}. Nearest: {nearest}."
    length = sweep.steps or job.train.steps
    if sweep.steps is not None and job.train.steps is not None and sweep.steps > job.train.steps:
        yield "sweep.steps", f"{sweep.steps} is more than train.steps, {job.train.steps}."
    scheduler = sweep.scheduler
    none = length is not None and not rungs(scheduler.first_steps, scheduler.reduction, length)
    if scheduler.name == "asha" and none:
        yield (
            "sweep.scheduler.first_steps",
            f"{scheduler.first_steps} is no earlier than a trial's end, at {length}: no trial would be stopped.",
        )
    given = "first_steps" in scheduler.model_fields_set
    if scheduler.name == "none" and given and scheduler != Scheduler():
        yield "sweep.scheduler", "rungs belong to asha. Give scheduler.name=asha, or remove them."


def _first(job: SweepJob) -> int | None:
    return job.sweep.scheduler.first_steps if job.sweep.scheduler.name == "asha" else None


def _of_winner(job: SweepJob) -> Iterator[Conflict]:
    winner = job.sweep.winner
    if winner.set and winner.then == "continue":
        yield (
            "sweep.winner.set",
            f"changes a retraining, and `then` is {winner.then}: say then: retrain, or remove this.",
        )
    if winner.then == "retrain" and not winner.set:
        yield (
            "sweep.winner.set",
            "is missing: say what the retraining changes, for example {train.steps: 100000}.",
        )
    for key, value in winner.set.items():
        if key in ("kind", "recipe", "setting", "data.manifests", "name", "storage"):
            yield (
                f"sweep.winner.set.{key}",
                "stays what it is in the sweep. Use `mirage sweep export` and change the file.",
            )
        elif problem := _refused(job, key, value):
            yield f"sweep.winner.set.{key}", problem
    if winner.then != "none" and job.track.register_as is None:
        yield (
            "track.register_as",
            "is missing: the winner is registered under it. Give it, or sweep.winner.then=none.",
        )


def _samples(job: SweepJob) -> Iterator[Values]:
    space = job.sweep.space
    if all(domain.values is not None for domain in space.values()):
        yield from itertools.islice(grid(space), _SAMPLES)
    else:
        for index in range(_SAMPLES):
            yield draw(space, Draws(job.sweep.search.seed, index))
