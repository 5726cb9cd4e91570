"""Figures as SVG: panels of points and lines, bars, and differences with intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import inf, isfinite, log10, nan

from aimfair.report.charts import number, ticks

COLOURS = ("#1f6fb2", "#d9701e", "#3a8f4b", "#7d5ba6")

_WIDTH, _HEIGHT = 260, 190  # of a plot
_LEFT, _TOP, _BOTTOM, _GAP = 62, 34, 46, 18


@dataclass(frozen=True)
class Point:
    """``label``: written in its mark; ``low`` and ``high``: interval of y."""

    x: float
    y: float
    label: str = ""
    low: float = nan
    high: float = nan


@dataclass(frozen=True)
class Series:
    """
    Attributes:
        name: for the legend; series of the same name share a colour. joined: by a line, dashed or not.
    """

    name: str
    points: Sequence[Point]
    joined: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    x_name: str
    y_name: str
    series: Sequence[Series]
    log_x: bool = False


def grid(panels: Sequence[Panel], columns: int) -> str:
    """Panels in rows, with one legend below if they have several series."""
    names = list(dict.fromkeys(one.name for panel in panels for one in panel.series))
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    rows = -(-len(panels) // columns)
    cell_width, cell_height = _LEFT + _WIDTH + _GAP, _TOP + _HEIGHT + _BOTTOM
    parts = []
    for i, panel in enumerate(panels):
        x, y = (i % columns) * cell_width + _LEFT, (i // columns) * cell_height + _TOP
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, colours), "</g>"]
    height = rows * cell_height + 4
    if len(names) > 1:
        dashed = {one.name for panel in panels for one in panel.series if one.dashed}
        x = _LEFT
        for name in names:
            parts.append(_line(x, height + 6, x + 26, height + 6, colours[name], 2, name in dashed))
            parts.append(_text(x + 32, height + 10, name, "start"))
            x += 52 + 7 * len(name)
        height += 22
    return _svg(columns * cell_width, height, parts)


def _panel(panel: Panel, colours: dict[str, str]) -> Iterator[str]:
    points = [point for one in panel.series for point in one.points]
    xs = [log10(one.x) if panel.log_x else one.x for one in points]
    x_ticks = sorted({one.x for one in points}) if panel.log_x else ticks(xs)
    y_ticks = ticks([*(end for one in points for end in (one.y, one.low, one.high) if isfinite(end))])
    low, high = (min(xs), max(xs)) if panel.log_x else (x_ticks[0], x_ticks[-1])
    margin = 0.05 * (high - low) if panel.log_x else 0.0

    def x(value: float) -> float:
        value = log10(value) if panel.log_x else value
        return _WIDTH * (value - low + margin) / (high - low + 2 * margin)

    def y(value: float) -> float:
        return _HEIGHT * (y_ticks[-1] - value) / (y_ticks[-1] - y_ticks[0])

    yield _text(_WIDTH / 2, -14, panel.title, weight="bold")
    for tick in y_ticks:
        yield _line(0, y(tick), _WIDTH, y(tick), "#999" if tick == 0 else "#ddd")
        yield _text(-6, y(tick) + 4, number(tick), "end")
    free = -inf
    for tick in x_ticks:
        text = f"{tick:,.0f}" if panel.log_x else number(tick)
        if x(tick) - 4 * len(text) > free:
            yield _line(x(tick), _HEIGHT, x(tick), _HEIGHT + 4, "#666")
            yield _text(x(tick), _HEIGHT + 17, text)
            free = x(tick) + 4 * len(text)
    yield _text(_WIDTH / 2, _HEIGHT + 34, panel.x_name)
    yield f'<g transform="translate(-46 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, panel.y_name)}</g>'
    for one in panel.series:
        colour = colours[one.name]
        if one.joined:
            line = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in one.points)
            yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"{_dash(one.dashed)}/>'
        for point in one.points:
            if isfinite(point.low + point.high):
                yield _line(x(point.x), y(point.low), x(point.x), y(point.high), colour, opacity=0.5)
        for point in one.points if not one.dashed else ():
            radius = 6.5 if point.label else 3
            yield f'<circle cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" r="{radius}" fill="{colour}" stroke="white"/>'
            if point.label:
                yield _text(x(point.x), y(point.y) + 3.5, point.label, colour="white", size=9)


# -- rows --------------------------------------------------------------------------------------------------------------

_NAME, _ROW = 250, 24


def bars(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A row of bars for each name, in percent of what is 1: the line in each column."""
    most = max(1.0, *(value for _, values in rows for value in values))
    width, step = 150, 215
    parts = [_text(_NAME + step * i, 24, column, "start", "bold") for i, column in enumerate(columns)]
    for j, (name, values) in enumerate(rows):
        top = 36 + _ROW * j
        parts.append(_text(_NAME - 10, top + 15, name, "end"))
        for i, value in enumerate(values):
            left = _NAME + step * i
            parts.append(f'<rect x="{left}" y="{top + 3}" width="{width * value / most:.1f}" height="{_ROW - 7}"'
                         f' fill="{COLOURS[0]}"/>')  # fmt: skip
            parts.append(_text(left + width * value / most + 5, top + 15, f"{100 * value:.0f}%", "start"))
    bottom = 36 + _ROW * len(rows)
    parts += [_line(x, 34, x, bottom, "#666") for x in (_NAME + step * i + width / most for i in range(len(columns)))]
    return _svg(_NAME + step * len(columns), bottom + 8, parts)


def differences(x_name: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """(name, value, low, high) one below the other, around the line at zero."""
    scale = ticks([0.0, *(end for row in rows for end in row[1:])])
    width, bottom = 420, 14 + _ROW * len(rows)

    def x(value: float) -> float:
        return _NAME + 120 + width * (value - scale[0]) / (scale[-1] - scale[0])

    parts = []
    for tick in scale:
        parts.append(_line(x(tick), 10, x(tick), bottom, "#666" if tick == 0 else "#ddd"))
        parts.append(_text(x(tick), bottom + 16, number(tick)))
    parts.append(_text(x(sum(scale[:: len(scale) - 1]) / 2), bottom + 34, x_name))
    for j, (name, value, low, high) in enumerate(rows):
        y = 26 + _ROW * j
        colour = COLOURS[0] if low > 0 or high < 0 else "#777"
        parts.append(_text(_NAME + 106, y + 4, name, "end"))
        parts.append(_line(x(low), y, x(high), y, colour, 2))
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    return _svg(_NAME + 120 + width + 24, bottom + 44, parts)


# -- elements ----------------------------------------------------------------------------------------------------------


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>"]) + "\n"


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dashed: bool = False, opacity: float = 1
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"'
        f' stroke-opacity="{opacity}"{_dash(dashed)}/>'
    )


def _dash(dashed: bool) -> str:
    return ' stroke-dasharray="5 4"' if dashed else ""


def _text(
    x: float, y: float, text: str, anchor: str = "middle", weight: str = "normal", colour: str = "#222", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}"'
        f' fill="{colour}">{escape(text)}</text>'
    )
