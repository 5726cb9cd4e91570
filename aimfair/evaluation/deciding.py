"""How many test images the groups have that decide a metric: of few, chance speaks rather than the model.

A worst group decides the smallest accuracy. The groups with the largest and with the smallest rate decide a difference
or ratio of rates; for demographic parity a group is a protected value with all its classes. All groups decide their
standard deviation. Where groups share a rate, the one with the most images stands for them.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from aimfair.evaluation import fairness
from aimfair.evaluation.fairness import Counts

Values = npt.NDArray[np.float64]


def deciding_images(metric: str, counts: Counts) -> int | None:
    """The fewest test images of a group that decides the metric in any of the tables.

    Args:
        metric: a name in :data:`aimfair.evaluation.fairness.METRICS`.
        counts: [A, Y, K, ...].

    Returns:
        None for accuracy and balanced accuracy, which no group decides, and where the metric is undefined.
    """
    if metric not in _DECIDING or np.isnan(fairness.METRICS[metric](counts)).any():
        return None
    return int(_DECIDING[metric](np.asarray(counts, dtype=np.float64)).min())


def _worst(counts: Counts) -> Values:
    rates = fairness.by_group(counts)
    return _most(counts.sum(axis=2), rates == np.nanmin(rates, axis=(0, 1)), (0, 1))


def _eo_mean(counts: Counts) -> Values:
    return np.asarray(_ends(fairness.odds(counts), _sizes(counts)).min(axis=(0, 1)))


def _eo_max(counts: Counts) -> Values:
    rates = fairness.odds(counts)
    differences = fairness.difference(rates)
    return _most(_ends(rates, _sizes(counts)), differences == differences.max(axis=(0, 1)), (0, 1))


def _eo_ratio(counts: Counts) -> Values:
    rates = fairness.odds(counts)
    ratios = fairness.ratio(rates)
    return _most(_ends(rates, _sizes(counts)), ratios == ratios.min(axis=(0, 1)), (0, 1))


def _equal_opportunity(counts: Counts) -> Values:
    told = fairness.told(counts)
    return _of_largest_difference(fairness.by_group(counts)[:, told], counts.sum(axis=2)[:, told])


def _demographic_parity(counts: Counts) -> Values:
    return _of_largest_difference(fairness.selection_rates(counts), counts.sum(axis=(1, 2))[:, None])


_DECIDING: Mapping[str, Callable[[Counts], Values]] = {
    "worst_group_accuracy": _worst,
    "worst_present_group_accuracy": _worst,
    "group_std": lambda counts: np.asarray(counts.sum(axis=2).min(axis=(0, 1))),
    "eo_mean": _eo_mean,
    "eo_max": _eo_max,
    "eo_ratio": _eo_ratio,
    "equal_opportunity": _equal_opportunity,
    "demographic_parity": _demographic_parity,
}


def _sizes(counts: Counts) -> Counts:
    """[A, Y, 1, ...]."""
    sizes: Counts = counts.sum(axis=2, keepdims=True)
    return sizes


def _ends(rates: Values, sizes: Counts) -> Values:
    """[...] of rates [A, ...]: images of the group with the largest or of that with the smallest, the fewer."""
    return np.minimum(_most(sizes, rates == rates.max(axis=0), 0), _most(sizes, rates == rates.min(axis=0), 0))


def _of_largest_difference(rates: Values, sizes: Counts) -> Values:
    differences = fairness.difference(rates)
    return _most(_ends(rates, sizes), differences == differences.max(axis=0), 0)


def _most(sizes: Counts, chosen: npt.NDArray[np.bool_], axis: int | tuple[int, ...]) -> Values:
    return np.asarray(np.where(chosen, sizes, -1.0).max(axis=axis))
