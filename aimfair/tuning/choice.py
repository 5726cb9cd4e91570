"""Which trial is chosen, and what choosing without group labels costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from aimfair.tuning.trials import Step, Trial

_LEAST_FINISHED = 4
"""Trials that must have finished before others are pruned."""

_PRUNE_FROM = 1 / 3
"""Share of its epochs before which no trial is pruned."""


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The finished trials that no other surpasses in one objective and equals in the other, from the lowest accuracy on
    validation images to the highest."""
    finished = complete(trials)
    kept = [
        one
        for one in finished
        if not any(
            other.worst >= one.worst
            and other.accuracy >= one.accuracy
            and (other.worst > one.worst or other.accuracy > one.accuracy)
            for other in finished
        )
    ]
    return sorted(kept, key=lambda one: (one.accuracy, -one.worst, one.number))


def choose(trials: Sequence[Trial], tolerance: float | None) -> Trial | None:
    """The trial of the highest accuracy on real validation images among those that can be told from none in fairness.

    Those are the finished ones whose worst-group accuracy on held-out synthetic images is at most ``tolerance`` below
    the best one's, by default one standard error of it. Ties go to the smaller change of the weights, then to the
    earlier trial. None if no trial finished.

    On biased validation images a biased model is accurate, so their accuracy alone, or a bound on its loss, would
    choose it. Of models that treat all groups alike it is the accuracy in every group, real ones: what synthetic images
    cannot tell.
    """
    finished = complete(trials)
    if not finished:
        return None
    best = max(finished, key=lambda one: (one.worst, -one.number))
    allowed = best.worst_error if tolerance is None else tolerance
    fair = [one for one in finished if one.worst >= best.worst - allowed - 1e-12]
    return min(fair, key=lambda one: (-one.accuracy, one.change, one.number))


def complete(trials: Sequence[Trial]) -> list[Trial]:
    return [one for one in trials if one.state == "complete"]


def is_weak(now: Step, share: float, finished: Sequence[Sequence[Step]]) -> bool:
    """Whether half of the finished trainings, or more, surpass a running one in both objectives.

    Args:
        share: of its epochs that are done; the others are compared after the same share of theirs.
        finished: the objectives of each after every epoch.
    """
    if len(finished) < _LEAST_FINISHED or not _PRUNE_FROM <= share < 1:
        return False
    then = [curve[max(floor(share * len(curve)), 1) - 1] for curve in finished]
    return 2 * sum(one.worst > now.worst and one.accuracy > now.accuracy for one in then) >= len(then)


@dataclass(frozen=True)
class Regret:
    """Worst-group accuracy on real test images, of each seed.

    Attributes:
        chosen: of the trial that was chosen without group labels of real images.
        given: of the settings that the method was given.
        by_labels: of the trial with the highest worst-group accuracy on real validation images.
        best: of the trial with the highest on the test images themselves: no choice can surpass it.
    """

    chosen: list[float]
    given: list[float]
    by_labels: list[float]
    best: list[float]


def regret(trials: Sequence[Trial], chosen: Trial) -> Regret | None:
    """None if the trials were not measured on labelled real images."""
    finished = [one for one in complete(trials) if all(of.audit is not None for of in one.seeds)]
    if not finished:
        return None

    def highest(score: Callable[[Trial], list[float]]) -> Trial:
        return max(finished, key=lambda one: (float(np.nan_to_num(np.mean(score(one)), nan=-1.0)), -one.number))

    by_labels = highest(lambda one: one.real_worst("validation"))
    best = highest(lambda one: one.real_worst("test"))
    given = next((one for one in finished if not one.number), None)
    return Regret(
        chosen.real_worst("test"),
        given.real_worst("test") if given else [],
        by_labels.real_worst("test"),
        best.real_worst("test"),
    )
