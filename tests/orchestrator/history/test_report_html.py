"""report.html: whole for every run, with nothing from the network and nothing of a name as markup."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from orchestrator import events
from orchestrator.evaluation.scores import DegradationScore
from orchestrator.history.chart import chart, sparkline
from orchestrator.history.curve import Curve, finite
from orchestrator.history.record import History, Input, Prediction
from orchestrator.history.report_html import run_page
from orchestrator.imaging.convert import png_bytes
from tests.claims import noise_image
from tests.orchestrator.history.test_record import FACTS, begun, progress

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=y>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page's elements and text; fails where they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def score(name: str) -> DegradationScore:
    return DegradationScore(name, 3, 20.0, 0.5, 25.0, 0.8, 5.0, 4.0, 6.0, 21.0)


def full(text: str) -> History:
    data = [Input(text, "d" * 64, 10, 2)]
    predictions = [Prediction(1, 2.0, 0.1, 3.0, 4.0)]
    named = {"run": text, "folder": text, "name": text, "setting": text, "recipe": text, "tracked": text}
    history = begun(**named, job=text, plan=text, speed_from=text, data=data, predictions=predictions)
    history.processes[0].host = history.processes[0].code_version = text
    for step in range(1, 9):
        history.add(progress(step, 1 / step), step)
    history.add(events.Validation(8, {f"val/5deg/{text}/psnr": 22.0, "val/psnr": 22.0}, {}, {}), 9.0)
    history.add(events.Metrics(8, {f"loss_of/{text}": 1.0, "system/node-0/memory_gib": 3.5}), 9.0)
    history.add(events.LogMessage(text, "warning"), 10.0)
    history.end("failed", text, 11.0)
    return history


def test_a_page_loads_nothing_and_runs_nothing_whatever_things_are_called() -> None:
    rows = [score(EVIL), score("average")]
    text = run_page(full(EVIL), rows, EVIL, png_bytes(noise_image()), EVIL)
    page = Page(text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert page.tags.count("img") == 1, "the sheet, and none of a name"
    for name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "xlink:href")
        assert name != "src" or str(value).startswith("data:image/png;base64,")
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http-equiv", "")
    assert page.text.count(EVIL) >= 12, "names are shown as they are"


@settings(max_examples=40, deadline=None)
@given(some.text(max_size=30))
def test_a_page_is_whole_for_any_name(text: str) -> None:
    Page(run_page(full(text), [score(text), score("average")], text))


@pytest.mark.parametrize("state", ["training", "stopped", "failed", "finished"])
def test_every_state_has_its_report(state: str) -> None:
    history = begun()
    if state != "training":
        history.end(state, "because" if state == "failed" else "", 1.0)
    page = Page(run_page(history, [score("rain"), score("average")] if state == "finished" else ()))
    assert state in page.text
    assert "No step was measured." in page.text
    assert ("because" in page.text) == (state == "failed")
    assert ("Run the job again" in page.text) == (state in ("stopped", "failed"))


def test_a_run_of_an_earlier_version_has_a_report_without_a_record() -> None:
    assert (
        "No process was recorded." in Page(run_page(History(FACTS), [score("rain"), score("average")])).text
    )


def test_the_report_compares_the_prediction_with_what_happened() -> None:
    text = Page(run_page(full("x"))).text
    assert "2h00m" in text
    assert "EUR 4.00" in text
    assert "0.5 s, median" in text, "batch 4 at 8 images per second"
    assert "3.50 GiB in use" in text


NUMBERS = some.sampled_from([math.nan, math.inf, 0.0, 1.0, -1.0, 1e-12, 1e12, 5e-324, 1.7e308, -1.7e308])


@settings(max_examples=150, deadline=None)
@given(some.lists(NUMBERS | some.floats(-10, 10), max_size=12), some.booleans())
def test_a_chart_of_any_numbers_is_drawn_inside_its_frame(values: list[float], may_be_log: bool) -> None:
    curve = Curve()
    for step, value in enumerate(values):
        curve.add(step, value)
    svg = chart("y", {"a": curve}, may_be_log=may_be_log)
    assert bool(svg) == any(value is not None for value in curve.values)
    if svg:
        root = ElementTree.fromstring(svg)
        for point in root.iter("circle"):
            assert -1 <= float(point.attrib["cx"]) <= 641
            assert -1 <= float(point.attrib["cy"]) <= 301
        assert "nan" not in re.sub("<title>.*?</title>", "", svg)


@given(some.lists(some.none() | NUMBERS.map(finite), max_size=20))
def test_a_sparkline_has_one_character_per_value(values: list[float | None]) -> None:
    drawn = sparkline(values)
    assert len(drawn) == (len(values) if any(value is not None for value in values) else 0)
