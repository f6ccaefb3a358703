"""Tables of text cells keep their columns, for a terminal and as Markdown."""

from __future__ import annotations

from orchestrator.tables import aligned, markdown

HEAD = ("name", "PSNR [dB]")
ROWS = [("rain", "30.12"), (), ("average", "9.5")]


def test_columns_are_aligned_as_asked_and_an_empty_row_is_a_rule() -> None:
    assert aligned(HEAD, ROWS, "<>") == [
        "name     PSNR [dB]",
        "------------------",
        "rain         30.12",
        "------------------",
        "average        9.5",
    ]
    assert aligned(HEAD, ROWS)[2] == "rain     30.12"


def test_a_table_without_rows_is_its_head() -> None:
    assert aligned(HEAD, []) == ["name  PSNR [dB]", "---------------"]


def test_a_bar_in_a_cell_of_markdown_is_escaped() -> None:
    assert markdown(("a", "b"), [("x|y", "")]) == ["| a | b |", "|---|---|", r"| x\|y |  |"]
