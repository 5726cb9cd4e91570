"""From the predictions of every method at every seed to :class:`aimfair.evaluation.results.Results`.

The test images are grouped by the protected attribute; by each further one; and by the protected one and each further.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from aimfair.base.errors import listed
from aimfair.base.seeds import generator
from aimfair.data.images import Splits
from aimfair.evaluation import metrics
from aimfair.evaluation.intervals import bias_corrected
from aimfair.evaluation.metrics import Integers
from aimfair.evaluation.over_seeds import Grouping
from aimfair.evaluation.predictions import Logits
from aimfair.evaluation.results import Audit, AuditMethod, MethodResult, Results, ScoreResult, SeedResult
from aimfair.evaluation.scores import measure
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.methods import BIASED

SEPARATOR = " · "

TIMES = " \N{MULTIPLICATION SIGN} "
"""Between the names of attributes that are crossed."""

_NAMED_ALONE = 4
"""More groups than this share one sentence."""


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


@dataclass(frozen=True)
class Partition:
    """The test images by the values of an attribute.

    Attributes:
        names: of the A values. values: int64 [N], the value of each image.
    """

    names: tuple[str, ...]
    values: Integers

    def __and__(self, other: "Partition") -> "Partition":
        """Every combination of a value of this and a value of the other."""
        names = tuple(SEPARATOR.join(pair) for pair in product(self.names, other.names))
        return Partition(names, self.values * len(other.names) + other.values)


def partitions(factors: Collection[str], splits: Splits) -> tuple[dict[str, Partition], dict[str, Partition]]:
    """By each further attribute of the test images, and by its intersection with the protected one.

    Args:
        factors: attributes that the protected one is made of; they are not crossed with it.

    Raises:
        ValueError: the images have other attributes than ``splits`` has names of values for.
    """
    if set(splits.attribute_names) != set(splits.test.attributes):
        raise ValueError(
            f"test images with the attributes {sorted(splits.test.attributes)},"
            f" names of values of {sorted(splits.attribute_names)}"
        )
    protected = Partition(splits.protected_names, splits.test.protected)
    alone = {name: Partition(names, splits.test.attributes[name]) for name, names in splits.attribute_names.items()}
    return alone, {name: protected & partition for name, partition in alone.items() if name not in factors}


@dataclass(frozen=True)
class _Models:
    """The models of an experiment, and what they say of the test images.

    Attributes:
        predicted, logits: as of :func:`compare`.
    """

    settings: EvaluateSettings
    splits: Splits
    predicted: Mapping[str, Sequence[Integers]]
    logits: Mapping[str, Sequence[Logits]] | None

    def grouped(self, by: Partition, *purpose: str, resampled: Collection[str] | None = None) -> Grouping:
        """
        Args:
            purpose: seeds the random numbers. resampled: as of :class:`Grouping`.
        """
        test, shape = self.splits.test, (len(by.names), len(self.splits.target_names))
        return Grouping(
            test.target, by.values, shape, self.predicted, clusters=test.clusters, resampled=resampled,
            confidence=self.settings.confidence, replicates=self.settings.replicates,
            generator=generator("evaluate", *purpose),
        )  # fmt: skip

    def scores(self, by: Partition, name: str) -> list[ScoreResult] | None:
        """Of one method at each seed; None without logits."""
        if self.logits is None:
            return None
        target, bins = self.splits.test.target, self.settings.bins
        return [measure(one, target, by.values, len(by.names), bins) for one in self.logits[name]]


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
    settings, default = experiment.settings, experiment.default_method
    models = _Models(settings, splits, predicted, logits)
    protected = Partition(splits.protected_names, splits.test.protected)
    grouping = models.grouped(protected, "bootstrap")
    methods = {}
    for name in predicted:
        scores = models.scores(protected, name)
        methods[name] = MethodResult(
            density=float(np.mean(density[name])) if name in density else None,
            reads_groups=name in reads_groups,
            seeds=_seeds(experiment.seeds, grouping, name, scores),
            interval=_intervals(grouping, name),
            **grouping.summary(name, (BIASED, default), scores),
        )
    attributes, intersections = (
        {name: _audit(models, default, by, kind, name) for name, by in of_kind.items()}
        for kind, of_kind in zip(("attribute", "intersection"), partitions(experiment.factors, splits), strict=True)
    )
    sizes = splits.test.group_counts(*splits.shape).T
    return Results(
        title=experiment.title,
        target_names=list(splits.target_names),
        protected_names=list(splits.protected_names),
        seeds=list(experiment.seeds),
        default_method=default,
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


def _audit(models: _Models, default: str, by: Partition, *purpose: str) -> Audit:
    """Results for the groups (y, value of ``by``).

    Only the default method is compared with the biased model; of the others there are no replicates.
    """
    grouping = models.grouped(by, "audit", *purpose, resampled=(BIASED, default))
    sizes = grouping.counts[BIASED][..., 0].sum(axis=2)
    return Audit(
        value_names=list(by.names),
        test_images=sizes.tolist(),
        cautions=cautions(models.splits.target_names, by.names, sizes, models.settings.small_group),
        methods={
            name: AuditMethod(
                worst_present_group=metrics.worst_present_group(grouping.total(name)),
                **grouping.summary(name, (BIASED,) if name == default else (), models.scores(by, name)),
            )
            for name in models.predicted
        },
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


def cautions(
    target_names: Sequence[str],
    value_names: Sequence[str],
    sizes: Integers,
    small_group: int,
    what: str = "test images",
) -> list[str]:
    """Sentences on the empty and the small groups.

    Args:
        sizes: int64 [A, Y], how many there are of ``what``.
    """
    names = {
        (a, y): f"{target}{SEPARATOR}{value}"
        for y, target in enumerate(target_names)
        for a, value in enumerate(value_names)
    }
    empty = [name for group, name in names.items() if sizes[group] == 0]
    small = {name: sizes[group] for group, name in names.items() if 0 < sizes[group] < small_group}
    if len(empty) > _NAMED_ALONE:
        sentences = [f"No {what} in {_many(empty, sizes)}: metrics that need them are undefined."]
    else:
        sentences = [f"No {what} in group {name}: metrics that need it are undefined." for name in empty]
    if len(small) > _NAMED_ALONE:
        found = _many([f"{name} ({size})" for name, size in small.items()], sizes)
        return [*sentences, f"Under {small_group} {what} in {found}: their results are uncertain."]
    return sentences + [
        f"Only {size} {what.removesuffix('s') if size == 1 else what} in group {name}: its results are uncertain."
        for name, size in small.items()
    ]


def _many(groups: Sequence[str], sizes: Integers) -> str:
    return f"{len(groups)} of {sizes.size} groups, {listed(groups, '; ')}"
