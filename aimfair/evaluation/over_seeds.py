"""What the seeds of a method say together.

Shapes: A protected values, Y = K classes, S seeds, R bootstrap replicates, N test images.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from aimfair.data.images import ImageSet
from aimfair.evaluation import fairness, intervals, scores
from aimfair.evaluation.counts import Integers, PairedPredictions, count_predictions
from aimfair.evaluation.deciding import deciding_images
from aimfair.evaluation.fairness import METRICS
from aimfair.evaluation.logits import Logits
from aimfair.evaluation.results import Difference, GroupResult, ScoreResult
from aimfair.evaluation.settings import EvaluateSettings

Values = npt.NDArray[np.float64]


def tables(
    target: Integers, protected: Integers, predicted: Sequence[Integers], targets: int, protected_values: int
) -> Integers:
    """Counts [A, Y, K, S] of the predictions of a method; the arguments as of ``count_predictions``."""
    return np.stack(
        [count_predictions(target, protected, one, targets, protected_values) for one in predicted], axis=-1
    )


def replicates(
    test: ImageSet,
    protected: Integers,
    shape: tuple[int, int],
    predicted: Mapping[str, Sequence[Integers]],
    number: int,
    generator: np.random.Generator,
) -> dict[str, dict[str, Values]]:
    """Method -> metric -> [S, R], every method and seed on the same resampled test images.

    Args:
        protected: int64 [N], which may be another attribute than that of ``test``.
        shape: (A, Y).
        number: R.
    """
    models = np.stack([one for of_seeds in predicted.values() for one in of_seeds])
    paired = PairedPredictions.of(test.target, protected, models, shape[1], shape[0], test.clusters)
    chunks = [
        {metric: of(counts) for metric, of in METRICS.items()}
        for counts in intervals.resample(paired, number, generator)
    ]
    whole = {metric: np.concatenate([chunk[metric] for chunk in chunks], axis=-1) for metric in METRICS}
    ends = np.cumsum([len(of_seeds) for of_seeds in predicted.values()])
    return {
        name: {metric: values[end - len(of_seeds) : end] for metric, values in whole.items()}
        for end, (name, of_seeds) in zip(ends, predicted.items(), strict=True)
    }


def std(values: npt.ArrayLike) -> Values:
    """Over the last axis, ddof 1; NaN for one value."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers.std(axis=-1, ddof=1) if numbers.shape[-1] > 1 else np.full(numbers.shape[:-1], np.nan)


def group_result(counts: Integers, confidence: float) -> GroupResult:
    """Of counts [A, Y, K, S]."""
    rates, sizes = fairness.by_group(counts), counts.sum(axis=2)[..., 0]
    return GroupResult(
        mean=rates.mean(axis=-1).tolist(),
        std=std(rates).tolist(),
        interval=intervals.wilson(rates.mean(axis=-1) * sizes, sizes, confidence).tolist(),
    )


def difference(
    mine: Integers,
    other: Integers,
    my_replicates: Mapping[str, Values],
    other_replicates: Mapping[str, Values],
    confidence: float,
) -> dict[str, Difference]:
    """Metric -> the first method minus the second, of counts [A, Y, K, S] and metrics [S, R] of their replicates."""
    differences = {}
    both = np.concatenate([mine, other], axis=-1)
    for metric, function in METRICS.items():
        per_seed = function(mine) - function(other)
        resampled = (my_replicates[metric] - other_replicates[metric]).mean(axis=0)
        differences[metric] = Difference(
            mean=per_seed.mean().item(),
            over_images=intervals.percentile(resampled, confidence).tolist(),
            over_seeds=intervals.student_t(per_seed, confidence).tolist(),
            deciding_images=deciding_images(metric, both),
        )
    return differences


def score_results(
    logits: Sequence[Logits] | None, target: Integers, protected: Integers, values: int, settings: EvaluateSettings
) -> list[ScoreResult] | None:
    """Of each seed, from float32 [N, K] of each; None of None."""
    if logits is None:
        return None
    found = [scores.measure(one, target, protected, values, settings.bins) for one in logits]
    return [
        ScoreResult(
            overall=dict(one.overall),
            by_value={name: of.tolist() for name, of in one.by_value.items()},
            gap=dict(one.gap),
        )
        for one in found
    ]


def score_spread(of_seeds: Sequence[ScoreResult] | None) -> tuple[ScoreResult | None, ScoreResult | None]:
    """Mean and standard deviation (ddof 1)."""
    if of_seeds is None:
        return None, None
    return _reduce(of_seeds, lambda values: values.mean(axis=-1)), _reduce(of_seeds, std)


def _reduce(of_seeds: Sequence[ScoreResult], function: Callable[[Values], Values]) -> ScoreResult:
    def reduced(values: Sequence[object]) -> Values:
        return function(np.stack([np.asarray(value, dtype=np.float64) for value in values], axis=-1))

    return ScoreResult(
        overall={name: reduced([one.overall[name] for one in of_seeds]).item() for name in scores.SCORES},
        by_value={name: reduced([one.by_value[name] for one in of_seeds]).tolist() for name in scores.SCORES},
        gap={name: reduced([one.gap[name] for one in of_seeds]).item() for name in scores.SCORES},
    )
