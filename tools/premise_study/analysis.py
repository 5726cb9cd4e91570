"""What the rows say: paired differences between methods with intervals that hold for all comparisons at once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import t  # type: ignore[import-untyped]

from aimfair.evaluation.intervals import student_t
from aimfair.evaluation.metrics import METRICS
from tools.premise_study.domains import Regime
from tools.premise_study.run import BIASED, Design, chosen_values, key_of, rows_of, trials_of

Values = npt.NDArray[np.float64]

CONFIDENCE, POWER = 0.95, 0.8

SHOWN = ("accuracy", "worst_group_accuracy", "eo_mean")
WORST = "worst_group_accuracy"


@dataclass(frozen=True)
class Difference:
    """Between two methods, in points, over R replicates.

    Attributes:
        mean; low, high: simultaneous interval.
        detectable: the smallest true difference whose interval excludes zero with probability :data:`POWER`.
    """

    mean: float
    low: float
    high: float
    detectable: float

    @property
    def clear(self) -> bool:
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        text = f"{self.mean:+.1f} ({self.low:+.1f} to {self.high:+.1f})"
        return f"**{text}**" if self.clear else text


def difference(one: Values, other: Values, comparisons: int) -> Difference:
    """Of values [R] of the same replicates, as shares; the interval is Student's t with Bonferroni's correction."""
    confidence = 1 - (1 - CONFIDENCE) / comparisons
    low, high = (100 * student_t(one - other, confidence)).tolist()
    paired = 100 * (one - other)
    count = len(paired)
    factor = t.ppf(0.5 + confidence / 2, count - 1) + t.ppf(POWER, count - 1)
    return Difference(float(paired.mean()), low, high, float(factor * paired.std(ddof=1) / sqrt(count)))


def measured(regime: Regime, folder: Path, chosen: Mapping[str, Any]) -> dict[str, dict[str, Values]]:
    """Method -> metric -> [R], of the replicates in which every method finished, in their order.

    Args:
        chosen: method -> the values with which it is reported.
    """
    chosen = {BIASED: {}, **chosen}
    found: dict[str, dict[int, list[float]]] = {name: {} for name in chosen}
    for row in rows_of(regime, folder, "final"):
        if row["values"] == chosen.get(row["method"]) and "failed" not in row:
            counts = np.asarray(row["test"])
            found[row["method"]][row["replicate"]] = [float(METRICS[name](counts)) for name in SHOWN]
    common = sorted(set.intersection(*(set(of) for of in found.values())))
    return {
        name: dict(zip(SHOWN, np.array([of[replicate] for replicate in common]).T, strict=True))
        for name, of in found.items()
    }


def table(regime: Regime, folder: Path, design: Design) -> Iterator[str]:
    """Markdown, the best worst group first."""
    chosen = chosen_values(regime, folder, design)
    values = measured(regime, folder, chosen)
    comparisons = len(design.methods) - 1
    yield f"`{regime.name}`: {len(values[BIASED][WORST])} replicates"
    yield ""
    headings = ("settings chosen", "accuracy", "worst group", "equalized odds", "worst group less that of full tuning",
                "detectable", "less that of random")  # fmt: skip
    yield f"| method | {' | '.join(headings)} |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for name in sorted(values, key=lambda name: -values[name][WORST].mean()):
        of = values[name]
        cells = [f"{100 * of[metric].mean():.1f} ± {100 * of[metric].std(ddof=1):.1f}" for metric in SHOWN]
        full, random = (
            difference(of[WORST], values[other][WORST], comparisons) if other in values and name != other else None
            for other in ("full", "random")
        )
        cells += [str(full), f"{full.detectable:.1f}"] if full else ["", ""]
        cells.append(str(random) if random else "")
        settings = ", ".join(f"{key} {value:.3g}" for key, value in chosen.get(name, {}).items())
        yield f"| {name} | {settings} | {' | '.join(cells)} |"
    yield ""


def rate_table(regime: Regime, folder: Path, design: Design) -> Iterator[str]:
    """Markdown of a design with rates: worst group of each method at each rate, and differences to full tuning."""
    others = [name for name in design.methods if name != "full"]
    comparisons = len(others) * len(design.rates)
    count, rows = 0, []
    for number, rate in enumerate(design.rates):
        values = measured(regime, folder, {name: design.at_rates(name)[number] for name in design.methods})
        worst = {name: of[WORST] for name, of in values.items()}
        count = len(worst["full"])
        cells = [f"{100 * worst[name].mean():.1f} ± {100 * worst[name].std(ddof=1):.1f}" for name in design.methods]
        cells += [str(difference(worst[name], worst["full"], comparisons)) for name in others]
        rows.append(f"| {rate:g} | {' | '.join(cells)} |")
    headings = [*design.methods, *(f"{name} less full" for name in others)]
    yield f"`{regime.name}`: {count} replicates, worst group"
    yield ""
    yield f"| learning rate | {' | '.join(headings)} |"
    yield "|---:|" + "---:|" * len(headings)
    yield from rows
    yield ""


def by_rate(regime: Regime, folder: Path, design: Design, names: Sequence[str]) -> Iterator[str]:
    """Markdown: worst group of all trials, by learning rate and epochs, which methods share; means over the tuning
    replicates."""
    found: dict[tuple[float, int], dict[str, list[float]]] = {}
    for row in rows_of(regime, folder, "trials"):
        if row["method"] in names and "failed" not in row and row["replicate"] < design.tuning:
            place = found.setdefault((row["values"]["lr"], row["values"]["epochs"]), {})
            place.setdefault(row["method"], []).append(100 * float(METRICS[WORST](np.asarray(row["test"]))))
    yield f"| learning rate | epochs | {' | '.join(names)} |"
    yield "|---:|---:|" + "---:|" * len(names)
    for (lr, epochs), of in sorted(found.items()):
        cells = " | ".join(f"{np.mean(of[name]):.1f}" if name in of else "" for name in names)
        yield f"| {lr:.2g} | {epochs} | {cells} |"
    yield ""


def regrets(regime: Regime, folder: Path, design: Design) -> dict[str, float]:
    """Method -> worst group of the trial that real test images would have chosen, less that of the one that was, in
    points, mean over the tuning replicates."""
    means: dict[str, dict[str, float]] = {name: {} for name in design.methods}
    for key, rows in trials_of(regime, folder, design).items():
        worst = [float(METRICS[WORST](np.asarray(row["test"]))) for row in rows if "failed" not in row]
        if worst and rows[0]["method"] in means:
            means[rows[0]["method"]][key] = float(np.mean(worst))
    return {
        name: 100 * (max(means[name].values()) - means[name][key_of({"method": name, "values": values})])
        for name, values in chosen_values(regime, folder, design).items()
    }
