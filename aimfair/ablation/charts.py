"""Scatter charts as SVG in the manner of aimfair.report.charts: widths in percent, text that keeps its size, no script.

Colours come from the classes before (hollow), after and train (a ring) of the page's style. Every chart stands beside
its numbers in a table and is hidden from screen readers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from markupsafe import Markup

from aimfair.report import wording

_HEIGHT, _TOP, _BOTTOM = 320, 34, 40  # pixels: of the whole, above and below the plot
_LEFT, _RIGHT = 13.0, 96.0  # percent of the width between which points lie
_NARROW = 320  # pixels of the narrowest plot, for which labels must keep apart
_LETTER, _LINE = 6.6, 14  # pixels of a letter and of a line of labels
_FAR = 8  # lines that a label may stand above or below its point

Format = Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """A point with its label; ``low`` and ``high`` are the interval of y, NaN where there is none."""

    x: float
    y: float
    label: str
    kind: str
    low: float = math.nan
    high: float = math.nan


def percent(value: float) -> str:
    """A share as a tick says it."""
    return f"{100 * value:.3g}%".replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def axis_name(metric: str) -> str:
    """The label of a metric within a sentence or at an axis."""
    label = wording.LABELS[metric]
    return label[0].lower() + label[1:]


def frontier(points: Sequence[Point], *, up: bool) -> list[int]:
    """Indices of the points that no other beats in both x (higher is better) and y, from left to right.

    Args:
        up: whether a higher y is better.
    """
    sign = 1 if up else -1

    def beaten(one: Point) -> bool:
        return any(
            other.x >= one.x and sign * other.y >= sign * one.y and (other.x > one.x or sign * other.y > sign * one.y)
            for other in points
        )

    whole = [i for i, one in enumerate(points) if not math.isnan(one.x + one.y)]
    return sorted((i for i in whole if not beaten(points[i])), key=lambda i: (points[i].x, sign * -points[i].y))


def scatter(
    points: Sequence[Point],
    *,
    x_name: str,
    y_name: str,
    joined: Sequence[int] = (),
    x_format: Format = percent,
    y_format: Format = percent,
    log_x: bool = False,
    zero: bool = False,
) -> Markup:
    """Points with labels, grid lines with values, and a line through those that ``joined`` lists.

    Intervals that would squeeze the points together end at the edge of the plot. Points with a coordinate that is not
    finite (or not above 0 on a logarithmic axis) are left out.

    Args:
        zero: whether y = 0 must be in the plot.
    """
    known = [i for i, one in enumerate(points) if math.isfinite(one.x + one.y) and (one.x > 0 or not log_x)]
    if not known:
        return Markup("")
    shown = [points[i] for i in known]
    xs = [math.log10(one.x) if log_x else one.x for one in shown]
    ys = _heights(shown) + ([0.0] if zero else [])
    x_ticks = sorted({one.x for one in shown}) if log_x else ticks(xs)
    y_ticks = ticks(ys)
    x_low, x_high = _ends(xs if log_x else [*xs, *x_ticks])
    y_low, y_high = _ends([*ys, *y_ticks])

    def across(value: float) -> float:
        value = math.log10(value) if log_x else value
        return _LEFT + (_RIGHT - _LEFT) * (value - x_low) / (x_high - x_low)

    def down(value: float) -> float:
        value = min(max(value, y_low), y_high)  # of intervals that leave the plot
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (y_high - value) / (y_high - y_low)

    parts = [_rows(y_ticks, down, y_format), _columns(x_ticks, across, x_format)]
    parts.append(Markup('<text class="name" x="0" y="10">↑ {}</text>').format(y_name))
    parts.append(Markup('<text class="name" x="100%" y="{}" text-anchor="end">{} →</text>').format(_HEIGHT - 4, x_name))
    line = [points[i] for i in joined if i in known]
    for one, other in pairwise(line):
        parts.append(
            Markup('<line class="joined" x1="{:.2f}%" y1="{:.1f}" x2="{:.2f}%" y2="{:.1f}"/>').format(
                across(one.x), down(one.y), across(other.x), down(other.y)
            )
        )
    for one, (left, y) in zip(shown, _places([(across(one.x), down(one.y), one.label) for one in shown]), strict=True):
        parts.append(_mark(one, across(one.x), down, left, y))
    return Markup('<svg class="scatter" width="100%" height="{}" aria-hidden="true">{}</svg>').format(
        _HEIGHT, Markup("").join(parts)
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


def _heights(shown: Sequence[Point]) -> list[float]:
    """What the y axis must hold: the points, and intervals as far as they do not squeeze the points together."""
    ys = [one.y for one in shown]
    room = 1.5 * (max(ys) - min(ys))
    ends = [end for one in shown for end in (one.low, one.high) if math.isfinite(end)]
    return ys + ([min(max(end, min(ys) - room), max(ys) + room) for end in ends] if room else ends)


def _ends(values: Sequence[float]) -> tuple[float, float]:
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
    """Labels that would run into one another on a narrow screen are left out."""
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


def _mark(one: Point, x: float, down: Callable[[float], float], left: bool, text_y: float) -> Markup:
    whisker = (
        Markup('<line x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>').format(x, down(one.low), down(one.high))
        if math.isfinite(one.low + one.high)
        else Markup("")
    )
    if abs(text_y - 4 - down(one.y)) > 1.5 * _LINE:  # too far to be seen as its own
        whisker += Markup('<line class="leader" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.1f}" y2="{2:.1f}"/>').format(
            x, down(one.y), text_y - 4
        )
    return Markup(
        '<g class="{}">{}<circle cx="{:.2f}%" cy="{:.1f}" r="5"/><text x="{:.2f}%" y="{:.1f}" dx="{}"{}>{}</text></g>'
    ).format(
        one.kind, whisker, x, down(one.y), x, text_y, -9 if left else 9,
        Markup(' text-anchor="end"') if left else Markup(""), one.label,
    )  # fmt: skip


def _places(marks: Sequence[tuple[float, float, str]]) -> list[tuple[bool, float]]:
    """For each (x in percent, y in pixels, label): whether the label stands left of it, and at which height.

    The first place that is free of points and of other labels: right or left of the point, then a line up or down, and
    so on; where none is, the one with the fewest of them.
    """
    points = [(x - 1.5, x + 1.5, y + 4) for x, y, _ in marks]
    labels: list[tuple[float, float, float]] = []
    found = []
    for index, (x, y, label) in enumerate(marks):
        width = 100 * (_LETTER * len(label) + 12) / _NARROW
        others = points[:index] + points[index + 1 :] + labels
        places: list[tuple[int, int, float, bool, float]] = []
        for shift, left in product(sorted(range(-_FAR, _FAR + 1), key=abs), (False, True)):
            at = y + 4 + shift * _LINE
            start = x - width if left else x
            if start >= 0 and start + width <= 100 and _TOP - 8 <= at <= _HEIGHT - _BOTTOM:
                hits = sum(begin < start + width and start < end and abs(at - of) < _LINE for begin, end, of in others)
                places.append((hits, len(places), at, left, start))
        if places:
            _, _, at, left, start = min(places)
        else:  # wider than the plot
            at, left, start = y + 4, x > 50, x - width if x > 50 else x
        labels.append((start, start + width, at))
        found.append((left, at))
    return found
