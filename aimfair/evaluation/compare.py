"""From the predictions of every method at every seed to results."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from aimfair.config import BIASED, Config
from aimfair.data.images import Splits
from aimfair.evaluation import fairness, intervals
from aimfair.evaluation.counts import Integers, PairedPredictions, count_predictions
from aimfair.evaluation.results import Difference, GroupResult, MethodResult, Results, SeedResult
from aimfair.seeds import generator

Values = npt.NDArray[np.float64]


def compare(
    config: Config,
    splits: Splits,
    predicted: Mapping[str, Sequence[Integers]],
    density: Mapping[str, Sequence[float]],
) -> Results:
    """Results of a run; ``splits.test`` is what was predicted.

    Args:
        predicted: method -> for each of ``config.seeds`` int64 [N], the predicted classes. "biased" is the first.
        density: method -> for each seed the selected share of the weights; none for "biased".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fairness.UndefinedMetricWarning)  # the cautions say it
        tables = _tables(splits, predicted)
        replicates = _replicates(config, splits, predicted)
        methods = {
            name: _over_seeds(
                config,
                tables[name],
                replicates[name],
                density=float(np.mean(density[name])) if name in density else None,
                versus={
                    other: _difference(config, tables[name], tables[other], replicates[name], replicates[other])
                    for other in (BIASED, config.default_method)
                    if other != name
                },
            )
            for name in predicted
        }
    sizes = splits.test.group_counts(len(splits.target_names), len(splits.protected_names)).T
    return Results(
        title=config.title,
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        seeds=config.seeds,
        default_method=config.default_method,
        confidence=config.evaluate.confidence,
        replicates=config.evaluate.replicates,
        small_group=config.evaluate.small_group,
        test_images=sizes.tolist(),
        cautions=_cautions(splits, sizes, config.evaluate.small_group),
        methods=methods,
    )


def _tables(splits: Splits, predicted: Mapping[str, Sequence[Integers]]) -> dict[str, Integers]:
    """Method -> counts [A, Y, K, S]."""
    test, targets, protected_values = splits.test, len(splits.target_names), len(splits.protected_names)
    return {
        name: np.stack(
            [count_predictions(test.target, test.protected, one, targets, protected_values) for one in of_seeds],
            axis=-1,
        )
        for name, of_seeds in predicted.items()
    }


def _replicates(
    config: Config, splits: Splits, predicted: Mapping[str, Sequence[Integers]]
) -> dict[str, dict[str, Values]]:
    """Method -> metric -> [S, R], every method and seed on the same resampled test images."""
    models = np.stack([one for of_seeds in predicted.values() for one in of_seeds])
    paired = PairedPredictions.of(
        splits.test.target,
        splits.test.protected,
        models,
        len(splits.target_names),
        len(splits.protected_names),
        splits.test.ids,
    )
    resampled = intervals.resample(paired, config.evaluate.replicates, generator("evaluate", "bootstrap"))
    chunks = [fairness.overall(counts) for counts in resampled]
    whole = {metric: np.concatenate([chunk[metric] for chunk in chunks], axis=-1) for metric in fairness.METRICS}
    seeds = len(config.seeds)
    return {
        name: {metric: values[m * seeds : (m + 1) * seeds] for metric, values in whole.items()}
        for m, name in enumerate(predicted)
    }


def _over_seeds(
    config: Config,
    counts: Integers,
    replicates: Mapping[str, Values],
    *,
    density: float | None,
    versus: dict[str, dict[str, Difference]],
) -> MethodResult:
    """The result of a method from counts [A, Y, K, S] and the metrics [S, R] of their replicates."""
    confidence = config.evaluate.confidence
    overall, groups = fairness.overall(counts), fairness.by_group(counts)
    sizes = counts.sum(axis=2)[..., 0]
    bounds = {metric: intervals.percentile(values, confidence).tolist() for metric, values in replicates.items()}
    seeds = [
        SeedResult(
            seed=seed,
            counts=counts[..., s].tolist(),
            overall={metric: values[s].item() for metric, values in overall.items()},
            interval={metric: values[s] for metric, values in bounds.items()},
            by_group=groups[..., s].tolist(),
            worst_group=fairness.worst_group(counts[..., s]),
        )
        for s, seed in enumerate(config.seeds)
    ]
    return MethodResult(
        density=density,
        seeds=seeds,
        mean={metric: values.mean().item() for metric, values in overall.items()},
        std={metric: _std(values).item() for metric, values in overall.items()},
        interval={
            metric: intervals.percentile(values.mean(axis=0), confidence).tolist()
            for metric, values in replicates.items()
        },
        by_group=GroupResult(
            mean=groups.mean(axis=-1).tolist(),
            std=_std(groups).tolist(),
            interval=intervals.wilson(groups.mean(axis=-1) * sizes, sizes, confidence).tolist(),
        ),
        # every seed sees the same test images, so the rates of the sums are the means of the rates
        of_mean_rates={metric: value.item() for metric, value in fairness.overall(counts.sum(axis=-1)).items()},
        versus=versus,
    )


def _difference(
    config: Config,
    mine: Integers,
    other: Integers,
    my_replicates: Mapping[str, Values],
    other_replicates: Mapping[str, Values],
) -> dict[str, Difference]:
    """Metric -> the first method minus the second; the arguments as in :func:`_over_seeds`."""
    confidence = config.evaluate.confidence
    differences = {}
    for metric, function in fairness.METRICS.items():
        per_seed = function(mine) - function(other)
        resampled = (my_replicates[metric] - other_replicates[metric]).mean(axis=0)
        differences[metric] = Difference(
            mean=per_seed.mean().item(),
            over_images=intervals.percentile(resampled, confidence).tolist(),
            over_seeds=intervals.student_t(per_seed, confidence).tolist(),
        )
    return differences


def _cautions(splits: Splits, sizes: Integers, small_group: int) -> list[str]:
    cautions = []
    for a, y in np.ndindex(sizes.shape):
        group = f"{splits.target_names[y]} · {splits.protected_names[a]}"
        if sizes[a, y] == 0:
            cautions.append(f"No test images of the group {group}: every metric that needs it is undefined.")
        elif sizes[a, y] < small_group:
            cautions.append(f"Only {sizes[a, y]} test images of the group {group}: what is said of it is uncertain.")
    return cautions


def _std(values: Values) -> Values:
    """Over the last axis, ddof 1; NaN for one value."""
    return values.std(axis=-1, ddof=1) if values.shape[-1] > 1 else np.full(values.shape[:-1], np.nan)
