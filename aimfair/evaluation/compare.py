"""From the predictions of every method at every seed to :class:`aimfair.evaluation.results.Results`."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aimfair.base.seeds import generator
from aimfair.data.images import Splits
from aimfair.evaluation import metrics
from aimfair.evaluation.audit import Partition, audit, cautions, partitions
from aimfair.evaluation.intervals import bias_corrected
from aimfair.evaluation.metrics import Integers
from aimfair.evaluation.over_seeds import Grouping
from aimfair.evaluation.predictions import Logits
from aimfair.evaluation.results import MethodResult, Results, ScoreResult, SeedResult
from aimfair.evaluation.scores import measure
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.methods import BIASED


@dataclass(frozen=True)
class Experiment:
    """
    Attributes:
        seeds: of the models, in the order of the predictions.
        default_method: the one every other method is compared with.
        factors: attributes that the protected one is made of, itself if of one.
    """

    title: str
    seeds: Sequence[int]
    default_method: str
    factors: Collection[str]
    settings: EvaluateSettings


def compare(
    experiment: Experiment,
    splits: Splits,
    predicted: Mapping[str, Sequence[Integers]],
    density: Mapping[str, Sequence[float]],
    logits: Mapping[str, Sequence[Logits]] | None = None,
    reads_groups: Collection[str] = (),
) -> Results:
    """Results of a run on ``splits.test``.

    Args:
        predicted: method -> for each seed int64 [N], the predicted classes. "biased" comes first.
        density: method -> for each seed the selected share of the weights; without methods that select nothing.
        logits: the same methods -> for each seed float32 [N, C]; None: no scores.
        reads_groups: methods whose training reads the protected attribute of real images.
    """
    settings, test = experiment.settings, splits.test
    protected = Partition(splits.protected_names, test.protected)
    shape = len(protected.names), len(splits.target_names)
    grouping = Grouping(
        test.target, test.protected, shape, predicted, clusters=test.clusters, confidence=settings.confidence,
        replicates=settings.replicates, generator=generator("evaluate", "bootstrap"),
    )  # fmt: skip
    methods = {}
    for name in predicted:
        scores = None
        if logits is not None:
            scores = [measure(one, test.target, test.protected, shape[0], settings.bins) for one in logits[name]]
        methods[name] = MethodResult(
            density=float(np.mean(density[name])) if name in density else None,
            reads_groups=name in reads_groups,
            seeds=_seeds(experiment.seeds, grouping, name, scores),
            interval=_intervals(grouping, name),
            # every seed sees the same test images, so the rates of the sums are the means of the rates
            of_mean_rates={
                metric: value.item() for metric, value in metrics.overall(grouping.counts[name].sum(axis=-1)).items()
            },
            **grouping.summary(name, (BIASED, experiment.default_method), scores),
        )
    sizes = test.group_counts(shape[1], shape[0]).T
    attributes, intersections = (
        {
            name: audit(settings, experiment.default_method, splits, partition, predicted, logits, kind, name)
            for name, partition in of_kind.items()
        }
        for kind, of_kind in zip(("attribute", "intersection"), partitions(experiment.factors, splits), strict=True)
    )
    return Results(
        title=experiment.title,
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        seeds=list(experiment.seeds),
        default_method=experiment.default_method,
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


def _intervals(grouping: Grouping, name: str) -> dict[str, tuple[float, float]]:
    """Metric -> interval of the mean over the seeds."""
    overall = metrics.overall(grouping.counts[name])
    return {
        metric: tuple(bias_corrected(values.mean(axis=0), overall[metric].mean(), grouping.confidence).tolist())
        for metric, values in grouping.replicates[name].items()
    }


def _seeds(
    seeds: Sequence[int], grouping: Grouping, name: str, scores: Sequence[ScoreResult] | None
) -> list[SeedResult]:
    counts = grouping.counts[name]
    overall, groups = metrics.overall(counts), metrics.by_group(counts)
    bounds = {
        metric: bias_corrected(values, overall[metric], grouping.confidence).tolist()
        for metric, values in grouping.replicates[name].items()
    }
    return [
        SeedResult(
            seed=seed,
            counts=counts[..., s].tolist(),
            overall={metric: values[s].item() for metric, values in overall.items()},
            interval={metric: values[s] for metric, values in bounds.items()},
            by_group=groups[..., s].tolist(),
            worst_group=metrics.worst_group(counts[..., s]),
            scores=None if scores is None else scores[s],
        )
        for s, seed in enumerate(seeds)
    ]
