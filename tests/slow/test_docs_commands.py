"""Blocks of the documentation with the mark `<!-- run -->` are run, in the order of their page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.claims import ROOT, encoded, mirage, noise_image
from tests.test_docs import OTHER_PROGRAMS

pytestmark = pytest.mark.slow

SHORT = [
    f"--set={key}" for key in ("train.steps=2", "train.warmup_steps=1", "validation.every_steps=2")
]  # a training of a page, in seconds
NAMES = {
    "models:/mirage-demo@candidate": "models:/mine@candidate",
    "MODEL": "models:/mine@candidate",
    "RAW": "raw",
    "PHOTOS": "photos",
}
"""Words of the pages that stand for the reader's own -> what they are here."""


def blocks_to_run(page: str) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of each marked block."""
    text = (ROOT / "docs" / page).read_text()
    for found in re.finditer(r"^<!-- run -->\n\n```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def run_page(page: str) -> list[str]:
    """Run the marked blocks of a page, except what needs a bucket; return the lines that ran."""
    ran: list[str] = []
    for language, text in blocks_to_run(page):
        if language == "python":
            exec(compile(text, page, "exec"), {"degraded": _degraded()})
            ran.append(text)
            continue
        for line in text.splitlines():
            if "s3://" not in line:
                own = {**NAMES, "URI": f"packed/{len(ran)}"}
                words = [own.get(word, word) for word in shlex.split(OTHER_PROGRAMS.split(line)[0])]
                assert words.pop(0) == "mirage", f"{page}: {line}"
                done = mirage(*words, *(SHORT if words[0] == "train" else ()))
                assert done.status == 0, f"{page}: {line}\n{done.text}"
                ran.append(line)
    return ran


def _degraded() -> object:
    import torch

    return torch.rand(3, 24, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what the pages ask of the reader, and the model that getting started trains."""
    folder = tmp_path_factory.mktemp("reader")
    for number in range(10):
        for name in (
            *(f"photos/{number}.png", f"pairs/degraded/{number}.jpg", f"pairs/clean/{number}.png"),
            *(f"raw/input/{number}_1.png", f"raw/target/{number}.png", f"scans/{number}.jpg"),
            *(f"trip/day/{number}.png",),
            *(
                f"raw/{split}/{part}"
                for split in ("train", "test")
                for part in (f"in/{number}.jpg", f"gt/{number}.png")
            ),
        ):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            kind = "PNG" if name.endswith("png") else "JPEG"
            (folder / name).write_bytes(encoded(noise_image(96, 96, number), kind))
    (folder / "photos" / "0.png").rename(folder / "photos" / "cat.png")
    (folder / "photo.jpg").write_bytes(encoded(noise_image(40, 24), "JPEG"))
    (folder / "photo.tif").write_bytes(encoded(noise_image(40, 24), "TIFF"))
    with pytest.MonkeyPatch.context() as patch:
        _enter(folder, patch)
        ran = run_page("getting-started.md")
        assert [line.split()[1] for line in ran] == ["init", "init", "plan", "preview", "train", "restore"]
        done = mirage(
            "export", "models:/mine@candidate", "--format", "safetensors", "-o", "weights.safetensors"
        )
        assert done.status == 0, done.text
    return folder


def _enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setenv("MIRAGE_HOME", str(folder / ".mirage"))
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_getting_started_ends_with_restored_photographs_of_the_reader(folder: Path) -> None:
    assert {each.name for each in (folder / "restored").iterdir()} >= {"cat.png", "1.png", "9.png"}
    assert (folder / "before-after.png").is_file()


@pytest.mark.parametrize(("page", "at_least"), [("restoring.md", 6), ("datasets.md", 2)])
def test_the_commands_of_a_page_run_one_after_the_other(
    folder: Path, page: str, at_least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _enter(folder, monkeypatch)
    assert len(run_page(page)) >= at_least
