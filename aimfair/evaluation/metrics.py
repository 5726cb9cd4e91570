"""Fairness metrics of a table of counts N[a, y, k]: images of protected value a and class y predicted as class k.

Every function takes counts [A, Y, K, ...]; trailing axes are a batch of tables, such as bootstrap replicates, and the
axes of the result. With P(k | y, a) = N[a, y, k] / N[a, y, .] and d = largest minus smallest over a:

==========================  =========================================================================================
accuracy                    share of images classified correctly
balanced_accuracy           mean over y of the recall of class y
worst_group_accuracy        smallest accuracy of a group (y, a)
worst_present_group_acc...  the same over the non-empty groups; to be shown with the number of empty ones
group_std                   standard deviation (ddof 0) of the group accuracies
eo_mean                     equalized odds: mean over (y, k) of d P(k | y, a); with two classes (dTPR + dFPR) / 2
eo_max                      equalized odds: the largest of them; with two classes max(dTPR, dFPR)
eo_ratio                    equalized odds: smallest over (y, k) of the ratio of the smallest to the largest over a
equal_opportunity           d P(1 | 1, a); with more than two classes the largest over y of d P(y | y, a)
demographic_parity          d P(k = 1 | a); with more than two classes the largest over k of d P(k | a)
demographic_parity_ratio    the ratio of the smallest to the largest of them; with more classes the smallest over k
==========================  =========================================================================================

With two classes k is the positive class, 1, alone: the other class has the same differences (not the same ratio, but
fairlearn and the literature leave it out too). The ratio of two rates of zero is 1.

A rate over no images is NaN, and so is every metric that needs it; only worst_present_group_accuracy skips empty
groups.

The support of a metric is the number of test images behind it: that of the worst group for the smallest accuracy; that
of the groups with the largest and the smallest rate, whichever has fewer images, for a difference or ratio of rates
(for demographic parity such a group is a protected value with all its classes); that of the smallest group for
group_std. Of groups that share a rate, the one with the most images counts.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]


def count_predictions(
    target: Integers, protected: Integers, predicted: Integers, targets: int, protected_values: int
) -> Integers:
    """Images of each protected value, class and predicted class.

    Args:
        target: int64 [N], the true class y, in [0, targets).
        protected: int64 [N], the protected attribute a, in [0, protected_values).
        predicted: int64 [N], the predicted class k, in [0, targets).

    Returns:
        int64 [A, Y, K].

    Raises:
        ValueError: the lengths differ, or a value is out of range.
    """
    require_in_range(target, protected, predicted, targets, protected_values)
    cells = (protected * targets + target) * targets + predicted
    counts = np.bincount(cells, minlength=protected_values * targets * targets)
    return counts.astype(np.int64).reshape(protected_values, targets, targets)


def require_in_range(
    target: Integers, protected: Integers, predicted: Integers, targets: int, protected_values: int
) -> None:
    """Raises the errors of :func:`count_predictions`."""
    if not target.shape == protected.shape == predicted.shape or target.ndim != 1:
        raise ValueError(
            f"target, protected and predicted are {target.shape}, {protected.shape} and {predicted.shape},"
            " expected one length"
        )
    limits = {
        "target": (target, targets),
        "protected": (protected, protected_values),
        "predicted": (predicted, targets),
    }
    for name, (values, limit) in limits.items():
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name} holds {values.min()} to {values.max()}, expected 0 to {limit - 1}")


def by_group(counts: Counts) -> Values:
    """Accuracy of each group: [A, Y, ...]."""
    return _ratio(_correct(counts), counts.sum(axis=2))


def accuracy(counts: Counts) -> Values:
    return _ratio(_correct(counts).sum(axis=(0, 1)), counts.sum(axis=(0, 1, 2)))


def balanced_accuracy(counts: Counts) -> Values:
    return np.asarray(_ratio(_correct(counts).sum(axis=0), counts.sum(axis=(0, 2))).mean(axis=0))


def worst_group_accuracy(counts: Counts) -> Values:
    return np.asarray(by_group(counts).min(axis=(0, 1)))


def worst_present_group_accuracy(counts: Counts) -> Values:
    """The smallest accuracy of a non-empty group."""
    accuracies = by_group(counts)
    smallest = np.where(np.isnan(accuracies), np.inf, accuracies).min(axis=(0, 1))
    return np.asarray(np.where(np.isinf(smallest), np.nan, smallest))


def group_std(counts: Counts) -> Values:
    return np.asarray(by_group(counts).std(axis=(0, 1)))


def eo_mean(counts: Counts) -> Values:
    return np.asarray(difference(odds(counts)).mean(axis=(0, 1)))


def eo_max(counts: Counts) -> Values:
    return np.asarray(difference(odds(counts)).max(axis=(0, 1)))


def eo_ratio(counts: Counts) -> Values:
    return np.asarray(ratio(odds(counts)).min(axis=(0, 1)))


def equal_opportunity(counts: Counts) -> Values:
    return np.asarray(difference(by_group(counts)[:, informative(counts)]).max(axis=0))


def demographic_parity(counts: Counts) -> Values:
    return np.asarray(difference(selection_rates(counts)).max(axis=0))


def demographic_parity_ratio(counts: Counts) -> Values:
    return np.asarray(ratio(selection_rates(counts)).min(axis=0))


METRICS: Mapping[str, Callable[[Counts], Values]] = {
    metric.__name__: metric
    for metric in (
        accuracy,
        balanced_accuracy,
        worst_group_accuracy,
        worst_present_group_accuracy,
        group_std,
        eo_mean,
        eo_max,
        eo_ratio,
        equal_opportunity,
        demographic_parity,
    )
}
"""Those of a run's results."""

FUNCTIONS: Mapping[str, Callable[[Counts], Values]] = {**METRICS, "demographic_parity_ratio": demographic_parity_ratio}
"""All of them."""

HIGHER_IS_BETTER = frozenset(
    {
        "accuracy",
        "balanced_accuracy",
        "worst_group_accuracy",
        "worst_present_group_accuracy",
        "eo_ratio",
        "demographic_parity_ratio",
    }
)
"""For the others lower is better."""


def odds(counts: Counts) -> Values:
    """[A, Y, K or 1, ...]: P(k | y, a)."""
    return _ratio(counts, counts.sum(axis=2, keepdims=True))[:, :, informative(counts)]


def selection_rates(counts: Counts) -> Values:
    """[A, K or 1, ...]: P(k | a)."""
    selected = counts.sum(axis=1)
    return _ratio(selected, selected.sum(axis=1, keepdims=True))[:, informative(counts)]


def informative(counts: Counts) -> slice:
    """The classes with information of their own: of two classes only the positive one."""
    return slice(1, None) if counts.shape[2] == 2 else slice(None)


def difference(rates: Values) -> Values:
    """The largest minus the smallest over a, the first axis."""
    return np.asarray(rates.max(axis=0) - rates.min(axis=0))


def ratio(rates: Values) -> Values:
    """The smallest over the largest over a, the first axis; 1 where all are 0."""
    smallest, largest = rates.min(axis=0), rates.max(axis=0)
    return np.asarray(np.where(largest == 0, 1.0, _ratio(smallest, largest)))


def overall(counts: Counts) -> dict[str, Values]:
    """Every metric of counts [A, Y, K, ...]: name -> [...]."""
    return {name: metric(counts) for name, metric in METRICS.items()}


def worst_group(counts: Counts) -> tuple[int, int] | None:
    """The group (y, a) of lowest accuracy in one table [A, Y, K], the first on ties; None if a group is empty."""
    accuracies = by_group(counts)
    if np.isnan(accuracies).any():
        return None
    return worst_present_group(counts)


def worst_present_group(counts: Counts) -> tuple[int, int] | None:
    """The same among the non-empty groups; None without any."""
    accuracies = by_group(counts)
    if np.isnan(accuracies).all():
        return None
    a, y = np.unravel_index(int(np.nanargmin(accuracies)), accuracies.shape)
    return int(y), int(a)


def _correct(counts: Counts) -> Counts:
    """[A, Y, ...]: images of each group classified correctly."""
    correct: Counts = np.einsum("ayy...->ay...", counts)
    return correct


def _ratio(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(part, whole))


# -- support -----------------------------------------------------------------------------------------------------------


def support(metric: str, counts: Counts) -> int | None:
    """The fewest test images behind the metric in any of the tables.

    Args:
        metric: a name in :data:`FUNCTIONS`.
        counts: [A, Y, K, ...].

    Returns:
        None for accuracy and balanced accuracy, which depend on no single group, and where the metric is undefined.
    """
    if metric not in _SUPPORT or np.isnan(FUNCTIONS[metric](counts)).any():
        return None
    return int(_SUPPORT[metric](np.asarray(counts, dtype=np.float64)).min())


def _worst_support(counts: Counts) -> Values:
    rates = by_group(counts)
    return _most(counts.sum(axis=2), rates == np.nanmin(rates, axis=(0, 1)), (0, 1))


def _equal_opportunity_support(counts: Counts) -> Values:
    rates, sizes = (values[:, informative(counts)] for values in (by_group(counts), counts.sum(axis=2)))
    return _of_largest(difference(rates), _ends(rates, sizes), 0)


def _demographic_parity_support(counts: Counts) -> Values:
    return _of_largest(difference(selection_rates(counts)), _parity_ends(counts), 0)


def _parity_ratio_support(counts: Counts) -> Values:
    return _of_largest(-ratio(selection_rates(counts)), _parity_ends(counts), 0)


_SUPPORT: Mapping[str, Callable[[Counts], Values | Counts]] = {
    "worst_group_accuracy": _worst_support,
    "worst_present_group_accuracy": _worst_support,
    "group_std": lambda counts: counts.sum(axis=2),
    "eo_mean": lambda counts: _odds_ends(counts),
    "eo_max": lambda counts: _of_largest(difference(odds(counts)), _odds_ends(counts), (0, 1)),
    "eo_ratio": lambda counts: _of_largest(-ratio(odds(counts)), _odds_ends(counts), (0, 1)),
    "equal_opportunity": _equal_opportunity_support,
    "demographic_parity": _demographic_parity_support,
    "demographic_parity_ratio": _parity_ratio_support,
}


def _parity_ends(counts: Counts) -> Values:
    """[K or 1, ...]."""
    return _ends(selection_rates(counts), counts.sum(axis=(1, 2))[:, None])


def _odds_ends(counts: Counts) -> Values:
    """[Y, K or 1, ...]."""
    return _ends(odds(counts), counts.sum(axis=2, keepdims=True))


def _ends(rates: Values, sizes: Counts) -> Values:
    """[...] of rates [A, ...]: images of the group with the largest or of that with the smallest rate, the fewer."""
    return np.minimum(_most(sizes, rates == rates.max(axis=0), 0), _most(sizes, rates == rates.min(axis=0), 0))


def _of_largest(values: Values, ends: Values, axis: int | tuple[int, ...]) -> Values:
    return _most(ends, values == values.max(axis=axis), axis)


def _most(sizes: Counts, chosen: npt.NDArray[np.bool_], axis: int | tuple[int, ...]) -> Values:
    return np.asarray(np.where(chosen, sizes, -1.0).max(axis=axis))
