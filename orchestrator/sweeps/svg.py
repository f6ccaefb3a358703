"""Plots as SVG text: axes, points, lines and bars, without a drawing library, so that any driver can make them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

INK, MUTED, GRID = "#1c2733", "#5d6b7a", "#e3e8ee"
COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#e08e0b", "#7a4fa3", "#00838f", "#8d5a2b", "#c2185b")
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 34, 46


@dataclass
class Plot:
    """One pair of axes; coordinates are those of the data."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    log_x: bool = False
    width: int = 620
    height: int = 360
    _parts: list[str] = field(default_factory=list)

    def point(
        self, x: float, y: float, colour: str, label: str = "", *, hollow: bool = False, size: float = 5
    ) -> None:
        """Draw a circle; `label` shows when the mouse is over it."""
        fill = "white" if hollow else colour
        self._parts.append(
            f'<circle cx="{self._x(x):.1f}" cy="{self._y(y):.1f}" r="{size}" fill="{fill}" stroke="{colour}" '
            f'stroke-width="1.6"><title>{escape(label)}</title></circle>'
        )

    def diamond(self, x: float, y: float, colour: str) -> None:
        """Draw a hollow diamond: something that was not measured here."""
        a, b = self._x(x), self._y(y)
        self._parts.append(
            f'<path d="M{a - 6:.1f} {b:.1f} L{a:.1f} {b - 6:.1f} L{a + 6:.1f} {b:.1f} L{a:.1f} {b + 6:.1f} Z" '
            f'fill="white" stroke="{colour}" stroke-width="1.6"/>'
        )

    def cross(self, x: float, y: float, colour: str, label: str = "") -> None:
        """Draw an x: where something was stopped."""
        a, b = self._x(x), self._y(y)
        self._parts.append(
            f'<path d="M{a - 4:.1f} {b - 4:.1f} L{a + 4:.1f} {b + 4:.1f} M{a - 4:.1f} {b + 4:.1f} '
            f'L{a + 4:.1f} {b - 4:.1f}" stroke="{colour}" stroke-width="2"><title>{escape(label)}</title></path>'
        )

    def line(
        self,
        points: Sequence[tuple[float, float]],
        colour: str,
        *,
        dashed: bool = False,
        label: str = "",
        wide: float = 1.6,
    ) -> None:
        """Draw straight lines from point to point."""
        where = " ".join(f"{self._x(x):.1f},{self._y(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{where}" fill="none" stroke="{colour}" stroke-width="{wide}"{dash}>'
            f"<title>{escape(label)}</title></polyline>"
        )

    def vertical(self, x: float, colour: str, label: str, row: int = 0) -> None:
        """Draw a dotted line across, with words beside its upper end; `row` keeps two apart."""
        at = self._x(x)
        left = at > self.width * 0.62
        self._parts.append(_line(at, _TOP, at, self.height - _BOTTOM, colour, dash="2 3"))
        beside = at + (-5 if left else 5)
        self._parts.append(
            _text(beside, _TOP + 12 + 14 * row, label, colour, anchor="end" if left else "start")
        )

    def text(self, x: float, y: float, words: str, colour: str = INK, dx: float = 8, dy: float = 4) -> None:
        """Write beside a point of the data."""
        anchor = "end" if dx < 0 else "start"
        self._parts.append(_text(self._x(x) + dx, self._y(y) + dy, words, colour, anchor=anchor))

    def render(self) -> str:
        """Return the whole picture."""
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        axes = [_text(_LEFT, 18, self.title, size=13, bold=True)]
        for value in _ticks(*self.y):
            at = self._y(value)
            axes.append(_line(_LEFT, at, right, at, GRID))
            axes.append(_text(_LEFT - 7, at + 4, _short(value), MUTED, anchor="end"))
        for value in _log_ticks(*self.x) if self.log_x else _ticks(*self.x):
            at = self._x(value)
            axes.append(_line(at, bottom, at, bottom + 4, MUTED))
            axes.append(_text(at, bottom + 17, _short(value), MUTED, anchor="middle"))
        middle = (_TOP + bottom) / 2
        axes += [
            _line(_LEFT, bottom, right, bottom, MUTED),
            _text((_LEFT + right) / 2, self.height - 8, self.x_label, size=12, anchor="middle"),
            f'<g transform="translate(15 {middle}) rotate(-90)">'
            + _text(0, 0, self.y_label, size=12, anchor="middle")
            + "</g>",
        ]
        return frame(self.width, self.height, self.title, "".join([*axes, *self._parts]))

    def _x(self, value: float) -> float:
        low, high = self.x
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def _y(self, value: float) -> float:
        low, high = self.y
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with its name, its interval and a mark to compare it with."""

    name: str
    value: float
    words: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    colour: str = COLOURS[0]


def bars(title: str, rows: Sequence[Bar], most: float, note: str = "") -> str:
    """Return horizontal bars from 0 to `most`."""
    left, width, step = 170, 620, 34
    height = 34 + step * len(rows) + (22 if note else 4)
    scale = (width - left - 130) / most
    parts = [_text(12, 18, title, size=13, bold=True)]
    for i, row in enumerate(rows):
        y = 34 + step * i
        parts.append(_text(left - 8, y + 17, row.name, size=12, anchor="end"))
        wide = max(row.value * scale, 1)
        parts.append(
            f'<rect x="{left}" y="{y + 4}" width="{wide:.1f}" height="18" rx="2" fill="{row.colour}"/>'
        )
        if row.low is not None and row.high is not None:
            parts.append(
                _line(left + row.low * scale, y + 13, left + row.high * scale, y + 13, INK, width=1.6)
            )
        if row.mark is not None:
            at = left + row.mark * scale
            parts.append(_line(at, y, at, y + 26, COLOURS[1], width=2, dash="3 2"))
        end = max(row.value, row.high or 0, row.mark or 0)
        parts.append(_text(left + end * scale + 7, y + 17, row.words, MUTED))
    if note:
        parts.append(_text(12, height - 6, note, MUTED))
    return frame(width, height, title, "".join(parts))


def frame(width: int, height: int, title: str, inside: str) -> str:
    """Return an SVG document with a white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif">'
        f'<rect width="{width}" height="{height}" fill="white"/>{inside}</svg>'
    )


def around(values: Sequence[float], share: float = 0.08, least: float = 0.1) -> tuple[float, float]:
    """Return a range that holds the values with some room around them."""
    low, high = min(values), max(values)
    room = max((high - low) * share, least)
    return low - room, high + room


def _text(
    x: float,
    y: float,
    words: str,
    colour: str = INK,
    *,
    size: int = 11,
    anchor: str = "start",
    bold: bool = False,
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight} '
        'stroke="white" stroke-width="3" paint-order="stroke">'
        f"{escape(words)}</text>"
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, *, width: float = 1, dash: str = ""
) -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"{dashes}/>'


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 7)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    found = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in (1, 2, 5)
    ]
    return [value for value in found if low <= value <= high]


def _short(value: float) -> str:
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:.6g}"
