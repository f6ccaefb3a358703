"""No number of a command line ends in a traceback: it is finite and in a range, or one error names its option."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from orchestrator.bench.__main__ import parser
from orchestrator.cli import app
from orchestrator.errors import ServiceError
from orchestrator.serving.settings import ServiceSettings

HUGE = "1" + "0" * 30
NO_FLOAT = ("nan", "inf", "-inf", "1e999", "1e300", "-1e300", HUGE)
NO_INT = (HUGE, f"-{HUGE}", "9" * 5000, "1.5", "nan")


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for each in group.registered_commands:
        yield " ".join((*path, each.name or each.callback.__name__)), each.callback
    for each in group.registered_groups:
        yield from commands(each.typer_instance, (*path, str(each.name or each.typer_instance.info.name)))


def number_in(annotation: Any) -> type | None:
    if annotation in (int, float):
        return annotation
    return next(filter(None, map(number_in, get_args(annotation))), None)


OPTIONS = {
    f"{command} {name}": (name, annotation)
    for command, function in commands(app)
    for name, annotation in get_type_hints(function, include_extras=True).items()
    if get_origin(annotation) is Annotated and number_in(annotation)
}


def test_the_walk_finds_options_of_commands_and_of_groups() -> None:
    assert {
        "gc older_than",
        "pack pairs held_out_share",
        "serve timeout_seconds",
        "promote margin_db",
    } <= OPTIONS.keys()


def test_no_option_takes_a_number_that_is_not_finite_or_that_no_system_call_holds() -> None:
    runner, taken = CliRunner(), []
    for where, (name, annotation) in OPTIONS.items():

        def probe(**values: object) -> None:
            pass

        probe.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)]
        )
        probe.__annotations__ = {name: annotation}
        alone = typer.Typer()
        alone.command()(probe)
        (declared, *_) = [*(get_args(annotation)[1].param_decls or ()), f"--{name.replace('_', '-')}"]
        option = declared if declared.startswith("--") else f"--{name.replace('_', '-')}"
        for text in NO_FLOAT if number_in(annotation) is float else NO_INT:
            done = runner.invoke(alone, [f"{option}={text}"])
            if done.exit_code != 2 or option not in done.output:
                taken.append(f"{where}: {text:.12}")
    assert taken == []


def benchmarks() -> Iterator[tuple[str, str]]:
    (kinds,) = (action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
    for kind, inner in kinds.choices.items():
        for action in inner._actions:
            if (
                action.type is not None
                and action.type not in (str,)
                and "path" not in str(action.type).lower()
            ):
                yield kind, action.option_strings[-1]


@pytest.mark.parametrize("kind", ["model", "train-parity", "loader", "scaling", "checkpoint"])
def test_no_option_of_a_benchmark_takes_such_a_number(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [option for of, option in benchmarks() if of == kind]
    assert options
    for option in options:
        for text in (*NO_FLOAT, "-1"):
            with pytest.raises(SystemExit) as ended:
                parser().parse_args([kind, "--release", "x", f"{option}={text}"])
            assert ended.value.code == 2
            assert f"argument {option}" in capsys.readouterr().err, (option, text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300, 0.0, -1.0])
@pytest.mark.parametrize("key", ["timeout_seconds", "poll_seconds", "max_megabytes", "max_megapixels"])
def test_no_setting_of_an_application_is_such_a_number(key: str, value: float) -> None:
    good: dict[str, Any] = {"max_megabytes": 1.0, "max_megapixels": 1.0}
    with pytest.raises(ServiceError, match=key.replace("_", "-")):
        ServiceSettings.from_flags(**{**good, key: value})
