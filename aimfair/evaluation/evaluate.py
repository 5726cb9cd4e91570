"""``aimfair.evaluate``: fairness of anybody's predictions, with intervals, without a run of aimfair.

Names of metrics are those of fairlearn where it has them. Shapes: N rows, Y = K classes, A values of an attribute,
M models, R bootstrap replicates.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import write_text
from aimfair.base.seeds import generator
from aimfair.base.settings import Record
from aimfair.evaluation import intervals, metrics
from aimfair.evaluation.arguments import Rows, by_name, crossed, partition
from aimfair.evaluation.compare import TIMES, Partition, cautions
from aimfair.evaluation.metrics import Counts, Integers, Values
from aimfair.evaluation.results import Difference, Interval, Number, ScoreResult
from aimfair.evaluation.scores import measure
from aimfair.evaluation.settings import EvaluateSettings
from aimfair.selective.choices import as_int

NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "worst_group_accuracy": "worst_group_accuracy",
    "worst_present_group_accuracy": "worst_present_group_accuracy",
    "group_accuracy_std": "group_std",
    "demographic_parity_difference": "demographic_parity",
    "demographic_parity_ratio": "demographic_parity_ratio",
    "equal_opportunity_difference": "equal_opportunity",
    "equalized_odds_difference": "eo_max",
    "equalized_odds_mean_difference": "eo_mean",
    "equalized_odds_ratio": "eo_ratio",
}
"""Metric -> its name in :data:`aimfair.evaluation.metrics.FUNCTIONS`. fairlearn's ``agg="mean"`` of the odds has a name
of its own, and its groups are the values of an attribute, where ours are those of a class."""


class Estimate(Record):
    """
    Attributes:
        interval: of rates Wilson's; of metrics the bias-corrected bootstrap's, which draws rows or clusters.
        rows: behind a rate; behind a metric the fewest, see :func:`aimfair.evaluation.metrics.support`; None where it
            depends on no single group.
    """

    value: Number
    interval: Interval
    rows: int | None


class ModelEvaluation(Record):
    """One model, in the groups of one attribute.

    Attributes:
        confusion: ``[A][Y][K]``, rows of (value, class) predicted as k.
        metrics: name of :data:`NAMES` -> estimate.
        by_group: value -> rate -> estimate. Of two classes: accuracy, selection_rate, true_positive_rate and
            false_positive_rate of the positive one; of more: accuracy, and ``recall of CLASS`` and ``selection_rate of
            CLASS`` of each.
        worst_group: (class, value) of the lowest accuracy among the groups with rows.
        scores: None without probabilities.
        versus: other model -> metric -> this model minus the other, on the same rows. ``over_seeds`` is undefined.
    """

    confusion: list[list[list[int]]]
    metrics: dict[str, Estimate]
    by_group: dict[str, dict[str, Estimate]]
    worst_group: tuple[str, str] | None
    scores: ScoreResult | None
    versus: dict[str, dict[str, Difference]]


class AttributeEvaluation(Record):
    """The rows grouped by one attribute, or by two that are crossed.

    Attributes:
        rows: ``[A][Y]``.
        cautions: sentences on rows without a value, and on empty and small groups.
    """

    values: list[str]
    rows: list[list[int]]
    cautions: list[str]
    models: dict[str, ModelEvaluation]

    @property
    def empty(self) -> int:
        """How many groups have no rows."""
        return sum(size == 0 for sizes in self.rows for size in sizes)


class Evaluation(Record):
    """What :func:`evaluate` returns. Undefined numbers are NaN, null in JSON.

    Attributes:
        rows: N.
        classes: in the order of all arrays.
        positive: of two classes the one that rates are of.
        models: in the order given; the others are compared with the first.
        confidence: of every interval. replicates: of the bootstrap. small_group: smaller groups get a caution.
        attributes: name, or two joined by :data:`aimfair.evaluation.compare.TIMES`, -> its evaluation.
    """

    rows: int
    classes: list[str]
    positive: str | None
    models: list[str]
    confidence: float
    replicates: int
    small_group: int
    bins: int
    attributes: dict[str, AttributeEvaluation]

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_text(path, self.model_dump_json(indent=1) + "\n")


def evaluate(
    predictions: Any,
    labels: Any,
    groups: Any,
    *,
    probabilities: Any = None,
    classes: Sequence[Any] | None = None,
    positive: Any = None,
    clusters: Any = None,
    intersections: bool = True,
    confidence: float = 0.95,
    replicates: int = 10_000,
    small_group: int = 30,
    bins: int = 15,
) -> Evaluation:
    """Accuracy and fairness of predictions, by each attribute and each pair of them, with intervals and cautions.

    Values may be strings, integers or booleans, in lists, arrays, tensors or columns of a data frame. The same input
    gives the same numbers.

    Args:
        predictions: [N] predicted classes, or model -> [N] to compare several; None: the most probable.
        labels: [N] true classes.
        groups: attribute -> [N], as a mapping or a data frame, or [N] of a single one. Rows where a value is missing
            (None, NaN or empty) are left out of what this attribute is in, which a caution says.
        probabilities: [N] of the positive class, or [N, K] in the order of the classes, for ranking and calibration; of
            one model or of several, as ``predictions``. Sums of rounded ones, within 0.02 of 1, are rescaled.
        classes: in order; None: those that the labels hold, sorted.
        positive: of two classes the one that rates are of; None: the last.
        clusters: [N], equal for rows that belong together, such as those of one patient; None: rows are independent.
        intersections: whether attributes are also crossed, by twos.
        confidence: of the intervals, in (0.5, 1).
        replicates: of the bootstrap, 100 to 1,000,000.
        small_group: groups with fewer rows get a caution.
        bins: of confidence, for the calibration error.

    Raises:
        AimfairError: values are missing, unknown or of another length, in words that name argument and row.
    """
    settings = _settings(confidence=confidence, replicates=replicates, small_group=small_group, bins=bins)
    data = Rows.of(labels, predictions, probabilities, classes, positive, clusters)
    named = by_name("groups", groups, "group")
    if not named:
        raise AimfairError("groups is empty, expected at least one attribute")
    alone = {name: partition(f"groups[{name!r}]", values, data.count) for name, values in named.items()}
    pairs = {
        TIMES.join(pair): crossed(*(alone[name] for name in pair)) for pair in combinations(alone, 2) if intersections
    }
    if both := alone.keys() & pairs.keys():
        raise AimfairError(
            f"groups: {min(both)!r} is also the name of a crossing; rename it, or do without (intersections=False)"
        )
    return Evaluation(
        rows=data.count,
        classes=list(data.classes),
        positive=data.classes[1] if len(data.classes) == 2 else None,
        models=list(data.predicted),
        confidence=settings.confidence,
        replicates=settings.replicates,
        small_group=settings.small_group,
        bins=settings.bins,
        attributes={name: _grouped(name, by, data, settings) for name, by in (alone | pairs).items()},
    )


def _settings(**given: Any) -> EvaluateSettings:
    """With the limits of a run's; integers may be of any type."""
    try:
        return EvaluateSettings.model_validate({name: as_int(value) for name, value in given.items()}, strict=True)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        expected = fault["msg"].removeprefix("Input should be ")
        raise AimfairError(f"{fault['loc'][0]}={fault['input']!r}: expected {expected}") from None


def _grouped(name: str, by: Partition, data: Rows, settings: EvaluateSettings) -> AttributeEvaluation:
    known = by.values >= 0
    if not known.any():
        raise AimfairError(
            f"groups: no row has a value of {name}: leave an attribute out, or do not cross them (intersections=False,"
            " --no-intersections)"
        )
    target, values = data.target[known], by.values[known]
    shape = len(by.names), len(data.classes)
    predicted = np.stack([one[known] for one in data.predicted.values()])
    counts = np.stack([metrics.count_predictions(target, values, one, *shape[::-1]) for one in predicted], axis=-1)
    clusters = None if data.clusters is None else [one for one, has in zip(data.clusters, known, strict=True) if has]
    paired = intervals.PairedPredictions.of(target, values, predicted, *shape[::-1], clusters)
    functions = {metric: metrics.FUNCTIONS[ours] for metric, ours in NAMES.items()}
    replicates = intervals.replicated(paired, functions, settings.replicates, generator("evaluate", name))
    sizes = counts[..., 0].sum(axis=2)
    scores = {
        model: measure(np.log(np.maximum(shares[known], 1e-300)), target, values, shape[0], settings.bins)
        for model, shares in data.probabilities.items()
    }
    left_out = int((~known).sum())
    sentences = (
        [f"{left_out:,} of {data.count:,} rows have no value of {name} and are left out here."] if left_out else []
    )
    models = list(data.predicted)
    return AttributeEvaluation(
        values=list(by.names),
        rows=sizes.tolist(),
        cautions=sentences + cautions(data.classes, by.names, sizes, settings.small_group, "rows"),
        models={
            model: ModelEvaluation(
                confusion=counts[..., m].tolist(),
                metrics=_metrics(counts[..., m], {name: of[m] for name, of in replicates.items()}, settings.confidence),
                by_group=dict(_by_group(counts[..., m], by.names, data.classes, settings.confidence)),
                worst_group=_worst_group(counts[..., m], by.names, data.classes),
                scores=scores.get(model),
                versus={models[0]: _versus(counts, replicates, m, settings.confidence)} if m else {},
            )
            for m, model in enumerate(models)
        },
    )


def _metrics(counts: Integers, replicates: Mapping[str, Values], confidence: float) -> dict[str, Estimate]:
    found = {}
    for metric, ours in NAMES.items():
        value = metrics.FUNCTIONS[ours](counts).item()
        interval = intervals.bias_corrected(replicates[metric], value, confidence).tolist()
        found[metric] = Estimate(value=value, interval=interval, rows=metrics.support(ours, counts))
    return found


def _by_group(
    counts: Integers, values: Sequence[str], classes: Sequence[str], confidence: float
) -> Iterator[tuple[str, dict[str, Estimate]]]:
    for a, value in enumerate(values):
        table = counts[a]  # [Y, K]
        rows, selected, everything = table.sum(axis=1), table.sum(axis=0), table.sum()
        parts = {"accuracy": (np.trace(table), everything)}
        if len(classes) == 2:
            parts["selection_rate"] = selected[1], everything
            parts["true_positive_rate"] = table[1, 1], rows[1]
            parts["false_positive_rate"] = table[0, 1], rows[0]
        else:
            parts |= {f"recall of {name}": (table[y, y], rows[y]) for y, name in enumerate(classes)}
            parts |= {f"selection_rate of {name}": (selected[y], everything) for y, name in enumerate(classes)}
        yield value, {rate: _rate(int(part), int(whole), confidence) for rate, (part, whole) in parts.items()}


def _rate(part: int, whole: int, confidence: float) -> Estimate:
    value = part / whole if whole else math.nan
    return Estimate(value=value, interval=intervals.wilson(part, whole, confidence).tolist(), rows=whole)


def _worst_group(counts: Integers, values: Sequence[str], classes: Sequence[str]) -> tuple[str, str] | None:
    found = metrics.worst_present_group(counts)
    return None if found is None else (classes[found[0]], values[found[1]])


def _versus(counts: Counts, replicates: Mapping[str, Values], m: int, confidence: float) -> dict[str, Difference]:
    """Metric -> model m minus the first."""
    found = {}
    for metric, ours in NAMES.items():
        first, own = (metrics.FUNCTIONS[ours](counts[..., one]).item() for one in (0, m))
        apart = intervals.percentile(replicates[metric][m] - replicates[metric][0], confidence)
        found[metric] = Difference(
            mean=own - first,
            over_images=apart.tolist(),
            over_seeds=(math.nan, math.nan),
            support=metrics.support(ours, counts[..., [0, m]]),
        )
    return found
