"""Wrap a report as one HTML page that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; background: #f5f7f9; margin: 0 auto; max-width: 1320px;
  padding: 28px 24px 60px; } h1 { font-size: 24px; overflow-wrap: anywhere; } h2 { font-size: 18px; margin-top: 34px; }
p { max-width: 82ch; } code { overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 13px; background: white;
  font-variant-numeric: tabular-nums; width: fit-content; max-width: 100%; margin: 0 0 14px; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid #eee; }
.right { text-align: right; white-space: nowrap; }
svg, img { max-width: 100%; height: auto; background: white; border: 1px solid #e3e8ee; border-radius: 6px; }
pre { background: white; border: 1px solid #e3e8ee; border-radius: 6px; padding: 12px; overflow-x: auto;
  font-size: 12.5px; line-height: 1.4; } summary { cursor: pointer; color: #2f6db3; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, body: str, css: str = "") -> str:
    """Return a page. `title` is text, `body` is HTML, and `css` comes after the common style."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_CSS}{css}</style></head><body>{body}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Return a table of text cells. `align`: one character per column, "<" (the default) or ">"."""
    marks = [' class="right"' if side == ">" else "" for side in align.ljust(len(head), "<")]

    def row(cells: Sequence[str], tag: str) -> str:
        inner = (f"<{tag}{mark}>{escape(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return f"<table><thead>{row(head, 'th')}</thead><tbody>{body}</tbody></table>"
