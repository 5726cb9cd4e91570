"""Metrics of the probabilities: all test images, each protected value, and their gap, before and after."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aimfair.evaluation.results import Results, ScoreResult
from aimfair.evaluation.scores import SCORES
from aimfair.methods import BIASED

LABELS = {"auroc": "AUROC", "calibration_error": "Calibration error", "brier": "Brier score"}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over the seeds."""

    mean: float
    std: float

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "\N{EN DASH}"
        return f"{self.mean:.3f}" if math.isnan(self.std) else f"{self.mean:.3f} ± {self.std:.3f}"


@dataclass(frozen=True)
class Row:
    """Two values for each of LABELS: before and after, or of all test images and the gap between protected values."""

    name: str
    pairs: Sequence[tuple[Spread, Spread]]


@dataclass(frozen=True)
class Section:
    """``rows``: kinds of test images, before and after; ``methods``: of all test images, and the gap."""

    rows: Sequence[Row]
    methods: Sequence[Row]


def section(results: Results) -> Section | None:
    """None where the results hold no metrics of probabilities."""
    spreads = {
        name: _spreads(method.scores_mean, method.scores_std)
        for name, method in results.methods.items()
        if method.scores_mean is not None and method.scores_std is not None
    }
    if not spreads:
        return None
    names = ("all test images", *results.protected_names, "largest difference")
    both = zip(names, spreads[BIASED], spreads[results.default_method], strict=True)
    return Section(
        [Row(name, list(zip(before, after, strict=True))) for name, before, after in both],
        [Row(name, list(zip(of[0], of[-1], strict=True))) for name, of in spreads.items()],
    )


def _spreads(mean: ScoreResult, std: ScoreResult) -> list[list[Spread]]:
    """Of all images, of each protected value, and of the gap: one for each of SCORES."""
    values = range(len(mean.by_value[SCORES[0]]))
    return [
        [Spread(mean.overall[score], std.overall[score]) for score in SCORES],
        *([Spread(mean.by_value[score][a], std.by_value[score][a]) for score in SCORES] for a in values),
        [Spread(mean.gap[score], std.gap[score]) for score in SCORES],
    ]
