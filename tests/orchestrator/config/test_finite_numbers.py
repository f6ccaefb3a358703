"""Every number of every kind of job is finite and within a range that arithmetic and system calls can hold."""

from __future__ import annotations

import types
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from orchestrator.config import job_types  # noqa: F401  (defines every section)
from orchestrator.config.loader import load_job
from orchestrator.config.schema import Section
from orchestrator.errors import JobFileError
from tests.claims import mirage

NOT_FINITE = (float("inf"), float("-inf"), float("nan"), 1e309, ".inf", "1e309", "nan", "-Infinity", 10**400)
UNBOUNDED = {"learning_rate", "range", "log_range"}
"""A sweep may try any rate; a range holds values of any key."""


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    for section in base.__subclasses__():
        yield section
        yield from sections(section)


def with_number(annotation: Any, number: object) -> Iterator[object]:
    """Yield values of this type that hold `number` wherever the type holds a float or anything."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is float:
        yield number
    elif annotation is Any:
        yield from (number, [number], {"key": {"inner": number}}) if isinstance(number, float) else ()
    elif origin is Annotated:
        yield from with_number(arguments[0], number)
    elif origin in (Union, types.UnionType):
        yield from chain.from_iterable(with_number(one, number) for one in arguments)
    elif origin is tuple:
        length = 1 if arguments[-1] is Ellipsis else len(arguments)
        for inner in with_number(arguments[0], number):
            yield from ([*([0.5] * i), inner, *([0.5] * (length - i - 1))] for i in range(length))
    elif origin is dict:
        keys = get_args(arguments[0]) if get_origin(arguments[0]) is Literal else ("key",)
        yield from ({keys[0]: inner} for inner in with_number(arguments[1], number))


FIELDS = sorted(
    {
        (section, name): field
        for section in sections()
        for name, field in section.model_fields.items()
        if name != "degradations"  # their parser tells the exact key: test_degradations.py
        if list(with_number(field.annotation, 1.0))
    }.items(),
    key=lambda item: (item[0][0].__name__, item[0][1]),
)


def refuses(section: type[Section], field: FieldInfo, name: str, value: object) -> bool:
    key = field.alias or name
    try:
        section.model_validate({key: value})
    except ValidationError as error:
        return any(one["loc"][0] == key for one in error.errors() if one["loc"])
    return False


def test_the_walk_finds_numbers_in_tuples_mappings_and_open_values() -> None:
    found = {name for (_, name), _ in FIELDS}
    assert {
        "betas",
        "weights",
        "cpus",
        "arguments",
        "choice",
        "log_range",
        "from_epoch",
        "clip_norm",
    } <= found


@pytest.mark.parametrize("number", NOT_FINITE, ids=str)
def test_no_key_takes_a_number_that_is_not_finite(number: object) -> None:
    taken = [
        f"{section.__name__}.{name}: {value!r:.60}"
        for (section, name), field in FIELDS
        for value in with_number(field.annotation, number)
        if not refuses(section, field, name, value)
    ]
    assert taken == []


def test_every_key_of_a_number_has_a_range() -> None:
    taken = [
        f"{section.__name__}.{name}: {value!r}"
        for (section, name), field in FIELDS
        for number in (1e300, -1e300)
        for value in with_number(field.annotation, number)
        if name
        not in UNBOUNDED | {"arguments", "degradations", "choice", "when", "default", "set", "variants"}
        and not refuses(section, field, name, value)
    ]
    assert taken == []


@pytest.mark.parametrize(
    "override",
    [
        *(
            "train.learning_rate=.inf",
            "train.learning_rate=1.0e+999",
            "train.betas=[-5, 0.5]",
            "train.betas=[0.9, 1]",
        ),
        *("workers.cpus=.inf", "train.clip_norm=.nan", "loss.spd_weight=-.inf", "train.epochs=.inf"),
        *(
            "model.ffn_expansion=1.0e+300",
            "prices.worker_hour=.inf",
            "workers.collective_timeout_seconds=.inf",
        ),
    ],
)
def test_a_number_out_of_range_is_one_error_that_names_its_key(override: str) -> None:
    with pytest.raises(JobFileError, match=override.partition("=")[0].replace(".", r"\.")):
        load_job(Path("jobs/demo.yaml"), [override])


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_no_option_of_a_command_takes_a_number_that_is_not_finite(text: str, tmp_path: Path) -> None:
    found = mirage("gc", tmp_path, "--older-than-hours", text, "--delete")
    assert found.status == 2
    assert "older-than" in found.text
