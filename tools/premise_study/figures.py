"""The map: where a method is better or worse than full tuning, as a picture."""

from collections.abc import Sequence
from pathlib import Path

from tools.premise_study.analysis import WORST, Difference, difference, measured
from tools.premise_study.domains import Regime
from tools.premise_study.run import BIASED, Design, chosen_values
from tools.svg import svg, text

CELL, ROW, LEFT, TOP, SIZE = 104, 30, 400, 72, 13
STRONGEST = 10.0
"""Points at which a colour is full."""


def map_of(designs: Sequence[Design], folder: Path) -> str:
    """An SVG of every regime of the designs, and of the biased model and the methods that are in all of them."""
    shown = [BIASED, *(name for name in designs[0].methods if all(name in design.methods for design in designs))]
    shown.remove("full")
    rows = []
    for design in designs:
        for regime in design.regimes:
            values = measured(regime, folder, chosen_values(regime, folder, design))
            worst = {name: of[WORST] for name, of in values.items()}
            cells = [difference(worst[name], worst["full"], len(design.methods) - 1) for name in shown]
            rows.append((regime, cells))
    rows.sort(key=lambda row: _place(row[0]))
    return heat_map(
        [regime.words for regime, _ in rows],
        shown,
        [cells for _, cells in rows],
        "Selecting against tuning every weight",
    )


def _place(regime: Regime) -> tuple[object, ...]:
    """From small to wide domain gaps, then from weak to strong bias, then from many to few images."""
    domains = ("twemoji", "noto", "fluent", "faces")
    return (
        regime.backbone, domains.index(regime.domain), regime.degradation, -regime.minority_ratio, -regime.per_group
    )  # fmt: skip


def heat_map(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Difference | None]], title: str
) -> str:
    """An SVG: a row of each regime, a column of each method; bold where the interval excludes zero."""
    width, height = LEFT + CELL * len(columns) + 10, TOP + ROW * len(rows) + 44
    parts = [
        text(10, 26, title, "start", "bold", size=SIZE),
        *(text(LEFT + CELL * (i + 0.5), TOP - 12, name.replace("_", " "), size=SIZE) for i, name in enumerate(columns)),
    ]
    for j, (row, values) in enumerate(zip(rows, cells, strict=True)):
        top = TOP + ROW * j
        parts.append(text(LEFT - 10, top + 20, row, "end", size=SIZE))
        for i, value in enumerate(values):
            left = LEFT + CELL * i
            fill = "#f2f2f2" if value is None else _colour(value.mean)
            parts.append(f'<rect x="{left + 1}" y="{top + 1}" width="{CELL - 2}" height="{ROW - 2}" fill="{fill}"/>')
            if value is not None:
                points = f"{value.mean:+.1f}".replace("-", "\N{MINUS SIGN}")
                weight = "bold" if value.clear else "normal"
                parts.append(text(left + CELL / 2, top + 20, points, "middle", weight, size=SIZE))
    note = "Worst-group accuracy less that of full tuning, points. Bold: the simultaneous 95% interval excludes zero."
    return svg(width, height, [*parts, text(10, height - 16, note, "start", size=SIZE)])


def _colour(points: float) -> str:
    """Blue where it is better, orange where it is worse, white at zero."""
    full = (0x6B, 0xAE, 0xD6) if points > 0 else (0xFD, 0xAE, 0x6B)
    strength = min(abs(points) / STRONGEST, 1.0)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in full)
