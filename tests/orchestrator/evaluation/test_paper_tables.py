"""The paper's tables hold every published row, and measured ones only under the table's protocol."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import EvaluationError
from orchestrator.evaluation import paper_tables
from orchestrator.evaluation.aggregates import AggregateScore
from orchestrator.evaluation.model_under_test import ModelIdentity
from orchestrator.evaluation.paper_report import report
from orchestrator.evaluation.summary import EvaluationSummary, summary_bytes
from orchestrator.paper.benchmarks import COLUMNS
from orchestrator.paper.tables import NAMES, published, published_averages

IDENTITY = ModelIdentity("mine", "release", "raw", "e" * 64)


def figure(source: str, degradation: str, metric: str, value: float, **changes: str) -> AggregateScore:
    made = AggregateScore(
        *(metric, value, value - 0.1, value + 0.1, 68, source.lower(), "d" * 64, source, degradation, "all"),
        *("rgb-crop16", "release", "mine", "e" * 64, "release", "raw"),
    )
    return replace(made, **changes)


def summary(*figures: AggregateScore, parameters: int = 6_207_412) -> EvaluationSummary:
    return EvaluationSummary(
        "mine-0123456789", "mine", IDENTITY, parameters, 16_250_000_000, "0.1.0", figures
    )


THREE = [("SOTS outdoor", "haze"), ("Rain100L", "rain"), *(("CBSD68", f"noise{s}") for s in (15, 25, 50))]
WHOLE = summary(
    *(figure(*where, "psnr", 30.0 + i) for i, where in enumerate(THREE)),
    *(figure(*where, "ssim", 0.9) for where in THREE),
)


def lines(table: paper_tables.PaperTable, kind: str) -> list[paper_tables.TableLine]:
    return [line for line in table.lines if line.kind == kind]


def test_every_published_row_of_every_table_is_printed() -> None:
    printed = {name: "\n".join(map(paper_tables.text, paper_tables.make_tables(name, []))) for name in NAMES}
    counts = {name: sum(len(part.rows) for part in published(name)) for name in NAMES}
    assert counts == {"1": 20, "2": 21, "3": 8, "4": 12, "5": 8, "6": 8, "7": 7, "B": 27, "C": 4, "D": 4}
    for name, text in printed.items():
        assert text.count("published  ") == counts[name]
    assert "31.86 / 0.981" in printed["1"]
    assert "0.293" in printed["D"]  # LPIPS stands where the paper has it
    assert "3729M" in printed["6"]


def test_every_column_of_every_table_has_a_dataset() -> None:
    columns = {c for name in NAMES for part in published(name) for c in part.columns} - {"average"}
    assert columns <= set(COLUMNS)


def test_a_measured_row_stands_beside_its_difference_to_the_row_of_its_size() -> None:
    (table,) = paper_tables.make_tables("1", [WHOLE])
    (measured,), (difference,) = lines(table, "measured"), lines(table, "difference")
    assert measured.cells["average"]["psnr"] == pytest.approx(32.0)
    assert difference.method.strip() == "minus MIRAGE-T (Ours)"
    assert difference.cells["rain100l"]["psnr"] == pytest.approx(31.0 - 38.44)
    small = replace(WHOLE, parameters=9_678_983)
    assert "MIRAGE-S" in lines(paper_tables.make_tables("1", [small])[0], "difference")[0].method
    named = paper_tables.make_tables("1", [WHOLE], compare_with="PromptIR")[0]
    assert "minus PromptIR" in lines(named, "difference")[0].method
    with pytest.raises(EvaluationError, match="It has: BRDNet"):
        paper_tables.make_tables("1", [WHOLE], compare_with="nobody")


@pytest.mark.parametrize(
    "name", ["peer-moce-ir", "models:/peer-moce-ir@champion", "net.moce_ir:MoCEIR", "MoCE-IR"]
)
def test_another_network_is_compared_with_its_own_published_row(name: str) -> None:
    peer = replace(WHOLE, model=replace(IDENTITY, name=name), macs=None)
    ours, (difference,) = (
        lines(paper_tables.make_tables("1", [each])[0], "difference") for each in (WHOLE, peer)
    )
    assert difference.method.strip() == "minus MoCE-IR"
    assert ours
    both = paper_tables.make_tables("1", [WHOLE, peer])[0]
    assert [line.method for line in lines(both, "measured")] == ["mine", name]


def test_another_network_without_a_published_row_is_compared_with_none() -> None:
    peer = replace(WHOLE, model=replace(IDENTITY, name="peer-unknown"), macs=None)
    (table,) = paper_tables.make_tables("1", [peer])
    assert lines(table, "measured")
    assert not lines(table, "difference")


def test_a_table_has_its_title_and_signs_differences_alone() -> None:
    (table,) = paper_tables.make_tables("1", [WHOLE])
    title, _, _, *rows = paper_tables.text(table).splitlines()
    assert title.startswith("Table 1: ")
    assert title.endswith("Protocol rgb-crop16")
    (measured,) = (row for row in rows if row.startswith("measured"))
    (difference,) = (row for row in rows if row.startswith("difference"))
    assert "31.00 / 0.900" in measured
    assert f"{31.0 - 38.44:+.2f} / " in difference
    assert lines(table, "difference")[0].cells["bsd68_s50"]["psnr"] > 0
    assert f"{lines(table, 'difference')[0].cells['bsd68_s50']['psnr']:+.2f} / " in difference
    own = paper_tables.own_tables([summary(figure("", "rain", "psnr", 20.0, dataset="demo"))])
    assert paper_tables.text(own[0]).startswith("Dataset demo: ")


def test_columns_without_data_stay_empty_and_say_what_to_pack() -> None:
    (table,) = paper_tables.make_tables("2", [summary(figure("Rain100L", "rain", "psnr", 38.0))])
    (measured,) = lines(table, "measured")
    assert set(measured.cells) == {"rain100l", "average"}
    assert measured.cells["average"]["psnr"] is None  # part of an average is none
    assert any("Not measured: sots_outdoor, bsd68_s25, gopro, lol_v1. Pack" in note for note in table.notes)


def test_a_table_refuses_to_mix_protocols() -> None:
    other = summary(figure("Rain100L", "rain", "psnr", 40.0, protocol="y8"))
    with pytest.raises(EvaluationError, match="measured under y8, and this table is under rgb-crop16"):
        paper_tables.make_tables("1", [WHOLE, other])


def test_one_evaluation_of_two_sets_of_a_column_is_refused() -> None:
    twice = replace(WHOLE, figures=(*WHOLE.figures, figure("Rain100L", "rain", "psnr", 1.0, digest="f" * 64)))
    with pytest.raises(EvaluationError, match=r"rain100l was measured on .*dddddddd, .*ffffffff"):
        paper_tables.make_tables("1", [twice])


def test_sots_stands_with_and_without_its_leaked_images() -> None:
    unseen = [
        figure("SOTS outdoor", "haze", m, v, subset="without-leak")
        for m, v in (("psnr", 25.0), ("ssim", 0.8))
    ]
    (table,) = paper_tables.make_tables("1", [replace(WHOLE, figures=(*WHOLE.figures, *unseen))])
    whole, without = lines(table, "measured")
    assert (whole.cells["sots_outdoor"]["psnr"], without.cells["sots_outdoor"]["psnr"]) == (30.0, 25.0)
    assert "without the leaked images" in without.method
    assert without.cells["average"]["psnr"] == pytest.approx(31.0)
    assert without.cells["rain100l"] == whole.cells["rain100l"]


def test_tables_of_averages_use_the_three_degradations() -> None:
    for name in ("6", "7", "C"):
        (table,) = paper_tables.make_tables(name, [WHOLE])
        (measured,) = lines(table, "measured")
        assert measured.cells["average"]["psnr"] == pytest.approx(32.0)
        assert measured.parameters == "6.21M"
    (efficiency,) = paper_tables.make_tables("6", [WHOLE])
    assert "16.2G" in paper_tables.text(efficiency)


def test_benchmarks_of_our_own_have_a_table_for_each_dataset_and_protocol() -> None:
    own = summary(
        *(
            figure("", d, "psnr", v, dataset="demo", protocol=p)
            for d, v in (("rain", 20.0), ("haze", 30.0))
            for p in ("rgb", "y8")
        )
    )
    made = paper_tables.own_tables([own, WHOLE])
    assert [(t.key, t.protocol, t.columns) for t in made] == [
        ("demo", p, ("haze", "rain", "average")) for p in ("rgb", "y8")
    ]
    assert lines(made[0], "measured")[0].cells["average"]["psnr"] == pytest.approx(25.0)
    assert paper_tables.make_tables("1", [own])[0].lines == paper_tables.make_tables("1", [])[0].lines


def test_pipelines_of_one_name_that_differ_have_columns_of_their_own() -> None:
    one, same, other = (
        replace(
            summary(figure("", "phone-night", "psnr", value, dataset="demo", pipeline=digest * 64)),
            evaluation=f"mine-{value}",
        )
        for value, digest in ((20.0, "a"), (21.0, "a"), (30.0, "b"))
    )
    (alike,) = paper_tables.own_tables([one, same])
    assert alike.columns == ("phone-night", "average")
    (apart,) = paper_tables.own_tables([one, same, other])
    assert apart.columns == ("phone-night aaaaaaaa", "phone-night bbbbbbbb", "average")
    assert [set(line.cells) - {"average"} for line in lines(apart, "measured")] == [
        *[{"phone-night aaaaaaaa"}] * 2,
        {"phone-night bbbbbbbb"},
    ]
    assert all(line.cells["average"]["psnr"] is None for line in lines(apart, "measured"))
    on_published = summary(figure("CBSD68", "noise35", "psnr", 25.0, pipeline="a" * 64))
    assert paper_tables.own_tables([on_published])[0].columns == ("noise35", "average")
    assert (
        paper_tables.make_tables("1", [on_published])[0].lines == paper_tables.make_tables("1", [])[0].lines
    )


def test_the_report_is_written_as_markdown_csv_and_json(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "summary.json").write_bytes(summary_bytes(WHOLE))
    printed = list(report(["1", "B"], [tmp_path / "mine"], tmp_path / "out", None))
    assert any("evaluation mine-0123456789" in text for text in printed)
    assert "ICLR 2026" in (tmp_path / "out" / "tables.md").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "tables.csv").read_text())))
    ours = [r for r in rows if (r["kind"], r["column"], r["metric"]) == ("measured", "rain100l", "psnr")]
    assert [r["value"] for r in ours] == ["31.0", "31.0"]  # Table 1 and Table B
    assert len(json.loads((tmp_path / "out" / "tables.json").read_text())["tables"]) == 4


def test_a_published_row_is_found_by_table_and_method() -> None:
    (five,) = published_averages("T2:MIRAGE-T")
    assert (five.psnr, five.protocol) == (30.41, "rgb-crop16")
    assert five.degradations == ("blur", "haze", "lowlight", "noise25", "rain")
    assert (
        published_averages("6:MIRAGE-T")[0].degradations == published_averages("1:MIRAGE-T")[0].degradations
    )
    assert [one.psnr for one in published_averages("T3:MIRAGE (ours) 10M")] == [29.33]
    assert [one.degradations for one in published_averages("B:DnCNN")] == [("noise15", "noise25", "noise50")]
    assert len(published_averages("B:PromptIR")) == 3
    for row, says in {
        "T2:MIRAGE": "several such rows.*MIRAGE-T .Ours. 6M",
        "T2:nobody": "no such row",
        "T8:MIRAGE-T": "TABLE one of 1, 2",
        "MIRAGE-T": "write TABLE:METHOD",
    }.items():
        with pytest.raises(EvaluationError, match=says):
            published_averages(row)


def test_results_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no results of an evaluation"):
        list(report([], [tmp_path], tmp_path / "out", None))
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(EvaluationError, match="not the summary"):
        list(report([], [tmp_path], tmp_path / "out", None))
    with pytest.raises(EvaluationError, match="one of 1, 2"):
        list(report(["8"], [], tmp_path / "out", None))


@pytest.mark.parametrize(
    ("parameters", "row"),
    [(6_100_001, "MIRAGE-T"), (6_299_999, "MIRAGE-T"), (6_100_000, "MIRAGE-S"), (6_300_000, "MIRAGE-S")],
)
def test_sizes_are_equal_that_differ_by_less_than_100_000_parameters(parameters: int, row: str) -> None:
    (table,) = paper_tables.make_tables("1", [replace(WHOLE, parameters=parameters)])
    (difference,) = lines(table, "difference")
    assert row in difference.method
