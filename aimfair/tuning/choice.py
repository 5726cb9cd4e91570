"""Which trial is chosen, and what choosing without group labels costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from aimfair.tuning.trials import Stopped, Trial

_LEAST_EARLIER = 4
"""Trials that must have come as far before one is pruned."""

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


def is_weak(now: Stopped, earlier: Sequence[Stopped]) -> bool:
    """Whether half of the earlier trainings, or more, surpass the best values of a running one in both objectives.

    They are compared after the same share of their epochs. Those that were pruned count as far as they came: among
    survivors alone every new trial would look weak.
    """
    share = len(now.curve) / now.epochs
    places = [(one.curve, max(floor(share * one.epochs), 1)) for one in earlier]
    then = [curve[epoch - 1] for curve, epoch in places if epoch <= len(curve)]
    if len(then) < _LEAST_EARLIER or not _PRUNE_FROM <= share < 1:
        return False
    worst, accuracy = max(one.worst for one in now.curve), max(one.accuracy for one in now.curve)
    return 2 * sum(one.worst > worst and one.accuracy > accuracy for one in then) >= len(then)


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
