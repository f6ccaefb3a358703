"""Read a job file into a job of its kind, or report everything that is wrong with it at once, with file and line.

A job is layered: schema defaults, then what its kind adds (to training: the setting and the recipe it names), then
the file it `extends` (one level), then the file itself, then `--set key=value`. Each key remembers the layer that
gave it, so that a problem points to the line a user can change.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from orchestrator.config.job_types import DEFAULT_KIND, KINDS, AnyJob, JobKind
from orchestrator.config.renamed import Key, with_current_names
from orchestrator.errors import JobFileError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a job: where it stands, which key, and what to do."""

    where: str
    key: str
    message: str


class _Layer:
    """A YAML file or a set of overrides: its values under current names, and the place of each key."""

    def __init__(self, values: dict[str, Any], places: dict[Key, str], whole: str) -> None:
        self.values, renamed = with_current_names(values)
        self.places = dict(places)
        self.whole = whole
        for old, new, message in renamed:
            if old in places:
                log.warning("%s: %s. The old name still works.", places[old], message)
            for key, where in places.items():
                if key[: len(old)] == old:
                    self.places[(*new, *key[len(old) :])] = where


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> AnyJob:
    """Return the resolved job of the file `path` with `key=value` overrides applied.

    Raises JobFileError that lists every problem found.
    """
    path = Path(path)
    layers = [_read(path)]
    parent = layers[0].values.pop("extends", None)
    if parent is not None:
        base = _read(path.parent / str(parent))
        if "extends" in base.values:
            raise _refuse(
                [Problem(base.places[("extends",)], "extends", "only one level of extending is allowed.")]
            )
        layers.insert(0, base)
    layers.append(_read_overrides(overrides))
    return _resolve(layers)


def overrides_from(path: Path, section: str) -> list[str]:
    """Return the keys of the YAML file `path` as overrides of a section of a job, empty ones left out."""
    values = _read(path).values
    return [f"{section}.{name}={json.dumps(value)}" for name, value in values.items() if value is not None]


def job_from_mapping(values: Mapping[str, Any], whole: str = "job") -> AnyJob:
    """Return the job that `values`, the content of a resolved file, describes."""
    return _resolve([_Layer(dict(values), {}, whole)])


def dump_job(job: AnyJob) -> str:
    """Return the resolved job as YAML; reading it back gives an equal job."""
    return str(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of job files, for completion in editors.

    Only what a file must itself say is required there: recipe and setting give the rest.
    """
    adapter: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
    schema = adapter.json_schema()
    for name, kind in KINDS.items():
        part = schema["$defs"][kind.model.__name__]
        part["properties"]["extends"] = {"type": "string", "description": "Another job file to start from."}
        part["required"] = [*kind.required, *(["kind"] if name != DEFAULT_KIND else [])]
    for section, required in _REQUIRED_OF_SECTIONS.items():
        schema["$defs"][section]["required"] = required
    return schema


_REQUIRED_OF_SECTIONS: dict[str, list[str]] = {"Data": ["manifests"], "Evaluate": []}
"""Where a file may leave out what the recipe and the setting give."""


# --- reading -------------------------------------------------------------------------------------------------


def _read(path: Path) -> _Layer:
    shown = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = difflib.get_close_matches(path.name, near, n=1)
        tail = f" Did you mean {path.parent / hint[0]}?" if hint else ""
        raise _refuse([Problem(shown, "", f"no such job file.{tail}")]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise _refuse([Problem(shown, "", f"cannot be read as a text file: {error}")]) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{shown}:{mark.line + 1}" if mark else shown
        what = getattr(error, "problem", None) or "not YAML"
        raise _refuse(
            [Problem(at, "", f"this is not valid YAML: {what}. Mend that line; indent with spaces.")]
        ) from error
    if not isinstance(values, dict):
        raise _refuse([Problem(shown, "", "a job file is a mapping of keys to values, and this one is not.")])
    places: dict[Key, str] = {}
    repeated: list[Problem] = []
    for key, line in _walk(root, ()):
        if key in places:
            repeated.append(
                Problem(f"{shown}:{line}", ".".join(key), f"stands twice; first at {places[key]}.")
            )
        places.setdefault(key, f"{shown}:{line}")
    if repeated:
        raise _refuse(repeated)
    return _Layer(values, places, shown)


def _walk(node: yaml.Node, prefix: Key) -> Iterator[tuple[Key, int]]:
    """Yield every key path below `node` with its 1-based line."""
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            key = (*prefix, str(name.value))
            yield key, name.start_mark.line + 1
            yield from _walk(value, key)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            key = (*prefix, str(index))
            yield key, item.start_mark.line + 1
            yield from _walk(item, key)


def _read_overrides(overrides: Sequence[str]) -> _Layer:
    values: dict[str, Any] = {}
    places: dict[Key, str] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        if not equals or not all(key):
            raise _refuse([Problem(f"--set {text}", "", "is not key=value, for example train.steps=100.")])
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise _refuse([Problem(f"--set {text}", "", "the value is not valid YAML.")]) from error
        inner = values
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise _refuse(
                    [Problem(f"--set {text}", "", "sets a key below one that another --set fills.")]
                )
        inner[key[-1]] = parsed
        for depth in range(1, len(key) + 1):
            places[key[:depth]] = f"--set {text}"
    return _Layer(values, places, "--set")


# --- resolving -----------------------------------------------------------------------------------------------


def _resolve(layers: Sequence[_Layer]) -> AnyJob:
    given: dict[str, Any] = {}
    places: dict[Key, str] = {}
    replaced: tuple[str, ...] = ()
    for layer in layers:
        whole_keys = _whole_keys(layer)
        given = _merge(given, layer.values, whole_keys)
        places.update(layer.places)
        replaced += whole_keys
    whole = layers[-2].whole if len(layers) > 1 else layers[-1].whole

    kind = _kind(given.get("kind", DEFAULT_KIND), places, whole)
    given = _merge(kind.defaults(given), given, whole_keys=replaced)
    try:
        job: AnyJob = kind.model.model_validate(given)
    except ValidationError as error:
        wrong = [_problem(e, kind, places, whole) for e in _relevant(error.errors())]
        understood = _without_unknown_keys(given, error)
        if understood is not None:  # what else is wrong is then known too
            wrong += _conflicts(kind, kind.model.model_validate(understood), places, whole)
        raise _refuse(wrong) from None
    problems = _conflicts(kind, job, places, whole)
    if problems:
        raise _refuse(problems)
    return job


def _conflicts(kind: JobKind, job: AnyJob, places: Mapping[Key, str], whole: str) -> list[Problem]:
    return [
        Problem(_place(tuple(key.split(".")), places, whole), key, message)
        for key, message in kind.conflicts(job)
    ]


def _without_unknown_keys(given: Mapping[str, Any], error: ValidationError) -> Mapping[str, Any] | None:
    """Return what was given without the keys that nobody knows, None when something else is wrong too."""
    left = copy.deepcopy(dict(given))
    for problem in error.errors():
        section: Any = left
        for name in problem["loc"][:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if problem["type"] != "extra_forbidden" or not isinstance(section, dict):
            return None
        section.pop(problem["loc"][-1], None)
    return left


def _kind(name: object, places: Mapping[Key, str], whole: str) -> JobKind:
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    near = difflib.get_close_matches(name, KINDS, n=1) if isinstance(name, str) else []
    hint = f' Did you mean "{near[0]}"?' if near else ""
    message = f"is {name!r}: one of {', '.join(KINDS)}.{hint}"
    raise _refuse([Problem(_place(("kind",), places, whole), "kind", message)])


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], whole_keys: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Any]:
    """Lay `over` on `base`, mapping by mapping; those named in `whole_keys` are replaced as one."""
    merged = dict(base)
    for name, value in over.items():
        key = f"{prefix}{name}"
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping) and key not in whole_keys:
            merged[name] = _merge(below, value, whole_keys, f"{key}.")
        else:
            merged[name] = value
    return merged


def _whole_keys(layer: _Layer) -> tuple[str, ...]:
    """Return the mappings that the layer gives as a whole: a mixture, unless `--set` reaches into it by a dot."""
    data = layer.values.get("data")
    by_dot = layer.whole == "--set" and any(
        len(key) > 2 and key[:2] == ("data", "mixture") for key in layer.places
    )
    return ("data.mixture",) if isinstance(data, dict) and "mixture" in data and not by_dot else ()


def _relevant(errors: Sequence[Any]) -> list[Any]:
    """Drop what only follows from something else: a missing mixture is the setting's fault when that is wrong."""
    wrong = {e["loc"] for e in errors}
    derived = {("data", "mixture"), ("evaluate",)}
    setting_wrong = ("setting",) in wrong or ("recipe",) in wrong
    return [e for e in errors if not (setting_wrong and e["type"] == "missing" and e["loc"] in derived)]


def _problem(error: Any, kind: JobKind, places: Mapping[Key, str], whole: str) -> Problem:
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    dotted = ".".join(key)
    where = _place(key, places, whole)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        return Problem(where, dotted, _unknown(key, kind))
    if error["type"] == "missing":
        return Problem(where, dotted, "is missing; the job needs it.")
    message = str(error["msg"])
    near = difflib.get_close_matches(value, _choices(message), n=1) if isinstance(value, str) else []
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return Problem(where, dotted, f"is {value!r}: {message[0].lower()}{message[1:]}.{hint}")


def _place(key: Key, places: Mapping[Key, str], whole: str) -> str:
    """Return the place of the key, or of the nearest one above it that somebody wrote.

    A knob of a sweep is one key with dots in it, so keys are compared as they are written.
    """
    written = {".".join(parts): place for parts, place in places.items()}
    parts = ".".join(key).split(".")
    for depth in range(len(parts), 0, -1):
        if (dotted := ".".join(parts[:depth])) in written:
            return written[dotted]
    return whole


def _unknown(key: Key, kind: JobKind) -> str:
    """Return what to do about a key that the kind does not have."""
    known = _fields(kind.model, key[:-1])
    near = difflib.get_close_matches(key[-1], known, n=1, cutoff=0.6)
    if near:
        return f'unknown key — did you mean "{near[0]}"?'
    theirs = [name for name, other in KINDS.items() if key[-1] in _fields(other.model, key[:-1])]
    if theirs:
        own = next(name for name, other in KINDS.items() if other is kind)
        return f"belongs to jobs of kind {' or '.join(theirs)}; this one is of kind {own}. Remove it."
    return f"unknown key. Known: {', '.join(known)}."


def _fields(model: type[BaseModel] | None, key: Key) -> list[str]:
    """Return the keys that the schema of `model` knows below `key`, as a file writes them."""
    for name in key:
        field = _by_key(model).get(name) if model else None
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return sorted(_by_key(model)) if model else []


def _by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _choices(message: str) -> list[str]:
    return message.split("'")[1::2]


def _refuse(problems: Sequence[Problem]) -> JobFileError:
    width = max(len(p.where) for p in problems)
    keys = max(len(p.key) for p in problems)
    lines = [
        f"{p.where:<{width}}  {p.key:<{keys}}  {p.message}" if keys else f"{p.where:<{width}}  {p.message}"
        for p in problems
    ]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return JobFileError("\n".join([*lines, f"{count}, nothing was launched."]))
