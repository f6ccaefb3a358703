"""`mirage` as a user meets it: grouped help with examples, old option names, kinds of jobs, completion."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from orchestrator.cli import app, pack
from orchestrator.cli.app import OLD_OPTIONS, complete_job_file
from orchestrator.config.schema import Pack, PackSource
from tests.claims import assert_one_clear_error, mirage

PANELS = ["Get started", "Data", "Training", "Evaluation", "Models", "Restore and serve", "Proofs"]


def commands() -> Iterator[tuple[str, Any]]:
    """Yield (words, command) of every command and sub-command."""
    group = typer.main.get_command(app)
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if hasattr(command, "list_commands"):
            for inner in command.list_commands(None):
                yield f"{name} {inner}", command.get_command(None, inner)
        else:
            yield name, command


def test_help_lists_every_command_in_the_panels_in_order() -> None:
    text = mirage("--help").text
    places = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert places == sorted(places)
    for words, _ in commands():
        assert f"│ {words.split()[0]} " in text


@pytest.mark.parametrize(
    ("words", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_an_example_that_calls_it(words: str, command: Any) -> None:
    assert command.epilog
    assert f"mirage {words}" in command.epilog


def test_the_version_is_printed() -> None:
    assert mirage("--version").text.startswith("mirage 0.")


@pytest.mark.parametrize("old", OLD_OPTIONS, ids=" ".join)
def test_an_old_option_stands_for_one_that_exists_and_is_not_shown(old: tuple[str, str]) -> None:
    found = dict(commands())[old[0]]
    names = [name for parameter in found.params for name in parameter.opts]
    assert OLD_OPTIONS[old] in names
    assert old[1] not in names


def options() -> Iterator[tuple[str, Any]]:
    """Yield (command, option) of every option."""
    for words, command in commands():
        yield from ((words, each) for each in command.params if each.param_type_name == "option")


def test_an_option_is_a_flag_a_number_or_text_in_all_commands_and_a_letter_stands_for_one_option() -> None:
    kinds, letters = defaultdict(set), defaultdict(set)
    for _, each in options():
        kind = {bool: "flag", int: "number", float: "number"}.get(each.type_descriptor.annotation, "text")
        kinds[each.opts[0]].add(kind)
        for letter in each.opts[1:]:
            letters[letter].add(each.opts[0])
    assert kinds["--steps"] == {"number"}
    assert letters["-o"] == {"--out"}
    assert [name for name, found in (kinds | letters).items() if len(found) > 1] == []


@pytest.mark.parametrize("unit", ["seconds", "hours", "megabytes", "megapixels", "mib", "gib", "db"])
def test_an_option_with_a_unit_has_it_in_its_name(unit: str) -> None:
    """Pixels alone go without saying: the side of a crop or a tile is never anything else."""
    for words, each in options():
        if each.type_descriptor.annotation in (int, float) and re.search(rf"\b{unit}\b", each.help.lower()):
            assert each.opts[0].endswith(f"-{unit}"), f"mirage {words} {each.opts[0]}"


def test_an_old_option_works_with_one_line_that_names_the_new_one() -> None:
    for words in (("--kills", "30"), ("--kills=30",)):
        done = mirage("chaos", "jobs/demo.yaml", *words, "--steps", "20")
        first, error = done.text.strip().splitlines()
        assert first == "--kills is now called --faults. The old name still works."
        assert "30 faults need as many steps" in error


def test_an_old_option_of_a_sub_command_works(tmp_path: Path) -> None:
    done = mirage("pack", "pairs", "--root", tmp_path / "none", "-o", tmp_path / "out", "--jobs", "1")
    assert "--jobs is now called --processes" in done.text


def test_a_value_that_looks_like_an_old_option_of_another_command_is_left_alone() -> None:
    assert "is now called" not in mirage("plan", "jobs/demo.yaml", "--kills", "3").text


@pytest.mark.parametrize(
    ("command", "job", "kind"),
    [("train", "jobs/restore.yaml", "restore"), ("evaluate", "jobs/demo.yaml", "train")],
)
def test_a_command_refuses_a_job_of_another_kind(command: str, job: str, kind: str) -> None:
    assert_one_clear_error(mirage(command, job), f"{job}: is a job of kind {kind}")


def test_the_sources_of_pack_are_those_of_the_job_schema() -> None:
    sources = [words.removeprefix("pack ") for words, _ in commands() if words.startswith("pack ")]
    assert sorted(sources) == sorted(get_args(PackSource))
    assert set(pack.PUBLISHED) < set(sources)


def test_a_mistyped_dataset_suggests_the_right_one() -> None:
    assert "Did you mean 'rain100l'" in mirage("pack", "rain10l", "--root", "x", "-o", "y").text


def test_what_pack_needs_is_asked_for() -> None:
    done = mirage("pack", "rain100l", "-o", "x")
    assert done.status == 2
    assert "--root" in done.text


def test_runs_are_completed_from_the_home_folder_without_torch(tmp_path: Path) -> None:
    (tmp_path / "p" / ".mirage" / "runs" / "a-1").mkdir(parents=True)
    (tmp_path / "p" / ".mirage" / "runs" / "a-1" / "location.txt").touch()
    (tmp_path / "p" / ".mirage" / "folder" / "runs" / "a-1").mkdir(parents=True)
    code = (
        "import sys; from orchestrator.cli.app import complete_run_folder, complete_run_id;"
        "print(complete_run_id('a'), complete_run_folder('.mirage'), 'torch' in sys.modules)"
    )
    home = {**os.environ, "MIRAGE_HOME": str(tmp_path / "p" / ".mirage")}
    done = subprocess.run([sys.executable, "-c", code], env=home, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['a-1'] ['.mirage/folder/runs/a-1'] False"


def test_job_files_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    for name in ("mine.yaml", "jobs/demo.yaml", "jobs/derain.yaml", "jobs/notes.md"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert complete_job_file("jobs/de") == ["jobs/demo.yaml", "jobs/derain.yaml"]
    assert complete_job_file("") == ["jobs/demo.yaml", "jobs/derain.yaml", "mine.yaml"]


def test_every_pack_command_keeps_jpeg_files_as_a_job_does():
    default = Pack.model_fields["jpeg"].default
    for name in ("photographs", "clean", "synthetic", "pairs"):
        assert inspect.signature(getattr(pack, name)).parameters["jpeg"].default == default, name
