"""Read a job file into a job of its kind, or report all of its problems at once, with file and line.

A job has layers: schema defaults, then what its kind adds (for training: the setting and the recipe), then the file
it `extends` (one level), then the file itself, then `--set key=value`. Each key keeps the place that set it, so that a
problem points to the line to change.
"""

from __future__ import annotations

import copy
import difflib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from orchestrator.config.job_types import DEFAULT_KIND, KINDS, AnyJob, JobKind
from orchestrator.config.pipelines import step_schema
from orchestrator.config.pydantic_messages import message_of
from orchestrator.config.renamed import Key, with_current_names
from orchestrator.config.schema import MIRAGE_KEYS, Training
from orchestrator.config.yaml_text import MAX_BYTES, YamlError, read_yaml, write_yaml
from orchestrator.console import count
from orchestrator.errors import JobFileError
from orchestrator.masking import masked
from shards.errors import PathError
from shards.filesystem import expand_user, read_regular

log = logging.getLogger(__name__)

_Place = Callable[[Key], str]
_MAX_PROBLEMS = 50
"""Maximum number of problems that one error lists."""
_MAX_OVERRIDE_DEPTH = 32


@dataclass(frozen=True)
class Problem:
    """One problem of a job: its place, its key, and what to do."""

    where: str
    key: str
    message: str


class _Layer:
    """A YAML file or the overrides: values under current names, and the place of each key."""

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

    Raises JobFileError, which lists every problem.
    """
    path = _expanded(path)
    layers = [_read(path)]
    parent = layers[0].values.pop("extends", None)
    if parent is not None:
        if not isinstance(parent, str):
            where = layers[0].places[("extends",)]
            raise _job_file_error(Problem(where, "extends", f"is {_shown(parent)}: it must name a job file."))
        base = _read(path.parent / _expanded(parent))
        if "extends" in base.values:
            where = base.places[("extends",)]
            raise _job_file_error(
                Problem(where, "extends", "a file that is extended cannot extend another one.")
            )
        layers.insert(0, base)
    layers.append(_read_overrides(overrides))
    return _resolve(layers)


def overrides_from(path: Path, section: str) -> list[str]:
    """Return the keys of the YAML file `path` that have values, as overrides of a section of a job."""
    values = _read(path).values
    return [f"{section}.{name}={json.dumps(value)}" for name, value in values.items() if value is not None]


def job_from_yaml(text: str | bytes, whole: str = "job") -> AnyJob:
    """Return the job that `dump_job` wrote. `whole` is its name in error messages. Raises JobFileError."""
    try:
        return _resolve([_layer_of(text if isinstance(text, str) else text.decode(), whole)])
    except UnicodeDecodeError as error:
        raise _job_file_error(Problem(whole, "", f"cannot be read as text: {error}")) from error


def job_from_mapping(values: Mapping[str, Any], whole: str = "job") -> AnyJob:
    """Return the job with these values, for example those of a stored job. `whole` is its name in error messages."""
    return _resolve([_Layer(dict(values), {}, whole)])


def dump_job(job: AnyJob) -> str:
    """Return the resolved job as YAML, without passwords. Reading it back gives an equal job if it has none."""
    return write_yaml(masked(job.model_dump(mode="json")))


def show_job(job: AnyJob) -> str:
    """Return the resolved job as YAML for reading: sizes of a MIRAGE have values, and unset keys are left out.

    An unset key that the recipe or the setting sets by default stays `null`.
    """
    content = masked(job.model_dump(mode="json"))
    if isinstance(job, Training) and job.model.class_ is None:
        sizes = json.loads(json.dumps(asdict(job.model.build())))
        content["model"] |= {key: sizes[key] for key in content["model"].keys() & sizes.keys()}
    if isinstance(job, Training) and not isinstance(job.data.crop_pixels, int):
        stages = content["data"]["crop_pixels"]
        content["data"]["crop_pixels"] = [_without_unset(stage, {}) for stage in stages]
    return write_yaml(_without_unset(content, KINDS[job.kind].defaults(content)))


def _without_unset(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` without the keys that are None and have no other value in `defaults`."""
    shown: dict[str, Any] = {}
    for key, value in values.items():
        default = defaults.get(key)
        if isinstance(value, Mapping) and key not in _OF_USERS:
            shown[key] = _without_unset(value, default if isinstance(default, Mapping) else {})
        elif value is not None or default is not None:
            shown[key] = value
    return shown


_OF_USERS = ("arguments", "degradations")
"""Mappings in which null is a value like others."""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of job files, for completion in editors.

    It requires only the keys that no recipe and no setting sets.
    """
    adapter: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])
    schema = adapter.json_schema()
    for name, kind in KINDS.items():
        part = schema["$defs"][kind.model.__name__]
        part["properties"]["extends"] = {"type": "string", "description": "Another job file to start from."}
        part["required"] = [*kind.required, *(["kind"] if name != DEFAULT_KIND else [])]
        if "degradations" in part["properties"]:
            steps = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Step"}}
            part["properties"]["degradations"]["additionalProperties"] = steps
    schema["$defs"]["Step"] = step_schema()
    for section, required in _REQUIRED_OF_SECTIONS.items():
        schema["$defs"][section]["required"] = required
    return schema


_REQUIRED_OF_SECTIONS: dict[str, list[str]] = {"Data": ["manifests"], "Evaluate": []}
"""Section -> required keys, where a recipe or a setting sets others."""


def _expanded(path: str | Path) -> Path:
    try:
        return expand_user(path)
    except PathError as error:
        raise _job_file_error(Problem(str(path), "", str(error))) from error


def _read(path: Path) -> _Layer:
    shown = str(path)
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = difflib.get_close_matches(path.name, near, n=1)
        tail = f" Did you mean {path.parent / hint[0]}?" if hint else ""
        raise _job_file_error(Problem(shown, "", f"this job file does not exist.{tail}")) from None
    except OSError as error:
        raise _job_file_error(Problem(_cut(shown), "", f"cannot be read: {error.strerror}.")) from error
    except UnicodeDecodeError as error:
        raise _job_file_error(Problem(shown, "", f"cannot be read as text: {error}")) from error
    return _layer_of(text, shown)


def _layer_of(text: str, whole: str) -> _Layer:
    """Return the values of a YAML text. `whole` is its name in error messages."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        at = f"{whole}:{error.line}" if error.line else whole
        raise _job_file_error(
            Problem(
                at, "", f"{error.message}. Correct {'that line' if error.line else 'it'}; indent with spaces."
            )
        ) from error
    if not isinstance(document.value, dict):
        raise _job_file_error(Problem(whole, "", "must be a mapping of keys to values."))
    places = {key: f"{whole}:{line}" for key, line in document.lines.items()}
    if document.repeated:
        raise _job_file_error(
            *(
                Problem(f"{whole}:{line}", ".".join(key), f"is given twice; first at {places[key]}.")
                for key, line in document.repeated
            )
        )
    return _Layer(document.value, places, whole)


def _read_overrides(overrides: Sequence[str]) -> _Layer:
    values: dict[str, Any] = {}
    places: dict[Key, str] = {}
    for text in overrides:
        name, equals, value = text.partition("=")
        key = tuple(name.strip().split("."))
        where = f"--set {_cut(text)}"
        if not equals or not all(key) or len(key) > _MAX_OVERRIDE_DEPTH:
            raise _job_file_error(Problem(where, "", "is not key=value, for example train.steps=100."))
        try:
            parsed = read_yaml(value).value
        except YamlError as error:
            raise _job_file_error(Problem(where, "", f"the value {error.message}.")) from error
        inner = values
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                message = "sets a key inside one to which another --set gives a value."
                raise _job_file_error(Problem(where, "", message))
        inner[key[-1]] = parsed
        for depth in range(1, len(key) + 1):
            places[key[:depth]] = where
    return _Layer(values, places, "--set")


def _resolve(layers: Sequence[_Layer]) -> AnyJob:
    given: dict[str, Any] = {}
    places: dict[Key, str] = {}
    replaced: tuple[str, ...] = ()
    for layer in layers:
        whole_keys = _whole_keys(layer)
        if _names_first_class(given, layer.values):
            given = _without_mirage_keys(given)
        model = ("model",) if _replaces_model(given, layer) else ()
        given = _merge(given, layer.values, (*whole_keys, *model))
        places.update(layer.places)
        replaced += whole_keys
    place = _finder(places, layers[-2].whole if len(layers) > 1 else layers[-1].whole)
    kind = _kind(given.get("kind", DEFAULT_KIND), place)
    given = _merge(kind.defaults(given), given, whole_keys=replaced)
    try:
        job: AnyJob = kind.model.model_validate(given)
    except ValidationError as error:
        wrong = [_problem(e, kind, place) for e in _relevant(error.errors())[:_MAX_PROBLEMS]]
        understood = _without_unknown_keys(given, error)
        if understood is not None:
            wrong += _conflicts(kind, kind.model.model_validate(understood), place)
        raise _job_file_error(*wrong) from None
    if problems := _conflicts(kind, job, place):
        raise _job_file_error(*problems)
    return job


def _conflicts(kind: JobKind, job: AnyJob, place: _Place) -> list[Problem]:
    return [Problem(place(tuple(key.split("."))), key, message) for key, message in kind.conflicts(job)]


def _without_unknown_keys(given: Mapping[str, Any], error: ValidationError) -> Mapping[str, Any] | None:
    """Return `given` without its unknown keys, None where there are other errors."""
    left = copy.deepcopy(dict(given))
    for problem in error.errors():
        section: Any = left
        for name in problem["loc"][:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if problem["type"] != "extra_forbidden" or not isinstance(section, dict):
            return None
        section.pop(problem["loc"][-1], None)
    return left


def _kind(name: object, place: _Place) -> JobKind:
    if isinstance(name, str) and name in KINDS:
        return KINDS[name]
    near = difflib.get_close_matches(name, KINDS, n=1) if isinstance(name, str) else []
    hint = f' Did you mean "{near[0]}"?' if near else ""
    message = f"is {_shown(name)}: choose from {', '.join(KINDS)}.{hint}"
    raise _job_file_error(Problem(place(("kind",)), "kind", message))


def _merge(
    base: Mapping[str, Any], over: Mapping[str, Any], whole_keys: tuple[str, ...] = (), prefix: str = ""
) -> dict[str, Any]:
    """Return `base` updated by `over`, mapping by mapping. Mappings in `whole_keys` are replaced as a whole."""
    merged = dict(base)
    for name, value in over.items():
        merged[name] = _merged(merged.get(name), value, whole_keys, f"{prefix}{name}")
    return merged


def _merged(below: Any, value: Any, whole_keys: tuple[str, ...], key: str) -> Any:
    """Return `below` updated by `value`, where `{"0": ...}` updates the first item of a list."""
    if not isinstance(value, Mapping) or key in whole_keys:
        return value
    if isinstance(below, Mapping):
        return _merge(below, value, whole_keys, f"{key}.")
    if isinstance(below, list) and value and value.keys() <= {str(index) for index in range(len(below))}:
        items = {str(index): item for index, item in enumerate(below)}
        return list(_merge(items, value, whole_keys, f"{key}.").values())
    return value


def _whole_keys(layer: _Layer) -> tuple[str, ...]:
    """Return the mappings that the layer replaces as a whole.

    They are the mixture, unless `--set` changes one of its keys, and what `--set` gives within pipelines.
    """
    overrides = list(layer.places) if layer.whole == "--set" else []
    inner = {key[:-1] for key in overrides}
    given = [".".join(key) for key in overrides if key[0] == "degradations" and key not in inner]
    data = layer.values.get("data")
    by_dot = any(len(key) > 2 and key[:2] == ("data", "mixture") for key in overrides)
    mixture = ["data.mixture"] if isinstance(data, dict) and "mixture" in data and not by_dot else []
    return (*mixture, *given)


def _names_first_class(below: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Return whether a layer with these `values` gives a class of the user to a job that trained a MIRAGE."""
    return _class(values) is not None and _class(below) is None


def _class(values: Mapping[str, Any]) -> Any:
    model = values.get("model")
    return model.get("class") if isinstance(model, Mapping) else None


def _without_mirage_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` without the sizes of a MIRAGE and the weight of its SPD term, which no other network has."""
    left = dict(values)
    for section, keys in (("model", MIRAGE_KEYS), ("loss", {"spd_weight"})):
        if isinstance(left.get(section), Mapping):
            left[section] = {name: value for name, value in left[section].items() if name not in keys}
    return left


def _replaces_model(below: Mapping[str, Any], layer: _Layer) -> bool:
    """Return whether `--set model={class: ...}` names another class, whose arguments are not those of the one below."""
    by_dot = any(len(key) > 1 and key[0] == "model" for key in layer.places)
    named = _class(layer.values)
    return layer.whole == "--set" and not by_dot and named is not None and named != _class(below)


def _relevant(errors: Sequence[Any]) -> list[Any]:
    """Return the errors without consequences of others: a wrong setting leaves the mixture missing."""
    wrong = {e["loc"] for e in errors}
    derived = {("data", "mixture"), ("evaluate",)}
    setting_wrong = ("setting",) in wrong or ("recipe",) in wrong
    return [e for e in errors if not (setting_wrong and e["type"] == "missing" and e["loc"] in derived)]


def _problem(error: Any, kind: JobKind, place: _Place) -> Problem:
    key = tuple(str(part) for part in error["loc"] if part != "[key]")
    dotted = ".".join(key)
    where = place(key)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        return Problem(where, dotted, _unknown(key, kind))
    if error["type"] == "missing":
        return Problem(where, dotted, "is missing.")
    if error["type"] in ("tuple_type", "list_type"):
        meaning = _meaning(key, kind)
        return Problem(
            where, dotted, f"is {_shown(value)}: write a list, [..., ...].{f' {meaning}' if meaning else ''}"
        )
    message = message_of(error)
    choices = message.split("'")[1::2]  # pydantic quotes them
    near = difflib.get_close_matches(value, choices, n=1) if isinstance(value, str) else []
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return Problem(where, dotted, f"is {_shown(value)}: {message.rstrip('.')}.{hint}")


def _meaning(key: Key, kind: JobKind) -> str:
    """Return what the schema says of a key, "" where it says nothing."""
    model: Any = kind.model
    for part in key[:-1]:
        field = model.model_fields.get(part)
        model = field.annotation if field else None
        if not hasattr(model, "model_fields"):
            return ""
    field = model.model_fields.get(key[-1])
    return (field.description or "") if field else ""


def _finder(places: Mapping[Key, str], whole: str) -> _Place:
    """Return a function that returns the place of a key, or of the nearest key above it that has one, or `whole`.

    A parameter of a sweep is one key with dots in it, so keys are compared as text.
    """
    written = {".".join(parts): where for parts, where in places.items()}

    def place(key: Key) -> str:
        parts = ".".join(key).split(".")
        above = (".".join(parts[:depth]) for depth in range(len(parts), 0, -1))
        return next((written[dotted] for dotted in above if dotted in written), whole)

    return place


def _unknown(key: Key, kind: JobKind) -> str:
    """Return the message about a key that the kind does not have."""
    known = _fields(kind.model, key[:-1])
    near = difflib.get_close_matches(key[-1], known, n=1, cutoff=0.6)
    if near:
        return f'unknown key. Did you mean "{near[0]}"?'
    theirs = [name for name, other in KINDS.items() if key[-1] in _fields(other.model, key[:-1])]
    if theirs:
        own = next(name for name, other in KINDS.items() if other is kind)
        return f"is a key of jobs of kind {' or '.join(theirs)}; this job is of kind {own}. Remove it."
    return f"unknown key. Known: {', '.join(known)}."


def _fields(model: type[BaseModel] | None, key: Key) -> list[str]:
    """Return the keys of the schema of `model` below `key`, as they are written in a file."""
    for name in key:
        field = _by_key(model).get(name) if model else None
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    return sorted(_by_key(model)) if model else []


def _by_key(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    """Return a text as one that is short enough for a message."""
    return text if len(text) <= 120 else f"{text[:117]}..."


def _job_file_error(*problems: Problem) -> JobFileError:
    listed = problems[:_MAX_PROBLEMS]
    width = max(len(p.where) for p in listed)
    keys = max(len(_cut(p.key)) for p in listed)
    lines = [
        f"{p.where:<{width}}  {_cut(p.key):<{keys}}  {p.message}"
        if keys
        else f"{p.where:<{width}}  {p.message}"
        for p in listed
    ]
    number = (
        count(len(problems), "problem")
        if len(problems) < _MAX_PROBLEMS
        else f"{_MAX_PROBLEMS} problems or more"
    )
    return JobFileError("\n".join([*lines, f"{number}. Nothing was started."]))
