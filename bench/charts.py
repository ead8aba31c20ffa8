"""Line charts as SVG, limited to what the results need and without dependencies.

The background is drawn and light, so that the charts can be read on dark pages, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 70, 612, 80, 325
"""The edges of the plot area, in pixels."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#444444")
"""Colours that colour-blind people can distinguish (Okabe and Ito)."""
_GROUND, _INK, _GRID = "#fcfcfa", "#222222", "#dddddd"
_TICKS = 6
_LETTER_PIXELS = 6.6
"""Greatest width of a letter in the legend, in pixels."""

Point = tuple[float, float]


class Series(msgspec.Struct, frozen=True):
    """One line; `dots` where each point was measured and the line only joins them."""

    name: str
    points: Sequence[Point]
    dots: bool = True


class Axis(msgspec.Struct, frozen=True):
    """What one direction means.

    Attributes:
        label: with the unit.
        log: whether equal distances are equal ratios; else the axis begins at zero.
    """

    label: str
    log: bool = False


class Chart(msgspec.Struct, frozen=True):
    """Everything that one picture shows."""

    title: str
    x: Axis
    y: Axis
    series: list[Series]


class _Scale:
    """From values to pixels."""

    def __init__(self, axis: Axis, values: list[float], first: float, last: float) -> None:
        self._axis = axis
        self._first, self._last = first, last
        self.ticks = _log_ticks(values) if axis.log else _linear_ticks(values)
        self._low, self._high = self._measure(self.ticks[0]), self._measure(self.ticks[-1])

    def __call__(self, value: float) -> float:
        share = (self._measure(value) - self._low) / (self._high - self._low)
        return round(self._first + share * (self._last - self._first), 1)

    def _measure(self, value: float) -> float:
        return math.log10(value) if self._axis.log else value


def render(chart: Chart) -> str:
    """Return the chart as an SVG document.

    Raises:
        ValueError: it has no points, or one that is not above zero on a logarithmic axis.
    """
    points = [point for series in chart.series for point in series.points]
    if not points:
        raise ValueError(f"{chart.title}: nothing to draw")
    x = _Scale(chart.x, [point[0] for point in points], LEFT, RIGHT)
    y = _Scale(chart.y, [point[1] for point in points], BOTTOM, TOP)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            f' width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12"'
            f' fill="{_INK}">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{_GROUND}"/>',
        _text(LEFT, 24, chart.title, 'font-size="14" font-weight="bold"'),
        *_legend(chart.series),
        *_grid(x, y),
        _text((LEFT + RIGHT) / 2, HEIGHT - 14, chart.x.label, 'text-anchor="middle"'),
        _text(0, 0, chart.y.label, _upright(18, (TOP + BOTTOM) / 2)),
    ]
    for series, colour in zip(chart.series, _colours(), strict=False):
        lines += _line([(x(px), y(py)) for px, py in series.points], series, colour)
    return "\n".join([*lines, "</svg>", ""])


def _line(pixels: list[Point], series: Series, colour: str) -> Iterator[str]:
    joined = " ".join(f"{px:g},{py:g}" for px, py in pixels)
    yield f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>'
    if series.dots:
        for px, py in pixels:
            yield f'<circle cx="{px:g}" cy="{py:g}" r="3.5" fill="{colour}"/>'


def _legend(series: list[Series]) -> Iterator[str]:
    """Name the lines, in as many rows as that takes; two have room."""
    x, y = float(LEFT), 46
    for each, colour in zip(series, _colours(), strict=False):
        width = 19 + _LETTER_PIXELS * len(each.name)
        if x + width > RIGHT:
            x, y = float(LEFT), y + 17
        yield f'<rect x="{x:g}" y="{y - 6}" width="14" height="4" fill="{colour}"/>'
        yield _text(x + 19, y, each.name)
        x += width + 14


def _grid(x: _Scale, y: _Scale) -> Iterator[str]:
    stroke = f'stroke="{_GRID}"'
    for tick in x.ticks:
        yield f'<line x1="{x(tick):g}" x2="{x(tick):g}" y1="{TOP}" y2="{BOTTOM}" {stroke}/>'
        yield _text(x(tick), BOTTOM + 18, _number(tick), 'text-anchor="middle"')
    for tick in y.ticks:
        yield f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(tick):g}" y2="{y(tick):g}" {stroke}/>'
        yield _text(LEFT - 8, y(tick) + 4, _number(tick), 'text-anchor="end"')


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{escape(text)}</text>'


def _upright(x: float, y: float) -> str:
    return f'transform="translate({x:g} {y:g}) rotate(-90)" text-anchor="middle"'


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def _linear_ticks(values: list[float]) -> list[float]:
    """Return round numbers from zero to the largest value or above it."""
    most = max(*values, 1e-12)
    rough = most / (_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * 0.999)
    return [round(step * n, 12) for n in range(math.ceil(most / step * 0.999) + 1)]


def _log_ticks(values: list[float]) -> list[float]:
    """Return 1, 2 and 5 of each decade, or 1 alone where there are many, around the values."""
    if min(values) <= 0:
        raise ValueError("a logarithmic axis has no zero")
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    every = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    below = [tick for tick in every if tick <= min(values)]
    above = [tick for tick in every if tick >= max(values)]
    inside = [tick for tick in every if below[-1] <= tick <= above[0]]
    return inside if len(inside) > 1 else [inside[0], inside[0] * 10]
