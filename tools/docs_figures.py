"""Figures of the documentation: masks that come from gradients, and speed-ups from the tables of the benchmarks."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import aimfair
from tools.svg import line, svg, text

RESULTS = Path(__file__).parents[1] / "bench" / "results"
INK, PALE, BARS, GUIDE = "#00796b", "#e6eeec", "#00796b", "#888"
DENSITY, SIDE, CELL = 0.3, 32, 5

RULES: dict[str, dict[str, Any]] = {
    "top_k": {"rule": "top_k", "density": DENSITY},
    "ratio": {"rule": "ratio", "criterion": "relative_difference", "density": DENSITY},
    "intersection": {"rule": "intersection", "bias_density": 0.5, "domain_density": 0.6},
    "ratio, rows": {"rule": "ratio", "granularity": "row", "density": DENSITY},
    "ratio, tensors": {"rule": "ratio", "granularity": "tensor", "density": 0.5},
    "random": {"rule": "random", "density": DENSITY},
}
"""Title -> arguments of ``Sensitivity.select``."""


def masks() -> str:
    """The first two layers of a small network under six rules: what a rule selects, element by element."""
    probe = _measured()
    gap, top, width = 14, 46, SIDE * CELL
    parts, left = [], 20.0
    for title, arguments in RULES.items():
        mask = probe.select(**arguments)
        parts.append(text(left + width / 2, 18, title, weight="bold"))
        parts.append(text(left + width / 2, 35, f"{mask.density:.0%} of all weights", colour=GUIDE))
        for row, name in enumerate(("0.weight", "2.weight")):
            parts += _cells(mask.bool_of(name).numpy(), left, top + row * (width + gap))
        left += width + gap + 8
    return svg(left + 6, top + 2 * width + gap + 16, parts)


def _measured() -> aimfair.Sensitivity:
    """Statistics over three sources: the last two differ in how the label depends on the first features, the first two
    in the scale of the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(SIDE, SIDE), nn.ReLU(), nn.Linear(SIDE, SIDE), nn.ReLU(), nn.Linear(SIDE, 2))
    probe = aimfair.Sensitivity(model)
    for source, scale, biased in (
        ("real_biased", 1.5, True),
        ("synthetic_biased", 1, True),
        ("synthetic_fair", 1, False),
    ):
        for _ in range(20):
            y = torch.randint(2, (64,))
            x = torch.randn(64, SIDE)
            x[:, 8:] *= scale
            x[:, 8:12] += y[:, None]
            x[:, :8] += (2 * y[:, None] if biased else 2 * torch.randint(2, (64, 1))) - 1
            nn.functional.cross_entropy(model(x), y).backward()
            probe.update(source)
    return probe


def _cells(selected: npt.NDArray[np.bool_], left: float, top: float) -> list[str]:
    """One path for the selected elements, on a pale square."""
    side = SIDE * CELL
    path = "".join(
        f"M{left + CELL * column:.0f} {top + CELL * row:.0f}h{CELL}v{CELL}h-{CELL}z"
        for row, column in np.argwhere(selected)
    )
    background = f'<rect x="{left}" y="{top}" width="{side}" height="{side}" fill="{PALE}"/>'
    return [background, f'<path d="{path}" fill="{INK}"/>']


def speedups() -> str:
    """Of the masked step over torch's fused AdamW, by model and density."""
    return bars(
        "compact AdamW, float32, at random: times as fast as fused AdamW", _ratios("adamw fp32", "random", "fused")
    )


def selections() -> str:
    """Of the exact top 10% of all elements over ``torch.kthvalue`` and a comparison, by model."""
    return bars(
        "exact top 10%: times as fast as kthvalue + compare",
        _ratios("select difference", "top-k", "kthvalue + compare"),
    )


def _ratios(work: str, pattern: str, rival: str) -> list[tuple[str, float]]:
    """(model and density, ratio of times) of the cases with this rival, in the newest results."""
    cases = [
        case
        for case in json.loads(latest().read_text())["cases"]
        if (case["work"], case["pattern"]) == (work, pattern) and case["state"] != "dense"
    ]
    return [
        (f"{case['tensors']}, {case['density']:.0%}", other["ratio"])
        for case in cases
        for other in case["rivals"]
        if other["name"] == rival
    ]


def latest() -> Path:
    """The newest results of the kernels as JSON."""
    return max(path for path in RESULTS.glob("*.json") if path.stem.endswith("t"))


def bars(title: str, rows: Sequence[tuple[str, float]]) -> str:
    """Horizontal bars with their values, a line at 1, and where the values are from."""
    left, width, step = 150, 360, 20
    if not rows:
        raise ValueError(f"{latest()}: no case for {title!r}")
    scale = width / max(value for _, value in rows)
    parts = [text(10, 18, title, "start", "bold")]
    for number, (label, value) in enumerate(rows):
        y = 32 + number * step
        parts.append(text(left - 8, y + 12, label, "end"))
        parts.append(f'<rect x="{left}" y="{y}" width="{value * scale:.1f}" height="{step - 5}" fill="{BARS}"/>')
        parts.append(text(left + value * scale + 6, y + 12, f"{value:.2f}", "start"))
    end = 32 + len(rows) * step
    parts.append(line(left + scale, 28, left + scale, end, GUIDE, dashed=True))
    here = json.loads(latest().read_text())["environment"]
    source = f"{here['device']}, {here['threads']} threads, torch {here['torch']}, {here['date']}"
    parts.append(text(10, end + 18, source, "start", colour=GUIDE))
    return svg(left + width + 60, end + 28, parts)


FIGURES: dict[str, Callable[[], str]] = {"masks": masks, "speedups": speedups, "selections": selections}
