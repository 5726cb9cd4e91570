"""Charts as SVG without scripts. Widths are in percent: a chart fits any width and its text keeps its size.

Colours come from classes of page.css: before (hollow marks), after, model2 to model5, train, validation and part0 to
part3. Every chart stands next to its numbers in text or a table and is hidden from screen readers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

Scale = tuple[float, ...]
"""The values of the grid lines in ascending order, first and last the ends of the scale."""

Format = Callable[[float], str]

_SHADES = 4

_MODELS = ("before", "after", "model2", "model3", "model4", "model5")

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


def kind_of(model: int, models: int) -> str:
    """The classes of colour and shape of one of several models: the first is hollow, the others are filled. From the
    seventh on, colours come again in the other shape."""
    if models == 1:
        return "after"
    kind = _MODELS[model % len(_MODELS)]
    again = model // len(_MODELS) % 2
    return kind + (" hollow" if kind != "before" else " filled") * again


def scale_for(values: Sequence[float]) -> Scale:
    """From below the smallest value up to 1, in at most five round steps."""
    smallest = min((value for value in values if not math.isnan(value)), default=0.0)
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        steps = math.ceil((1 - smallest) / step - 1e-9)
        if steps <= 5:
            break
    return tuple(1 - step * i for i in range(max(steps, 2), -1, -1))


def scale_from_zero(values: Sequence[float]) -> Scale:
    """From 0 up to the largest value or above it, in at most four round steps."""
    largest = max((value for value in values if not math.isnan(value)), default=1.0)
    for step in (0.01, 0.02, 0.05, 0.1, 0.25):
        steps = math.ceil(largest / step - 1e-9)
        if steps <= 4:
            break
    return tuple(step * i for i in range(max(steps, 2) + 1))


def axis(scale: Scale) -> Markup:
    """Labels of the scale in percent."""
    labels = [_tag("text", f"{round(100 * tick)}%", x=_at(tick, scale), y=12, text_anchor="middle") for tick in scale]
    return _svg("axis", 16, *labels)


def dots_with_intervals(marks: Sequence[Mark], scale: Scale) -> Markup:
    """One mark below the other; hollow ones of kind "before", see also :func:`kind_of`."""
    drawn = []
    for row, mark in enumerate(marks):
        if not math.isnan(mark.value):
            y = 10 + 16 * row
            line = _tag("line", x1=_at(mark.low, scale), x2=_at(mark.high, scale), y1=y, y2=y)
            drawn.append(_tag("g", line, _tag("circle", cx=_at(mark.value, scale), cy=y, r=5), class_=mark.kind))
    return _svg("dots", 16 * len(marks) + 4, *_grid(scale), *drawn)


def strip(values: Sequence[float], mean: float, scale: Scale) -> Markup:
    """A dot for each value and a line at their mean."""
    lines = [_vertical(_at(value, scale), 2, 18) for value in [mean] if not math.isnan(value)]
    dots = [_tag("circle", cx=_at(value, scale), cy=10, r=3.5) for value in values if not math.isnan(value)]
    return _svg("strip", 20, *_grid(scale), *lines, *dots)


def stacks(rows: Sequence[Sequence[float]], others: Sequence[float]) -> Markup:
    """A bar for each row, of parts side by side.

    Args:
        rows: the parts, shares of the whole width; the n-th of every row has the same meaning.
        others: for each row a pale part at the end.
    """
    height = 14 if len(rows) <= 8 else 5

    def bar(kind: str, left: float, width: float, row: int) -> Markup:
        return _tag(
            "rect", class_=kind, x=_percent(100 * left), y=height * row + 1, width=_percent(100 * width),
            height=height - 2,
        )  # fmt: skip

    drawn = []
    for row, (shares, other) in enumerate(zip(rows, others, strict=True)):
        left = 0.0
        drawn.append(bar("rest", 0.0, 1.0, row))
        for kind, width in [*((f"part{i % _SHADES}", part) for i, part in enumerate(shares)), ("others", other)]:
            drawn.append(bar(kind, left, width, row))
            left += width
    return _svg("stacks", height * len(rows), *drawn)


def curves(lines: Sequence[tuple[str, Sequence[float]]], top: float, bottom: float) -> Markup:
    """Lines over epochs.

    Args:
        lines: (class of the colour, values of epochs 1, 2, ...).
        top, bottom: values at the edges.
    """
    longest = max(len(values) for _, values in lines)
    parts = [_tag("line", class_="grid", x1=0, x2=100, y1=y, y2=y) for y in (0, 25, 50, 75, 100)]
    for kind, values in lines:
        points = [
            f"{100 * i / max(longest - 1, 1):.2f},{100 * (top - value) / ((top - bottom) or 1):.2f}"
            for i, value in enumerate(values)
            if math.isfinite(value)
        ]
        if len(points) == 1:
            points.append(f"100,{points[0].split(',')[1]}")  # one epoch: a level line
        parts.append(_tag("polyline", class_=kind, points=" ".join(points)))
    return _tag("svg", *parts, class_="curves", viewBox="0 0 100 100", preserveAspectRatio="none", aria_hidden="true")


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


@dataclass(frozen=True)
class _Axes:
    """From values to positions: x in percent of the width, y in pixels from the top."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    log_x: bool

    def x(self, value: float) -> float:
        low, high = self.x_range
        return _LEFT + (_RIGHT - _LEFT) * ((math.log10(value) if self.log_x else value) - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - min(max(value, low), high)) / (high - low)


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
    x_ticks, y_ticks = sorted({one.x for one in shown}) if log_x else ticks(xs), ticks(ys)
    axes = _Axes(_padded(xs if log_x else [*xs, *x_ticks]), _padded([*ys, *y_ticks]), log_x)
    labelled = [one for one in shown if one.label]
    numbers = {one.label: i for i, one in enumerate(labelled, 1)}
    line = [
        _tag("line", class_="joined", x1=_percent(axes.x(one.x)), y1=axes.y(one.y), x2=_percent(axes.x(other.x)),
             y2=axes.y(other.y))
        for one, other in pairwise([points[i] for i in joined if i in drawable])
    ]  # fmt: skip
    drawing = _svg(
        "",
        _HEIGHT,
        *_rows(y_ticks, axes, y_format),
        *_columns(x_ticks, axes, x_format),
        _tag("text", f"↑ {y_name}", class_="name", x=0, y=10),
        _tag("text", f"{x_name} →", class_="name", x="100%", y=_HEIGHT - 4, text_anchor="end"),
        *line,
        *(_point(one, axes, numbers.get(one.label)) for one in shown),
    )
    legend = [
        _tag("li", f"{one.label} ", _tag("span", f"{x_format(one.x)}, {y_format(one.y)}", class_="note"))
        for one in labelled
    ]
    return _tag("div", drawing, *([_tag("ol", *legend)] if legend else []), class_="scatter", aria_hidden="true")


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


def _rows(values: Sequence[float], axes: _Axes, text: Format) -> Iterator[Markup]:
    for value in values:
        yield _tag("line", class_="grid", x1=0, x2="100%", y1=axes.y(value), y2=axes.y(value))
        yield _tag("text", text(value), x=0, y=axes.y(value) - 3)


def _columns(values: Sequence[float], axes: _Axes, text: Format) -> Iterator[Markup]:
    """Skips labels that would overlap on a narrow screen."""
    free = -math.inf
    for value in values:
        x, label = axes.x(value), text(value)
        half = 50 * _LETTER * len(label) / _NARROW
        if x - half > free:
            free = x + half + 1
            yield _tag("text", label, x=_percent(x), y=_HEIGHT - 22, text_anchor="middle")


def _point(one: Point, axes: _Axes, index: int | None) -> Markup:
    """A mark that holds ``index``, or a small one without, over its interval."""
    x, y = _percent(axes.x(one.x)), axes.y(one.y)
    parts = [_vertical(x, axes.y(one.low), axes.y(one.high))] if math.isfinite(one.low + one.high) else []
    parts.append(_tag("circle", cx=x, cy=y, r=9 if index else 5))
    if index:
        parts.append(_tag("text", str(index), x=x, y=y + 4, text_anchor="middle"))
    return _tag("g", *parts, class_=one.kind)


# -- elements ----------------------------------------------------------------------------------------------------------


def _tag(name: str, *content: str | Markup, **attributes: str | float) -> Markup:
    """An element; floats have two digits. Of attributes a trailing underscore is dropped, others are hyphens."""
    listed = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), f"{value:.2f}" if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{0}{1}>{2}</{0}>").format(name, listed, Markup("").join(content))


def _svg(kind: str, height: int, *content: Markup) -> Markup:
    return _tag("svg", *content, class_=kind, width="100%", height=height, aria_hidden="true")


def _vertical(x: str, y1: float, y2: float) -> Markup:
    return _tag("line", x1=x, x2=x, y1=y1, y2=y2)


def _grid(scale: Scale) -> list[Markup]:
    return [_tag("line", class_="grid", x1=_at(tick, scale), x2=_at(tick, scale), y1=0, y2="100%") for tick in scale]


def _percent(value: float) -> str:
    return f"{value:.2f}%"


def _at(value: float, scale: Scale) -> str:
    """Position in percent of the width; a margin of 1.5 keeps dots at the ends whole."""
    low, high = scale[0], scale[-1]
    return _percent(1.5 + 97 * (value - low) / (high - low))
