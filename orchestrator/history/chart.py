"""Draw line charts as SVG.

Written by hand, since a run draws them within the seconds that a stopped process has left: importing matplotlib alone
takes one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from orchestrator.history.curve import Curve

COLOURS = (
    *("#2f6db3", "#c8323c", "#3d8f57", "#b9770e", "#7a4fa3", "#1b8a9a"),
    *("#a3486d", "#6b7a1f", "#5d6b7a", "#d0602c"),
)
_WIDTH, _HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 14, 10, 34
_MAX_DRAWN = 500
_DOTS_BELOW = 60
_LOG_RATIO = 20
"""Ratio of the largest to the smallest value from which the axis is logarithmic, where it may be."""


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    """Pixels of `low` and `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (
            map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return _ticks(self.low, self.high)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        marks = (1, 2, 5) if len(powers) <= 3 else (1,)
        return [m * 10.0**p for p in powers for m in marks if self.low <= m * 10.0**p <= self.high]


def chart(
    label: str, curves: dict[str, Curve], *, may_be_log: bool = False, marks: Sequence[int] = ()
) -> str:
    """Return an SVG of curves by step with their legend; "" if no curve has a point.

    label: of the vertical axis. marks: steps with a vertical line.
    """
    points = {name: _points(curve) for name, curve in curves.items()}
    known = [(x, y) for each in points.values() for x, y in each if y is not None]
    if not known:
        return ""
    x, y = _axes(known, may_be_log)
    drawn = [_grid(x, y, label)]
    drawn += [
        f'<line x1="{x(m):.1f}" x2="{x(m):.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" stroke="#9aa7b4" '
        f'stroke-dasharray="2 4"><title>a process resumed here</title></line>'
        for m in marks
        if x.low <= m <= x.high
    ]
    for index, (name, each) in enumerate(points.items()):
        drawn += _line(each, x, y, COLOURS[index % len(COLOURS)], name)
    legend = "".join(
        f'<span><svg width="14" height="10" viewBox="0 0 14 10"><rect y="3" width="14" height="4" '
        f'fill="{COLOURS[index % len(COLOURS)]}"/></svg> {escape(name)}</span>'
        for index, name in enumerate(points)
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)} by step" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="#5d6b7a">{"".join(drawn)}</svg>'
        f'<figcaption class="legend">{legend}</figcaption></figure>'
    )


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as a row of block characters; a space where one is not finite."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), (max(known) - min(known)) or 1.0
    blocks = "▁▂▃▄▅▆▇█"
    return "".join(" " if v is None else blocks[min(7, int((v - low) / span * 8))] for v in values)


def _points(curve: Curve) -> list[tuple[int, float | None]]:
    every = math.ceil(len(curve.steps) / _MAX_DRAWN) or 1
    points = list(zip(curve.steps, curve.values, strict=True))
    return [*points[:-1:every], *points[-1:]]


def _axes(known: Sequence[tuple[int, float]], may_be_log: bool) -> tuple[_Axis, _Axis]:
    steps, values = [x for x, _ in known], [y for _, y in known]
    low, high = min(values), max(values)
    log = may_be_log and low > 0 and high / low > _LOG_RATIO
    if log:
        low, high = low / 1.1, high * 1.1
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = (0.0 if 0 <= low < 0.3 * high else low - margin), high + margin
    across = (0, max(steps)) if max(steps) > 0 else (-1, 1)
    return _Axis(*across, _LEFT, _WIDTH - _RIGHT), _Axis(low, high, _HEIGHT - _BOTTOM, _TOP, log)


def _grid(x: _Axis, y: _Axis, label: str) -> str:
    lines = []
    for tick in y.ticks():
        at = f"{y(tick):.1f}"
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}" stroke="#e8ecf0"/>')
        lines.append(f'<text x="{_LEFT - 6}" y="{at}" dy="0.33em" text-anchor="end">{_number(tick)}</text>')
    bottom = _HEIGHT - _BOTTOM
    for tick in x.ticks():
        lines.append(f'<text x="{x(tick):.1f}" y="{bottom + 15}" text-anchor="middle">{tick:,.0f}</text>')
    lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" stroke="#9aa7b4"/>')
    middle = (_TOP + bottom) / 2
    lines.append(
        f'<text x="13" y="{middle}" text-anchor="middle" transform="rotate(-90 13 {middle})">{escape(label)}</text>'
    )
    lines.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">step</text>')
    return "".join(lines)


def _line(
    points: Sequence[tuple[int, float | None]], x: _Axis, y: _Axis, colour: str, name: str
) -> Iterator[str]:
    """Yield the pieces of a curve, which has gaps where a value is not finite."""
    for finite, group in groupby(points, lambda point: point[1] is not None and (not y.log or point[1] > 0)):
        if not finite:
            continue
        piece = [(f"{x(step):.1f}", f"{y(value):.1f}") for step, value in group if value is not None]
        path = " ".join(map(",".join, piece))
        title = f"<title>{escape(name)}</title>"
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6">{title}</polyline>'
        if len(points) <= _DOTS_BELOW:
            yield from (f'<circle cx="{a}" cy="{b}" r="2.4" fill="{colour}"/>' for a, b in piece)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between two values, 3 to 7 of them."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
