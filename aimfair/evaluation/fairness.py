"""Metrics of a table of counts N[a, y, k]: images of protected value a and class y that were predicted as class k.

Every function takes counts [A, Y, K, ...]; the trailing axes are a batch of tables (bootstrap replicates, say) and the
axes of the result. With P(k | y, a) = N[a, y, k] / N[a, y, .] and d = the largest minus the smallest over a:

==========================  =========================================================================================
accuracy                    share of images that are right
balanced_accuracy           mean over y of the recall of class y
worst_group_accuracy        smallest accuracy of a group (y, a)
worst_present_group_acc...  the same of the groups that have images, to be shown with the number of those without
group_std                   standard deviation (ddof 0) of the group accuracies
eo_mean                     equalized odds: mean over (y, k) of d P(k | y, a); with two classes (dTPR + dFPR) / 2
eo_max                      equalized odds: the largest of them; with two classes max(dTPR, dFPR)
eo_ratio                    equalized odds: smallest over (y, k) of the ratio of the smallest to the largest over a
equal_opportunity           d P(1 | 1, a); with more than two classes the largest over y of d P(y | y, a)
demographic_parity          d P(k = 1 | a); with more than two classes the largest over k of d P(k | a)
==========================  =========================================================================================

With two classes k is the positive class, 1, alone: what the other would add is the same (in the ratio it is not, and
fairlearn and the literature leave it out too). Two rates of zero are equal: their ratio is 1.

A rate over no images is NaN, and so is every metric that needs it; worst_present_group_accuracy alone leaves out the
groups without images, and its name says so.
"""

import warnings
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Values = npt.NDArray[np.float64]


class UndefinedMetricWarning(UserWarning):
    """A group holds no images, so metrics that need it are NaN."""


def by_group(counts: Counts) -> Values:
    """Accuracy of each group: [A, Y, ...]."""
    return _ratio(_right(counts), counts.sum(axis=2))


def accuracy(counts: Counts) -> Values:
    return _ratio(_right(counts).sum(axis=(0, 1)), counts.sum(axis=(0, 1, 2)))


def balanced_accuracy(counts: Counts) -> Values:
    return np.asarray(_ratio(_right(counts).sum(axis=0), counts.sum(axis=(0, 2))).mean(axis=0))


def worst_group_accuracy(counts: Counts) -> Values:
    return np.asarray(by_group(counts).min(axis=(0, 1)))


def worst_present_group_accuracy(counts: Counts) -> Values:
    """The smallest accuracy of a group that has images; to be shown beside a list or the number of the empty ones."""
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
    return np.asarray(difference(by_group(counts)[:, told(counts)]).max(axis=0))


def demographic_parity(counts: Counts) -> Values:
    return np.asarray(difference(selection_rates(counts)).max(axis=0))


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

HIGHER_IS_BETTER = frozenset(
    {"accuracy", "balanced_accuracy", "worst_group_accuracy", "worst_present_group_accuracy", "eo_ratio"}
)
"""Of the others a lower value is better."""


def odds(counts: Counts) -> Values:
    """[A, Y, K or 1, ...]: P(k | y, a)."""
    return _ratio(counts, counts.sum(axis=2, keepdims=True))[:, :, told(counts)]


def selection_rates(counts: Counts) -> Values:
    """[A, K or 1, ...]: P(k | a)."""
    selected = counts.sum(axis=1)
    return _ratio(selected, selected.sum(axis=1, keepdims=True))[:, told(counts)]


def told(counts: Counts) -> slice:
    """The classes that tell something the others do not: of two classes the positive one."""
    return slice(1, None) if counts.shape[2] == 2 else slice(None)


def difference(rates: Values) -> Values:
    """The largest minus the smallest over a, the first axis."""
    return np.asarray(rates.max(axis=0) - rates.min(axis=0))


def ratio(rates: Values) -> Values:
    """The smallest over the largest over a, the first axis; 1 where all are 0."""
    smallest, largest = rates.min(axis=0), rates.max(axis=0)
    return np.asarray(np.where(largest == 0, 1.0, _ratio(smallest, largest)))


def overall(counts: Counts) -> dict[str, Values]:
    """Every metric of counts [A, Y, K, ...]: name -> [...].

    Warns:
        UndefinedMetricWarning: a group is empty.
    """
    sizes = counts.sum(axis=2)
    if (sizes == 0).any():
        empty = [f"(y={y}, a={a})" for a, y in np.argwhere((sizes == 0).reshape(*sizes.shape[:2], -1).any(axis=2))]
        warnings.warn(
            f"no images in group {', '.join(empty)}: metrics that need it are NaN", UndefinedMetricWarning, stacklevel=2
        )
    return {name: metric(counts) for name, metric in METRICS.items()}


def worst_group(counts: Counts) -> tuple[int, int] | None:
    """The group (y, a) of lowest accuracy in one table [A, Y, K], the first of equals; None if a group is empty."""
    accuracies = by_group(counts)
    if np.isnan(accuracies).any():
        return None
    return worst_present_group(counts)


def worst_present_group(counts: Counts) -> tuple[int, int] | None:
    """The same of the groups that have images; None if there are none."""
    accuracies = by_group(counts)
    if np.isnan(accuracies).all():
        return None
    a, y = np.unravel_index(int(np.nanargmin(accuracies)), accuracies.shape)
    return int(y), int(a)


def _right(counts: Counts) -> Counts:
    """[A, Y, ...]: images of each group whose class was predicted."""
    right: Counts = np.einsum("ayy...->ay...", counts)
    return right


def _ratio(part: Counts, whole: Counts) -> Values:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.true_divide(part, whole))
