"""Charts as SVG without a script: sizes in percent, so that they fit any width and their text keeps its size.

Colours come from the classes before, after, train, validation and part0 to part3 of the page's style. Every chart
stands beside its numbers in text and is hidden from screen readers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_SHADES = 4

Scale = tuple[float, ...]
"""The values of the grid lines, the ends of the scale among them, in rising order."""


@dataclass(frozen=True)
class Mark:
    """A value with its interval; ``kind`` is the class of its colour and shape."""

    value: float
    low: float
    high: float
    kind: str


def scale_for(values: Sequence[float]) -> Scale:
    """Down to below the smallest value, up to 1, in round steps of which there are at most five."""
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
