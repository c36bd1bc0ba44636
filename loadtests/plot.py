"""Plots as SVG text: lines over time. Colours are classes, which the page's style sheet gives their light or dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Line", "legend", "lines", "ticks"]

WIDTH: Final = 720
HEIGHT: Final = 240
LEFT: Final = 56
RIGHT: Final = 12
TOP: Final = 10
BOTTOM: Final = 26
COLOURS: Final = 8
THOUSAND: Final = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """A name and its points, times ascending. A gap in the data is a point without a value."""

    name: str
    points: Sequence[tuple[float, float | None]]
    colour: int = 0


@dataclass(frozen=True, slots=True)
class _Scale:
    """Where a value is on the way from the first mark to the last, from 0 to 1."""

    marks: Sequence[float]
    log: bool

    def part(self, value: float) -> float:
        first, last = self.marks[0], self.marks[-1]
        if self.log:
            first, last, value = math.log10(first), math.log10(last), math.log10(max(value, first))
        return (value - first) / (last - first)


def ticks(most: float, count: int = 5) -> list[float]:
    """Round numbers from 0 to beyond `most`, about `count` of them."""
    if most <= 0:
        return [0.0, 1.0]
    rough = most / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * one for one in (1, 2, 2.5, 5, 10) if power * one >= rough * 0.999)
    return [step * number for number in range(math.ceil(most / step * 0.999) + 1)]


def _decades(least: float, most: float) -> list[float]:
    """Powers of ten around both."""
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    return [10.0**power for power in range(low, max(high, low + 1) + 1)]


def _short(value: float) -> str:
    """As it stands at an axis: at most three digits that tell."""
    if value >= THOUSAND and value % (THOUSAND / 10) == 0:
        return f"{value / THOUSAND:g}k"
    return f"{value:g}"


def lines(label: str, unit: str, series: Sequence[Line], end: float, *, log: bool = False) -> str:
    """An SVG of these lines from time 0 to `end`, the values in `unit`. `label` is read out to who cannot see it."""
    drawn = [line for line in series if any(value is not None for _, value in line.points)]
    if not drawn:
        return '<p class="none">none</p>'
    values = [value for line in drawn for _, value in line.points if value is not None]
    positive = [value for value in values if value > 0]
    if log and positive:
        scale = _Scale(_decades(min(positive), max(positive)), log=True)
    else:
        scale = _Scale(ticks(max(values)), log=False)

    def x(at: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * at / end

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * scale.part(value)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for mark in scale.marks:
        at = f"{y(mark):.1f}"
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
            f'<text class="axis" x="{LEFT - 6}" y="{y(mark) + 4:.1f}" text-anchor="end">'
            f"{_short(mark)}</text>"
        )
    parts += [
        f'<text class="axis" x="{x(mark):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{mark:g}</text>'
        for mark in ticks(end, 8)
        if mark <= end
    ]
    parts += [_drawn(line, unit, x, y) for line in drawn]
    return "".join((*parts, "</svg>"))


def _drawn(line: Line, unit: str, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    """One line, broken where it has no values, and what it says at each point for a pointer over it."""
    steps, spots, pen = [], [], "M"
    for at, value in line.points:
        if value is None:
            pen = "M"
            continue
        steps.append(f"{pen}{x(at):.1f},{y(value):.1f}")
        pen = "L"
        said = escape(f"{line.name}: {value:,.4g} {unit} at {at:g} s")
        spots.append(
            f'<circle cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5"><title>{said}</title></circle>'
        )
    colour = f"c{line.colour % COLOURS}"
    return f'<g class="{colour}"><path d="{"".join(steps)}"/>{"".join(spots)}</g>'


def legend(series: Sequence[Line]) -> str:
    """Names beside their colours, as HTML."""
    names = "".join(
        f'<span class="key c{line.colour % COLOURS}"><i></i>{escape(line.name)}</span>'
        for line in series
        if line.points
    )
    return f'<div class="keys">{names}</div>'
