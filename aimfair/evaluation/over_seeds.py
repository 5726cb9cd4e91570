"""Evaluation of several methods at several seeds, for one grouping of the test images.

Shapes: A values, Y = K classes, S seeds, R bootstrap replicates, N test images.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.evaluation import intervals, metrics
from aimfair.evaluation.metrics import METRICS, Integers, Values, count_predictions
from aimfair.evaluation.results import Difference, GroupResult, ScoreResult
from aimfair.evaluation.scores import SCORES


class Grouping:
    """Counts and bootstrap replicates of every method, with the test images grouped by class and one attribute.

    Attributes:
        counts: method -> [A, Y, K, S].
        replicates: method -> metric -> [S, R], every method and seed on the same resampled test images.
    """

    def __init__(
        self,
        target: Integers,
        values: Integers,
        shape: tuple[int, int],
        predicted: Mapping[str, Sequence[Integers]],
        *,
        clusters: Sequence[str],
        confidence: float,
        replicates: int,
        generator: np.random.Generator,
        resampled: Collection[str] | None = None,
    ):
        """
        Args:
            target, values: int64 [N], the true class and the value of the attribute.
            shape: (A, Y).
            predicted: method -> for each seed int64 [N], the predicted class.
            clusters: of each image, see :class:`aimfair.evaluation.intervals.PairedPredictions`.
            replicates: R.
            resampled: the methods to resample; None: all.
        """
        self.confidence = confidence
        self.counts = {
            name: np.stack([count_predictions(target, values, one, shape[1], shape[0]) for one in of_seeds], axis=-1)
            for name, of_seeds in predicted.items()
        }
        chosen = {name: predicted[name] for name in (predicted if resampled is None else resampled)}
        models = np.stack([one for of_seeds in chosen.values() for one in of_seeds])
        paired = intervals.PairedPredictions.of(target, values, models, shape[1], shape[0], clusters)
        ends = np.cumsum([len(of_seeds) for of_seeds in chosen.values()])
        whole = intervals.replicated(paired, METRICS, replicates, generator)
        self.replicates = {
            name: {metric: all_of[end - len(of_seeds) : end] for metric, all_of in whole.items()}
            for end, (name, of_seeds) in zip(ends, chosen.items(), strict=True)
        }

    def summary(self, name: str, others: Collection[str], scores: Sequence[ScoreResult] | None) -> dict[str, Any]:
        """The fields of :class:`aimfair.evaluation.results.MethodSummary`.

        Args:
            others: methods to compare with.
            scores: of each seed.
        """
        overall = metrics.overall(self.counts[name])
        scores_mean, scores_std = _score_spread(scores)
        return {
            "mean": {metric: values.mean().item() for metric, values in overall.items()},
            "std": {metric: std(values).item() for metric, values in overall.items()},
            "of_mean_rates": {metric: value.item() for metric, value in metrics.overall(self.total(name)).items()},
            "by_group": self.by_group(name),
            "versus": {other: self.difference(name, other) for other in others if other != name},
            "scores_mean": scores_mean,
            "scores_std": scores_std,
        }

    def total(self, name: str) -> Integers:
        """[A, Y, K], sums over the seeds: as every seed sees the same images, their rates are the mean rates."""
        return np.asarray(self.counts[name].sum(axis=-1))

    def by_group(self, name: str) -> GroupResult:
        counts = self.counts[name]
        rates, sizes = metrics.by_group(counts), counts.sum(axis=2)[..., 0]
        return GroupResult(
            mean=rates.mean(axis=-1).tolist(),
            std=std(rates).tolist(),
            interval=intervals.wilson(rates.mean(axis=-1) * sizes, sizes, self.confidence).tolist(),
        )

    def difference(self, name: str, other: str) -> dict[str, Difference]:
        """Metric -> ``name`` minus ``other``."""
        both = np.concatenate([self.counts[name], self.counts[other]], axis=-1)
        differences = {}
        for metric, function in METRICS.items():
            per_seed = function(self.counts[name]) - function(self.counts[other])
            resampled = (self.replicates[name][metric] - self.replicates[other][metric]).mean(axis=0)
            differences[metric] = Difference(
                mean=per_seed.mean().item(),
                over_images=intervals.percentile(resampled, self.confidence).tolist(),
                over_seeds=intervals.student_t(per_seed, self.confidence).tolist(),
                support=metrics.support(metric, both),
            )
        return differences


def std(values: npt.ArrayLike) -> Values:
    """Over the last axis, ddof 1; NaN for one value."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers.std(axis=-1, ddof=1) if numbers.shape[-1] > 1 else np.full(numbers.shape[:-1], np.nan)


def _score_spread(of_seeds: Sequence[ScoreResult] | None) -> tuple[ScoreResult | None, ScoreResult | None]:
    """Mean and standard deviation (ddof 1)."""
    if of_seeds is None:
        return None, None
    return _reduce(of_seeds, lambda values: values.mean(axis=-1)), _reduce(of_seeds, std)


def _reduce(of_seeds: Sequence[ScoreResult], function: Callable[[Values], Values]) -> ScoreResult:
    def reduced(values: Sequence[object]) -> Values:
        return function(np.stack([np.asarray(value, dtype=np.float64) for value in values], axis=-1))

    return ScoreResult(
        overall={name: reduced([one.overall[name] for one in of_seeds]).item() for name in SCORES},
        by_value={name: reduced([one.by_value[name] for one in of_seeds]).tolist() for name in SCORES},
        gap={name: reduced([one.gap[name] for one in of_seeds]).item() for name in SCORES},
    )
