"""Figures as SVG: panels of points and lines, bars, and differences with intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10, nan

from aimfair.report.charts import number, ticks
from tools.svg import dash, line, svg, text

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
            parts.append(line(x, height + 6, x + 26, height + 6, colours[name], 2, name in dashed))
            parts.append(text(x + 32, height + 10, name, "start"))
            x += 52 + 7 * len(name)
        height += 22
    return svg(columns * cell_width, height, parts)


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

    yield text(_WIDTH / 2, -14, panel.title, weight="bold")
    for tick in y_ticks:
        yield line(0, y(tick), _WIDTH, y(tick), "#999" if tick == 0 else "#ddd")
        yield text(-6, y(tick) + 4, number(tick), "end")
    free = -inf
    for tick in x_ticks:
        name = f"{tick:,.0f}" if panel.log_x else number(tick)
        if x(tick) - 4 * len(name) > free:
            yield line(x(tick), _HEIGHT, x(tick), _HEIGHT + 4, "#666")
            yield text(x(tick), _HEIGHT + 17, name)
            free = x(tick) + 4 * len(name)
    yield text(_WIDTH / 2, _HEIGHT + 34, panel.x_name)
    yield f'<g transform="translate(-46 {_HEIGHT / 2}) rotate(-90)">{text(0, 0, panel.y_name)}</g>'
    for one in panel.series:
        colour = colours[one.name]
        if one.joined:
            path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in one.points)
            yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash(one.dashed)}/>'
        for point in one.points:
            if isfinite(point.low + point.high):
                yield line(x(point.x), y(point.low), x(point.x), y(point.high), colour, opacity=0.5)
        for point in one.points if not one.dashed else ():
            radius = 6.5 if point.label else 3
            yield f'<circle cx="{x(point.x):.1f}" cy="{y(point.y):.1f}" r="{radius}" fill="{colour}" stroke="white"/>'
            if point.label:
                yield text(x(point.x), y(point.y) + 3.5, point.label, colour="white", size=9)


# -- rows --------------------------------------------------------------------------------------------------------------

_NAME, _ROW = 250, 24


def bars(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """A row of bars for each name, in percent of what is 1: the line in each column."""
    most = max(1.0, *(value for _, values in rows for value in values))
    width, step = 150, 215
    parts = [text(_NAME + step * i, 24, column, "start", "bold") for i, column in enumerate(columns)]
    for j, (name, values) in enumerate(rows):
        top = 36 + _ROW * j
        parts.append(text(_NAME - 10, top + 15, name, "end"))
        for i, value in enumerate(values):
            left = _NAME + step * i
            parts.append(f'<rect x="{left}" y="{top + 3}" width="{width * value / most:.1f}" height="{_ROW - 7}"'
                         f' fill="{COLOURS[0]}"/>')  # fmt: skip
            parts.append(text(left + width * value / most + 5, top + 15, f"{100 * value:.0f}%", "start"))
    bottom = 36 + _ROW * len(rows)
    parts += [line(x, 34, x, bottom, "#666") for x in (_NAME + step * i + width / most for i in range(len(columns)))]
    return svg(_NAME + step * len(columns), bottom + 8, parts)


def differences(x_name: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """(name, value, low, high) one below the other, around the line at zero."""
    scale = ticks([0.0, *(end for row in rows for end in row[1:])])
    width, bottom = 420, 14 + _ROW * len(rows)

    def x(value: float) -> float:
        return _NAME + 120 + width * (value - scale[0]) / (scale[-1] - scale[0])

    parts = []
    for tick in scale:
        parts.append(line(x(tick), 10, x(tick), bottom, "#666" if tick == 0 else "#ddd"))
        parts.append(text(x(tick), bottom + 16, number(tick)))
    parts.append(text(x(sum(scale[:: len(scale) - 1]) / 2), bottom + 34, x_name))
    for j, (name, value, low, high) in enumerate(rows):
        y = 26 + _ROW * j
        colour = COLOURS[0] if low > 0 or high < 0 else "#777"
        parts.append(text(_NAME + 106, y + 4, name, "end"))
        parts.append(line(x(low), y, x(high), y, colour, 2))
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
    return svg(_NAME + 120 + width + 24, bottom + 44, parts)
