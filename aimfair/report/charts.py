"""Charts as SVG without scripts. Widths are in percent: a chart fits any width and its text keeps its size.

Colours come from classes of page.css: before (hollow marks), after, train, validation and part0 to part3. Every chart
stands next to its numbers in text or a table and is hidden from screen readers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Scale = tuple[float, ...]
"""The values of the grid lines in ascending order, first and last the ends of the scale."""

Format = Callable[[float], str]

_SHADES = 4

_HEIGHT, _TOP, _BOTTOM = 320, 34, 40  # of a scatter chart, in pixels: total, above and below the plot
_LEFT, _RIGHT = 13.0, 96.0  # its plot, in percent of the width
_NARROW, _LETTER = 320, 6.6  # pixels of the narrowest plot, and of a letter of its labels


@dataclass(frozen=True)
class Mark:
    """A value with its interval; ``kind`` is the class of its colour and shape."""

    value: float
    low: float
    high: float
    kind: str


def scale_for(values: Sequence[float]) -> Scale:
    """From below the smallest value up to 1, in at most five round steps."""
    smallest = min((value for value in values if not math.isnan(value)), default=0.0)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        steps = math.ceil((1 - smallest) / step - 1e-9)
        if steps <= 5:
            break
    return tuple(1 - step * i for i in range(max(steps, 2), -1, -1))


def axis(scale: Scale) -> Markup:
    """Labels of the scale in percent."""
    labels = [
        Markup('<text x="{}%" y="12" text-anchor="middle">{}%</text>').format(_at(tick, scale), round(100 * tick))
        for tick in scale
    ]
    return _svg("axis", 16, Markup("").join(labels))


def dots_with_intervals(marks: Sequence[Mark], scale: Scale) -> Markup:
    """One mark below the other; filled ones of kind "after", hollow ones otherwise."""
    parts = [_grid(scale)]
    height = 16 * len(marks) + 4
    for row, mark in enumerate(marks):
        if math.isnan(mark.value):
            continue
        y = 10 + 16 * row
        parts.append(
            Markup(
                '<g class="{}"><line x1="{}%" x2="{}%" y1="{}" y2="{}"/><circle cx="{}%" cy="{}" r="5"/></g>'
            ).format(mark.kind, _at(mark.low, scale), _at(mark.high, scale), y, y, _at(mark.value, scale), y)
        )
    return _svg("dots", height, Markup("").join(parts))


def strip(values: Sequence[float], mean: float, scale: Scale) -> Markup:
    """A dot for each value and a line at their mean."""
    dots = [
        Markup('<circle cx="{}%" cy="10" r="3.5"/>').format(_at(value, scale))
        for value in values
        if not math.isnan(value)
    ]
    line = (
        Markup('<line x1="{0}%" x2="{0}%" y1="2" y2="18"/>').format(_at(mean, scale))
        if not math.isnan(mean)
        else Markup("")
    )
    return _svg("strip", 20, _grid(scale) + line + Markup("").join(dots))


def stacks(rows: Sequence[Sequence[float]], others: Sequence[float]) -> Markup:
    """A bar for each row, of parts side by side.

    Args:
        rows: the parts, shares of the whole width; the first of every row has one meaning, the second another, ...
        others: for each row a pale part at the end.
    """
    height = 14 if len(rows) <= 8 else 5
    drawn = []
    for row, (shares, other) in enumerate(zip(rows, others, strict=True)):
        left = 0.0
        drawn.append(_bar("rest", 0.0, 1.0, height * row, height))
        for kind, share in [*((f"part{i % _SHADES}", share) for i, share in enumerate(shares)), ("others", other)]:
            drawn.append(_bar(kind, left, share, height * row, height))
            left += share
    return _svg("stacks", height * len(rows), Markup("").join(drawn))


def curves(lines: Sequence[tuple[str, Sequence[float]]], top: float, bottom: float) -> Markup:
    """Lines over epochs.

    Args:
        lines: (class of the colour, values of epochs 1, 2, ...).
        top, bottom: values at the edges.
    """
    longest = max(len(values) for _, values in lines)
    parts = [Markup('<line class="grid" x1="0" x2="100" y1="{0}" y2="{0}"/>').format(y) for y in (0, 25, 50, 75, 100)]
    for kind, values in lines:
        drawn = [
            f"{100 * i / max(longest - 1, 1):.2f},{100 * (top - value) / ((top - bottom) or 1):.2f}"
            for i, value in enumerate(values)
            if math.isfinite(value)
        ]
        if len(drawn) == 1:
            drawn.append(f"100,{drawn[0].split(',')[1]}")  # one epoch: a level line
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, " ".join(drawn)))
    return Markup(
        '<svg class="curves" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup("").join(parts))


# -- scatter charts ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A point, numbered and listed under the chart if it has a label; ``low`` and ``high``: interval of y, or NaN."""

    x: float
    y: float
    label: str
    kind: str
    low: float = math.nan
    high: float = math.nan


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def share(value: float) -> str:
    """A share as a tick label."""
    return f"{number(100 * value)}%"


def frontier(points: Sequence[Point], *, up: bool) -> list[int]:
    """Indices of the Pareto-optimal points in x (higher is better) and y, from left to right.

    Args:
        up: whether a higher y is better.
    """
    sign = 1 if up else -1

    def dominated(one: Point) -> bool:
        return any(
            other.x >= one.x and sign * other.y >= sign * one.y and (other.x > one.x or sign * other.y > sign * one.y)
            for other in points
        )

    defined = [i for i, one in enumerate(points) if not math.isnan(one.x + one.y)]
    return sorted((i for i in defined if not dominated(points[i])), key=lambda i: (points[i].x, sign * -points[i].y))


def scatter(
    points: Sequence[Point],
    *,
    x_name: str,
    y_name: str,
    joined: Sequence[int] = (),
    x_format: Format = share,
    y_format: Format = share,
    log_x: bool = False,
    zero: bool = False,
) -> Markup:
    """Points with grid lines, a line through those that ``joined`` lists, and a numbered legend with coordinates.

    Intervals that would squeeze the points together end at the edge of the plot. Points with a coordinate that is not
    finite (or not above 0 on a logarithmic axis) are omitted.

    Args:
        zero: whether y = 0 must be in the plot.
    """
    drawable = [i for i, one in enumerate(points) if math.isfinite(one.x + one.y) and (one.x > 0 or not log_x)]
    if not drawable:
        return Markup("")
    shown = [points[i] for i in drawable]
    xs = [math.log10(one.x) if log_x else one.x for one in shown]
    ys = _y_extent(shown) + ([0.0] if zero else [])
    x_ticks = sorted({one.x for one in shown}) if log_x else ticks(xs)
    y_ticks = ticks(ys)
    x_low, x_high = _padded(xs if log_x else [*xs, *x_ticks])
    y_low, y_high = _padded([*ys, *y_ticks])

    def across(value: float) -> float:
        value = math.log10(value) if log_x else value
        return _LEFT + (_RIGHT - _LEFT) * (value - x_low) / (x_high - x_low)

    def down(value: float) -> float:
        value = min(max(value, y_low), y_high)  # clips intervals that leave the plot
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (y_high - value) / (y_high - y_low)

    labels = [one.label for one in shown if one.label]
    parts = [_rows(y_ticks, down, y_format), _columns(x_ticks, across, x_format)]
    parts.append(Markup('<text class="name" x="0" y="10">↑ {}</text>').format(y_name))
    parts.append(Markup('<text class="name" x="100%" y="{}" text-anchor="end">{} →</text>').format(_HEIGHT - 4, x_name))
    for one, other in pairwise([points[i] for i in joined if i in drawable]):
        parts.append(
            Markup('<line class="joined" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
                across(one.x), down(one.y), across(other.x), down(other.y)
            )
        )
    parts += [_point(one, across(one.x), down, labels.index(one.label) + 1 if one.label else 0) for one in shown]
    legend = [
        Markup('<li>{} <span class="note">{}, {}</span></li>').format(one.label, x_format(one.x), y_format(one.y))
        for one in shown
        if one.label
    ]
    return Markup('<div class="scatter" aria-hidden="true">{}{}</div>').format(
        _svg("", _HEIGHT, Markup("").join(parts)),
        Markup("<ol>{}</ol>").format(Markup("").join(legend)) if legend else Markup(""),
    )


def ticks(values: Sequence[float]) -> list[float]:
    """At most six round values that enclose these."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(
        factor * power
        for factor in (1, 2, 5, 10, 20)
        if math.ceil(high / (factor * power) - 1e-9) - math.floor(low / (factor * power) + 1e-9) <= 5
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _y_extent(shown: Sequence[Point]) -> list[float]:
    """What the y axis must cover: the points, and intervals as far as they do not squeeze the points together."""
    ys = [one.y for one in shown]
    room = 1.5 * (max(ys) - min(ys))
    ends = [end for one in shown for end in (one.low, one.high) if math.isfinite(end)]
    return ys + ([min(max(end, min(ys) - room), max(ys) + room) for end in ends] if room else ends)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _rows(values: Sequence[float], down: Callable[[float], float], text: Format) -> Markup:
    return Markup("").join(
        Markup(
            '<line class="grid" x1="0" x2="100%" y1="{0:.1f}" y2="{0:.1f}"/><text x="0" y="{1:.1f}">{2}</text>'
        ).format(down(value), down(value) - 3, text(value))
        for value in values
    )


def _columns(values: Sequence[float], across: Callable[[float], float], text: Format) -> Markup:
    """Skips labels that would overlap on a narrow screen."""
    parts, free = [], -math.inf
    for value in values:
        x, label = across(value), text(value)
        half = 50 * _LETTER * len(label) / _NARROW
        if x - half > free:
            free = x + half + 1
            parts.append(
                Markup('<text x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(x, _HEIGHT - 22, label)
            )
    return Markup("").join(parts)


def _point(one: Point, x: float, down: Callable[[float], float], index: int) -> Markup:
    """A mark that holds ``index``, or a small one for 0, over its interval."""
    y = down(one.y)
    whisker = number_in_mark = Markup("")
    if math.isfinite(one.low + one.high):
        whisker = Markup('<line x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>').format(
            x, down(one.low), down(one.high)
        )
    if index:
        number_in_mark = Markup('<text x="{:.2f}%" y="{:.1f}" text-anchor="middle">{}</text>').format(x, y + 4, index)
    return Markup('<g class="{}">{}<circle cx="{:.2f}%" cy="{:.1f}" r="{}"/>{}</g>').format(
        one.kind, whisker, x, y, 9 if index else 5, number_in_mark
    )


# -- parts -------------------------------------------------------------------------------------------------------------


def _svg(kind: str, height: int, content: Markup) -> Markup:
    return Markup('<svg class="{}" width="100%" height="{}" aria-hidden="true">{}</svg>').format(kind, height, content)


def _bar(kind: str, left: float, share: float, top: int, height: int) -> Markup:
    return Markup('<rect class="{}" x="{:.2f}%" y="{}" width="{:.2f}%" height="{}"/>').format(
        kind, 100 * left, top + 1, 100 * share, height - 2
    )


def _grid(scale: Scale) -> Markup:
    return Markup("").join(
        Markup('<line class="grid" x1="{0}%" x2="{0}%" y1="0" y2="100%"/>').format(_at(tick, scale)) for tick in scale
    )


def _at(value: float, scale: Scale) -> str:
    """Position in percent of the width; a margin of 1.5 keeps dots at the ends whole."""
    low, high = scale[0], scale[-1]
    return f"{1.5 + 97 * (value - low) / (high - low):.2f}"
