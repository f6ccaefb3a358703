"""Find contradictions in a sweep's job before anything starts: keys, values, constraints, lengths."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from orchestrator.config.conflicts import Conflict, training_conflicts
from orchestrator.config.constraints import parse
from orchestrator.config.pipelines import pipeline_conflicts, pipelines_of
from orchestrator.config.pydantic_messages import message_of
from orchestrator.config.renamed import current_key
from orchestrator.config.schema import Job
from orchestrator.config.search_space import (
    Values,
    candidate,
    grid,
    not_changeable,
    not_searchable,
    random_points,
    set_key,
    trial_content,
)
from orchestrator.config.sweep_schema import SYNCHRONOUS, Domain, Scheduler, SweepJob, rungs

MAX_NAME_LENGTH = 46
"""Longest name of a sweep; names of its trials' runs are longer."""

_SAMPLES = 200
"""Candidates examined to see whether any is possible."""


def sweep_conflicts(job: SweepJob) -> Iterator[Conflict]:
    """Yield what contradicts itself in a job of kind `sweep`."""
    yield from training_conflicts(job)
    if len(job.name) > MAX_NAME_LENGTH:
        yield "name", f"has {len(job.name)} letters; trials are named after it, so at most {MAX_NAME_LENGTH}."
    checks = (_of_space, _of_constraints, _of_search, _of_scheduler, _of_lengths, _of_winner)
    found = [conflict for check in checks for conflict in check(job)]
    yield from found
    if not found and not any(candidate(job, values).job for values in _samples(job)):
        first = candidate(job, next(_samples(job)))
        yield "sweep.space", f"no candidate is possible; of the first one: {first.impossible}"


def _of_space(job: SweepJob) -> Iterator[Conflict]:
    earlier: set[str] = set()
    for parameter, domain in job.sweep.space.items():
        where = f"sweep.space.{parameter}"
        for key, values in _keys(parameter, domain).items():
            if why := not_searchable(key):
                yield where, f"{why}. Remove it."
            elif problem := next(filter(None, (_schema_problem(job, key, value) for value in values)), ""):
                yield where, problem
        for other in domain.when or {}:
            if other not in earlier:
                yield where, f'depends on "{other}", which is not a parameter above it.'
        earlier.add(parameter)


def _keys(parameter: str, domain: Domain) -> dict[str, list[Any]]:
    """Return every key that a parameter sets, with values that represent all."""
    if domain.variants is not None:
        found: dict[str, list[Any]] = {}
        for variant in domain.variants.values():
            for key, value in variant.items():
                found.setdefault(current_key(key), []).append(value)
        return found
    values = domain.choice or domain.bounds or ()
    return {current_key(parameter): [*values, *([domain.default] if domain.default is not None else [])]}


def _schema_problem(job: SweepJob, key: str, value: Any) -> str:
    """Return what the schema has against the value under that key, "" if nothing.

    A value that contradicts another one is not a problem of the file: such candidates are rejected one by one.
    """
    content = trial_content(job)
    try:
        set_key(content, key, value)
        made = Job.model_validate(content)
    except IndexError as error:
        return f"{error}."
    except ValidationError as error:
        for one in error.errors():
            place = ".".join(str(part) for part in one["loc"])
            if place != key and not place.startswith(f"{key}.") and not key.startswith(f"{place}."):
                continue
            if one["type"] == "extra_forbidden":
                return _unknown(key)
            return f"{value!r}: {message_of(one)}."
        return ""
    if key.startswith("degradations."):
        return _pipeline_problem(job, made)
    return ""


def _pipeline_problem(job: SweepJob, made: Job) -> str:
    """Return what is wrong with the pipelines of a trial, or which of them decides how trials are measured."""
    if problems := [f"{place} {message}" for place, message in pipeline_conflicts(made)]:
        return problems[0]
    before, after = pipelines_of(job), pipelines_of(made)
    for name in job.evaluate.degradations:
        if name in before and (name not in after or after[name].digest != before[name].digest):
            return (
                f"changes {name}, which evaluate.degradations names: trials would be measured on different images. "
                "Train on a pipeline of another name."
            )
    return ""


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, list(_all_keys(Job)), n=1, cutoff=0.6)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"is not a key of a training job, and its domain has no variants.{hint}"


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
                f"{made.quantity} of a user-defined model cannot be computed. Remove it.",
            )


def _of_search(job: SweepJob) -> Iterator[Conflict]:
    search, space = job.sweep.search, job.sweep.space
    if search.method == "grid":
        for parameter, domain in space.items():
            if domain.values is None:
                yield f"sweep.space.{parameter}", "has infinitely many values; for a grid, give `points`."
    if search.method not in ("grid", "random", "tpe", "optuna"):
        for parameter, domain in space.items():
            if domain.when:
                yield f"sweep.space.{parameter}", f"`when` cannot be used with search method {search.method}."
            if search.method == "bayesopt" and domain.range is None and len(domain.values or (0, 0)) > 1:
                yield f"sweep.space.{parameter}", "bayesopt searches `range` only."
    if search.second_objective is None:
        return
    key = "sweep.search.second_objective"
    if search.method not in ("tpe", "optuna"):
        yield key, f"needs method tpe, not {search.method}."
    if job.sweep.scheduler.name != "none":
        yield (
            "sweep.scheduler",
            f"{job.sweep.scheduler.name} compares PSNR alone and would stop the small models: use none with "
            "search.second_objective.",
        )
    if search.second_objective == "macs_224" and job.model.class_ is not None:
        yield key, "multiply-adds of a user-defined model cannot be computed."


def _of_scheduler(job: SweepJob) -> Iterator[Conflict]:
    name, method = job.sweep.scheduler.name, job.sweep.search.method
    if name in SYNCHRONOUS and method not in ("random", "grid"):
        yield (
            "sweep.search.method",
            f"{name} starts all trials together, so {method} would have no results to learn from: use random or grid.",
        )
    if name not in ("pbt", "pb2"):
        return
    if job.sweep.trials < 2:
        yield "sweep.trials", f"{name} needs at least two trials that can copy each other."
    for parameter, domain in job.sweep.space.items():
        where = f"sweep.space.{parameter}"
        if domain.when:
            yield where, f"`when` cannot be used with {name}."
        if name == "pb2" and domain.bounds is None:
            yield where, "pb2 searches ranges only: give range, log_range or integer."
        if domain.bounds is None and len(domain.values or ()) < 2:
            continue  # one value never changes
        for key, values in _keys(parameter, domain).items():
            if problem := next(filter(None, (not_changeable(key, value) for value in values)), ""):
                yield where, f"{problem}. Search it with asha, or give it one value."


def _of_lengths(job: SweepJob) -> Iterator[Conflict]:
    every, sweep, scheduler = job.validation.every_steps, job.sweep, job.sweep.scheduler
    first = scheduler.first_steps if scheduler.name != "none" else None
    for key, steps in (("sweep.steps", sweep.steps), ("sweep.scheduler.first_steps", first)):
        if steps is not None and steps % every:
            low = steps - steps % every
            nearest = f"{low} or {low + every}" if low else f"{every}"
            yield key, f"{steps} is not a multiple of validation.every_steps, {every}. Nearest: {nearest}."
    length = sweep.steps or job.train.steps
    if sweep.steps is not None and job.train.steps is not None and sweep.steps > job.train.steps:
        yield "sweep.steps", f"{sweep.steps} is more than train.steps, {job.train.steps}."
    if first is not None and length is not None and not rungs(first, scheduler.reduction, length):
        yield (
            "sweep.scheduler.first_steps",
            f"{first} is not before the end of a trial, at {length}: trials would never be compared.",
        )
    given = "first_steps" in scheduler.model_fields_set
    if scheduler.name == "none" and given and scheduler != Scheduler():
        yield (
            "sweep.scheduler",
            "first_steps needs a scheduler, for example name: asha. Give it, or remove this.",
        )


def _of_winner(job: SweepJob) -> Iterator[Conflict]:
    winner = job.sweep.winner
    if winner.set and winner.then == "continue":
        yield "sweep.winner.set", "needs then: retrain. Give it, or remove this."
    if winner.then == "retrain" and not winner.set:
        yield (
            "sweep.winner.set",
            "is missing: name the keys that retraining changes, for example {train.steps: 100000}.",
        )
    for key, value in winner.set.items():
        if key in ("kind", "recipe", "setting", "data.manifests", "name", "storage"):
            yield (
                f"sweep.winner.set.{key}",
                "cannot change here. Use `mirage sweep export` and change the file.",
            )
        elif problem := _schema_problem(job, key, value):
            yield f"sweep.winner.set.{key}", problem
    if winner.then != "none" and job.track.register_as is None:
        yield (
            "track.register_as",
            "is missing: the winner is registered under it. Give it, or sweep.winner.then=none.",
        )


def _samples(job: SweepJob) -> Iterator[Values]:
    space = job.sweep.space
    finite = all(domain.values is not None for domain in space.values())
    points = grid(space) if finite else random_points(space, job.sweep.search.seed)
    return itertools.islice(points, _SAMPLES)
