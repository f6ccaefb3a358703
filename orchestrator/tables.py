"""Format tables of text cells for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def aligned(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> list[str]:
    """Return the lines of a table whose columns are two spaces apart, with a rule below `head`.

    align: one character per column, "<" (the default) or ">", as in format specifications. An empty row is a rule.
    """
    table = [list(head), [], *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*filter(None, table), strict=True)]
    specs = [f"{side}{width}" for side, width in zip(align or "<" * len(widths), widths, strict=True)]
    lines = ["  ".join(map(format, row, specs)).rstrip() for row in table]
    rule = "-" * max(map(len, lines))
    return [line if row else rule for row, line in zip(table, lines, strict=True)]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    cells = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]
