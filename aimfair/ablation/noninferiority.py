"""Non-inferiority: which arms lose at most a margin to the reference, by all of their intervals."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from aimfair.evaluation.metrics import HIGHER_IS_BETTER
from aimfair.evaluation.results import Difference

MARGIN = 0.02
"""Default. Floating-point rounding alone shifts a mean over five seeds by up to a point, see docs/demo.md."""

DifferencesAt = Callable[[str, float], Mapping[str, Difference]]
"""Label of an arm and confidence -> metric -> the arm minus the reference."""


@dataclass(frozen=True)
class Judgement:
    """One arm.

    Attributes:
        holds: no metric loses more than the margin, and there are enough images.
        few: metrics with a support of too few test images.
        confidence: of the intervals that it was judged by.
        loss: metric -> the largest loss within the intervals over images and over seeds; negative: even that is a gain.
            NaN: one of them is undefined.
    """

    holds: bool
    few: tuple[str, ...]
    confidence: float
    loss: Mapping[str, float]


def judge_losses(
    labels: Sequence[str],
    differences: DifferencesAt,
    metrics: Sequence[str],
    *,
    margin: float,
    confidence: float,
    small_group: int,
) -> dict[str, Judgement]:
    """Judges each arm.

    An arm holds if for every metric both intervals, over images and over seeds, exclude a loss of more than the margin.
    As all metrics must hold, they need no correction (intersection-union test, Berger, Technometrics 24, 1982). As any
    arm may, the arms do: Holm's (Scandinavian Journal of Statistics 6, 1979). m arms are judged by intervals of
    confidence 1 - (1 - confidence) / m; those that hold are set aside and the rest judged again with the smaller m.
    The probability that an arm holds which in truth loses more is then at most (1 - confidence) / 2.

    Args:
        small_group: with a support of fewer test images nothing is shown.
    """
    found: dict[str, Judgement] = {}
    left = list(labels)
    while left:
        level = 1 - (1 - confidence) / len(left)
        judged = {label: _judge(differences(label, level), metrics, margin, level, small_group) for label in left}
        found |= judged
        left = [label for label in left if not judged[label].holds]
        if len(left) == len(judged):
            break
    return found


def _judge(
    differences: Mapping[str, Difference], metrics: Sequence[str], margin: float, confidence: float, small_group: int
) -> Judgement:
    loss = {metric: _loss(metric, differences[metric]) for metric in metrics}
    supports = {metric: differences[metric].support for metric in metrics}
    few = tuple(metric for metric, support in supports.items() if support is not None and support < small_group)
    return Judgement(not few and all(one <= margin for one in loss.values()), few, confidence, loss)


def _loss(metric: str, difference: Difference) -> float:
    """NaN, which is below no margin, where an interval is undefined: of one seed, or with an empty group."""
    ends = [
        -low if metric in HIGHER_IS_BETTER else high for low, high in (difference.over_images, difference.over_seeds)
    ]
    return math.nan if any(map(math.isnan, ends)) else max(ends)
