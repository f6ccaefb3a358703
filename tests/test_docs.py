"""The documentation says what exists: commands, options, job keys, Python names and links."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

from orchestrator.bench.__main__ import parser as bench_parser
from orchestrator.cli import app
from orchestrator.config.loader import load_job
from orchestrator.config.starter import starter_job
from tests.claims import ROOT, encoded, mirage, noise_image

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
OTHER_PROGRAMS = re.compile(r"\s(?:\||&&|>|>>|;|#)(?=\s|$)")
"""Where the words of a command end, and another program, a file or a comment begins."""


class Block(NamedTuple):
    """A block of code of a page."""

    where: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    """Yield the fenced and the indented blocks of all pages."""
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            line = text[: found.start()].count("\n") + 1
            yield Block(f"{page.name}:{line}", found[1], found[2])
        for found in re.finditer(r"(?<=\n\n)((?:    \S.*\n)+)", text):
            line = text[: found.start()].count("\n") + 1
            yield Block(f"{page.name}:{line}", "", re.sub("^    ", "", found[1], flags=re.MULTILINE))


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield (place, words) of each `mirage` command in a block."""
    for block in blocks():
        if block.language in ("", "sh", "bash", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if found := re.match(r"(?:\$ )?(?:[A-Z_]+=\S+ )*mirage (.*)", line):
                    yield block.where, OTHER_PROGRAMS.split(found[1])[0]


def mentions() -> Iterator[tuple[str, str]]:
    """Yield (place, words) of each `mirage` command in the text of a page."""
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for found in re.findall(r"`mirage ([a-z][^`]*)`", line):
                yield f"{page.name}:{number}", OTHER_PROGRAMS.split(found)[0]


@cache
def application() -> Any:
    return typer.main.get_command(app)


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that `words` call, and its arguments."""
    command = application()
    while (
        words and not words[0].startswith("-") and not words[0].isupper() and hasattr(command, "get_command")
    ):
        inner = command.get_command(None, words[0])
        assert inner is not None, f"there is no command `mirage {words[0]}`"
        command, words = inner, words[1:]
    return command, words


def option_names(command: Any) -> set[str]:
    """Return the names of the options of a command, or of all commands of a group."""
    if hasattr(command, "list_commands"):
        return set().union(
            *(option_names(command.get_command(None, each)) for each in command.list_commands(None))
        )
    return {"--help", "-h"}.union(*((*each.opts, *each.secondary_opts) for each in command.params))


@pytest.mark.parametrize(("where", "line"), list(command_lines()))
def test_a_command_in_a_block_can_be_given_as_it_is(where: str, line: str) -> None:
    command, words = resolve(shlex.split(line))
    if command.name == "bench":
        bench_parser().parse_args(words)  # exits, with its reason, when it does not understand
        return
    given, rest, _ = command.make_parser(typer.Context(command)).parse_args(words)
    assert not rest, f"{where}: nobody takes {rest}"
    missing = [each.name for each in command.params if each.required and given.get(each.name) in (None, ())]
    assert not missing or "--help" in words, f"{where}: {missing} is missing"


def test_the_job_files_of_getting_started_are_written_and_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pattern, kind in {
        "photos/{}.png": "PNG",
        "pairs/degraded/{}.jpg": "JPEG",
        "pairs/clean/{}.png": "PNG",
    }.items():
        (tmp_path / pattern).parent.mkdir(parents=True)
        for number in range(10):
            (tmp_path / pattern.format(number)).write_bytes(encoded(noise_image(96, 96, number), kind))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MIRAGE_HOME", str(tmp_path / ".mirage"))
    lines = [line for where, line in command_lines() if where.startswith("getting-started.md")]
    run = [shlex.split(line) for line in lines if line.startswith(("init", "plan"))]
    assert [words[0] for words in run] == ["init", "init", "plan"]
    for words in (*run, ["plan", "jobs/phone.yaml"]):
        done = mirage(*words)
        assert done.status == 0, done.text
        assert "warning" not in done.text


@pytest.mark.parametrize(("where", "line"), list(mentions()))
def test_a_command_that_a_text_mentions_exists_with_its_options(where: str, line: str) -> None:
    command, words = resolve(line.replace("'", " ").split())
    known = option_names(command)
    for word in words:
        name = word.partition("=")[0].strip("[]()")
        assert not re.match(r"--?[a-z]", name) or name in known, f"{where}: no option {name}"


@pytest.mark.parametrize(
    "block", [each for each in blocks() if each.language == "yaml"], ids=lambda block: block.where
)
def test_a_yaml_block_that_is_a_whole_job_is_a_valid_one(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if isinstance(content, dict) and "name" in content:
        pack = {"source": "synthetic", "root": "photos", "degradations": ["rain"]}
        mine = starter_job("mine", pack, ["rain"], {}, path="mine.yaml", steps=800, gpu=False)
        (tmp_path / "mine.yaml").write_text(mine)  # what an example extends
        (tmp_path / "job.yaml").write_text(block.text)
        load_job(tmp_path / "job.yaml")


@pytest.mark.parametrize(
    "block", [each for each in blocks() if each.language == "python"], ids=lambda block: block.where
)
def test_the_names_that_a_python_block_imports_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "mirage",
            "shards",
            "orchestrator",
        ):
            module = importlib.import_module(str(node.module))
            assert all(hasattr(module, each.name) for each in node.names)


def test_the_site_is_built_with_every_page_and_no_link_leads_nowhere(tmp_path: Path) -> None:
    loader = SourceFileLoader("docs", str(ROOT / "scripts" / "docs"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    script = module_from_spec(spec)
    loader.exec_module(script)
    script.main(tmp_path / "docs")
    site = tmp_path / "docs" / "site"
    navigation = (ROOT / "zensical.toml").read_text()
    for page in (tmp_path / "docs" / "pages").rglob("*.md"):
        name = page.relative_to(tmp_path / "docs" / "pages")
        assert f'"{name}"' in navigation, f"{name} is not in zensical.toml"
        html = (site / name.with_suffix(".html")).read_text()
        assert not re.search(r'<(script|link|img)[^>]* (src|href)="(https?:)?//', html), (
            f"{name} loads from elsewhere"
        )
    assert "global_batch_size" in (site / "reference" / "jobs.html").read_text()
    assert "--held-out-share" in (site / "reference" / "commands.html").read_text()
