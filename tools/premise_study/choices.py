"""Other rules to choose a trial without group labels of real images, judged by the trials of the study."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aimfair.evaluation.metrics import METRICS, by_group
from aimfair.tuning.choice import choose
from aimfair.tuning.trials import Trial
from tools.premise_study.domains import Regime
from tools.premise_study.methods import METHODS
from tools.premise_study.run import Design, key_of, trial_of, trials_of

JUDGED = ("full", "random", "aimfair", "paper", "interpolated")
"""Methods that train on synthetic images alone, and reach beyond the head."""


@dataclass(frozen=True)
class Judged:
    """A finished trial: what a choice may see, the mean accuracy of the synthetic groups, and the worst real group."""

    trial: Trial
    mean_group: float
    real_worst: float


Rule = Callable[[Sequence[Judged]], Judged]


def _within(tolerance: float | None) -> Rule:
    def rule(trials: Sequence[Judged]) -> Judged:
        best = choose([one.trial for one in trials], tolerance)
        return next(one for one in trials if one.trial is best)

    return rule


def _highest(score: Callable[[Judged], float]) -> Rule:
    return lambda trials: max(trials, key=score)


RULES: dict[str, Rule] = {
    "fair first, then real accuracy (one standard error)": _within(None),
    "the same, tolerance 0": _within(0.0),
    "the same, tolerance 2 points": _within(0.02),
    "synthetic worst group + real accuracy": _highest(lambda one: one.trial.worst + one.trial.accuracy),
    "synthetic worst group + 2 x real accuracy": _highest(lambda one: one.trial.worst + 2 * one.trial.accuracy),
    "mean of the synthetic groups + real accuracy": _highest(lambda one: one.mean_group + one.trial.accuracy),
    "real accuracy alone": _highest(lambda one: one.trial.accuracy),
    "as given": lambda trials: trials[0],
}


def table(designs: Sequence[Design], folder: Path) -> Iterator[str]:
    """Markdown: of each rule the points of worst group below the best trial, means over regimes and :data:`JUDGED`."""
    lost: dict[str, dict[int, list[float]]] = {name: {} for name in RULES}
    for design in designs:
        for regime in design.regimes:
            for method in JUDGED:
                trials = judged(regime, folder, design, method)
                best = max(one.real_worst for one in trials)
                for name, rule in RULES.items():
                    lost[name].setdefault(regime.per_group, []).append(100 * (best - rule(trials).real_worst))
    yield "| choice | all | 20 images per group | more |"
    yield "|---|---:|---:|---:|"
    for name, of in lost.items():
        few, more = of.get(20, []), [value for count, values in of.items() if count != 20 for value in values]
        cells = (f"{np.mean(values):.1f}" if values else "" for values in (few + more, few, more))
        yield f"| {name} | {' | '.join(cells)} |"


def judged(regime: Regime, folder: Path, design: Design, method: str) -> list[Judged]:
    """The trials of a method that finished on every tuning replicate, in their order."""
    by_key, found = trials_of(regime, folder, design), []
    for number, values in enumerate(METHODS[method].trials(design.trials)):
        rows = [row for row in by_key[key_of({"method": method, "values": values})] if "failed" not in row]
        if len(rows) == design.tuning:
            means = [float(by_group(np.asarray(row["judge"])).mean()) for row in rows]
            worst = [float(METRICS["worst_group_accuracy"](np.asarray(row["test"]))) for row in rows]
            found.append(Judged(trial_of(number, values, rows), float(np.mean(means)), float(np.mean(worst))))
    return found
