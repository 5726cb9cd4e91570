"""From the predictions of every method at every seed to results."""

import warnings
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from aimfair.base.seeds import generator
from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.evaluation import fairness, intervals, over_seeds
from aimfair.evaluation.audit import audit, cautions, partitions
from aimfair.evaluation.counts import Integers
from aimfair.evaluation.logits import Logits
from aimfair.evaluation.results import Difference, MethodResult, Results, ScoreResult, SeedResult
from aimfair.methods.method_settings import BIASED

Values = npt.NDArray[np.float64]


def compare(
    config: Config,
    splits: Splits,
    predicted: Mapping[str, Sequence[Integers]],
    density: Mapping[str, Sequence[float]],
    logits: Mapping[str, Sequence[Logits]] | None = None,
    reads_groups: Collection[str] = (),
) -> Results:
    """Results of a run; ``splits.test`` is what was predicted.

    Args:
        predicted: method -> for each of ``config.seeds`` int64 [N], the predicted classes. "biased" is the first.
        density: method -> for each seed the selected share of the weights; none for those that select nothing.
        logits: the same methods -> for each seed float32 [N, C]; None: no metrics of probabilities.
        reads_groups: methods that read the protected attribute of real images in training.
    """
    shape = len(splits.protected_names), len(splits.target_names)
    test, settings = splits.test, config.evaluate
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fairness.UndefinedMetricWarning)  # the cautions say it
        tables = {
            name: over_seeds.tables(test.target, test.protected, of_seeds, shape[1], shape[0])
            for name, of_seeds in predicted.items()
        }
        replicates = over_seeds.replicates(
            test,
            test.protected,
            shape,
            predicted,
            settings.replicates,
            generator("evaluate", "bootstrap"),
        )
        methods = {
            name: _method(
                config,
                tables[name],
                replicates[name],
                over_seeds.score_results(
                    None if logits is None else logits[name], test.target, test.protected, shape[0], settings
                ),
                density=float(np.mean(density[name])) if name in density else None,
                reads_groups=name in reads_groups,
                versus={
                    other: over_seeds.difference(
                        tables[name],
                        tables[other],
                        replicates[name],
                        replicates[other],
                        settings.confidence,
                    )
                    for other in (BIASED, config.default_method)
                    if other != name
                },
            )
            for name in predicted
        }
    sizes = test.group_counts(shape[1], shape[0]).T
    attributes, intersections = (
        {name: audit(config, splits, partition, predicted, logits, kind, name) for name, partition in of_kind.items()}
        for kind, of_kind in zip(("attribute", "intersection"), partitions(config.data, splits), strict=True)
    )
    return Results(
        title=config.title,
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        seeds=config.seeds,
        default_method=config.default_method,
        confidence=settings.confidence,
        replicates=settings.replicates,
        small_group=settings.small_group,
        test_images=sizes.tolist(),
        cautions=cautions(splits.target_names, splits.protected_names, sizes, settings.small_group),
        methods=methods,
        bins=settings.bins,
        attributes=attributes,
        intersections=intersections,
    )


def _method(
    config: Config,
    counts: Integers,
    replicates: Mapping[str, Values],
    scores: Sequence[ScoreResult] | None,
    *,
    density: float | None,
    reads_groups: bool,
    versus: dict[str, dict[str, Difference]],
) -> MethodResult:
    """The result of a method from counts [A, Y, K, S] and the metrics [S, R] of their replicates."""
    confidence = config.evaluate.confidence
    overall, groups = fairness.overall(counts), fairness.by_group(counts)
    bounds = {
        metric: intervals.bias_corrected(values, overall[metric], confidence).tolist()
        for metric, values in replicates.items()
    }
    seeds = [
        SeedResult(
            seed=seed,
            counts=counts[..., s].tolist(),
            overall={metric: values[s].item() for metric, values in overall.items()},
            interval={metric: values[s] for metric, values in bounds.items()},
            by_group=groups[..., s].tolist(),
            worst_group=fairness.worst_group(counts[..., s]),
            scores=None if scores is None else scores[s],
        )
        for s, seed in enumerate(config.seeds)
    ]
    scores_mean, scores_std = over_seeds.score_spread(scores)
    return MethodResult(
        density=density,
        reads_groups=reads_groups,
        seeds=seeds,
        mean={metric: values.mean().item() for metric, values in overall.items()},
        std={metric: over_seeds.std(values).item() for metric, values in overall.items()},
        interval={
            metric: intervals.bias_corrected(values.mean(axis=0), overall[metric].mean(), confidence).tolist()
            for metric, values in replicates.items()
        },
        by_group=over_seeds.group_result(counts, confidence),
        # every seed sees the same test images, so the rates of the sums are the means of the rates
        of_mean_rates={metric: value.item() for metric, value in fairness.overall(counts.sum(axis=-1)).items()},
        versus=versus,
        scores_mean=scores_mean,
        scores_std=scores_std,
    )
