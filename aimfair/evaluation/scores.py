"""Metrics of predicted probabilities: ranking (AUROC) and calibration.

==================  ===================================================================================================
auroc               area under the ROC curve: the probability that an image of class 1 has a higher P(1) than one of
                    class 0, half of it where they are equal (Hanley and McNeil, Radiology 143, 1982). With more than
                    two classes the mean over the classes of each against the rest
calibration_error   expected calibration error: mean over the images of abs(accuracy - mean confidence) of their bin, in
                    bins of equal width of the confidence, the probability of the predicted class (Naeini et al., AAAI
                    2015; Guo et al., arXiv 1706.04599). Bin m of M is ((m - 1) / M, m / M]
brier               Brier score (Monthly Weather Review 78, 1950): mean squared difference of probabilities and truth,
                    of P(1) with two classes, summed over the classes with more; 0 is best
==================  ===================================================================================================

Each is computed over all images (overall), over those of each protected value (by_value), and as the largest minus the
smallest over the values (gap). Within a value AUROC compares only images of that value. Calibration error is biased
upwards, more so with fewer images: values of unequal sizes show a gap even for an equally calibrated model. Brier
scores of values differ where their class frequencies differ.

Undefined values are NaN: all scores of a value without images, AUROC where a class has none.

Shapes: N images, C classes, A protected values.
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from aimfair.evaluation.metrics import Integers, Values
from aimfair.evaluation.predictions import Logits
from aimfair.evaluation.results import ScoreResult

SCORES = ("auroc", "calibration_error", "brier")

HIGHER_IS_BETTER = frozenset({"auroc"})
"""For the others lower is better."""


def measure(logits: Logits, target: Integers, protected: Integers, values: int, bins: int) -> ScoreResult:
    """Every metric of SCORES.

    Args:
        logits: float32 [N, C], finite.
        target: int64 [N], the true class.
        protected: int64 [N], the protected value, in [0, values).
        bins: of the calibration error.
    """
    shares, odds = probabilities(logits), log_odds(logits)
    functions: Mapping[str, Callable[[npt.NDArray[np.bool_] | slice], float]] = {
        "auroc": lambda chosen: auroc(odds[chosen], target[chosen]),
        "calibration_error": lambda chosen: calibration_error(shares[chosen], target[chosen], bins),
        "brier": lambda chosen: brier(shares[chosen], target[chosen]),
    }
    members = [protected == a for a in range(values)]
    by_value = {name: [of(chosen) for chosen in members] for name, of in functions.items()}
    return ScoreResult(
        overall={name: of(slice(None)) for name, of in functions.items()},
        by_value=by_value,
        gap={name: float(np.max(found) - np.min(found)) for name, found in by_value.items()},
    )


def auroc(scores: npt.ArrayLike, target: Integers) -> float:
    """Of scores [N, C] that rise with the probability of each class; NaN if a class has no images."""
    columns = np.asarray(scores, dtype=np.float64)
    classes = range(columns.shape[1])
    informative = [1] if len(classes) == 2 else classes  # two classes give the same value
    return float(np.mean([_rank_probability(columns[:, k], target == k) for k in informative]))


def calibration_error(shares: Values, target: Integers, bins: int) -> float:
    """Of probabilities [N, C]; NaN without images. An edge belongs to the bin below it."""
    if not len(shares):
        return float("nan")
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == target
    edges = np.arange(1, bins) / bins
    excess = np.bincount(np.searchsorted(edges, confidence, side="left"), right - confidence)
    return float(np.abs(excess).sum() / len(shares))


def brier(shares: Values, target: Integers) -> float:
    """Of probabilities [N, C]; NaN without images."""
    if not len(shares):
        return float("nan")
    missing = shares.copy()
    missing[np.arange(len(target)), target] -= 1
    squares = missing[:, 1] ** 2 if shares.shape[1] == 2 else (missing**2).sum(axis=1)
    return float(squares.mean())


def _rank_probability(scores: Values, positive: npt.NDArray[np.bool_]) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2: Mann and Whitney's U over the number of pairs."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives * negatives == 0:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def probabilities(logits: npt.ArrayLike) -> Values:
    """Softmax of logits [N, C]: float64 [N, C]."""
    scores = np.asarray(logits, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_odds(logits: npt.ArrayLike) -> Values:
    """log(p / (1 - p)) of each class of logits [N, C]: float64 [N, C].

    It ranks images as the probability p does, and also separates those whose p rounds to 1. With two classes it is the
    difference of the logits.
    """
    scores = np.asarray(logits, dtype=np.float64)
    others = [np.logaddexp.reduce(np.delete(scores, k, axis=1), axis=1) for k in range(scores.shape[1])]
    return np.asarray(scores - np.stack(others, axis=1))
