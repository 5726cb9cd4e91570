"""The results of every arm, read from the runs they are in, and what an ablation adds to their table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from aimfair.ablation.plan import Arm, Plan
from aimfair.base.errors import AimfairError
from aimfair.base.files import way_out
from aimfair.base.lines import read_record
from aimfair.base.seeds import generator
from aimfair.evaluation.over_seeds import Grouping
from aimfair.evaluation.predictions import Predictions
from aimfair.evaluation.results import Difference, MethodResult, Results
from aimfair.methods import BIASED
from aimfair.report import charts, wording
from aimfair.report.wording import Verdict, judge
from aimfair.training.history import HISTORY, History

METRICS = ("worst_group_accuracy", "eo_mean", "accuracy")

_VERDICTS = {
    "better": "clearly better:",
    "worse": "clearly worse:",
    "no clear change": "no clear difference:",
    "too few images": "too few test images to judge:",
    "undefined": "undefined:",
}


@dataclass(frozen=True)
class Outcome:
    """One arm.

    Attributes:
        result: over its seeds.
        validation_accuracy, validation_loss: of the kept epoch, mean over the seeds; independent of group labels.
        seconds: of one fine-tuning, mean over the seeds.
        versus: metric -> this arm minus the reference; None for the reference itself.
        versus_biased: metric -> this arm minus the biased model.
    """

    arm: Arm
    result: MethodResult
    validation_accuracy: float
    validation_loss: float
    seconds: float
    versus: Mapping[str, Difference] | None
    versus_biased: Mapping[str, Difference]

    @property
    def mean(self) -> dict[str, float]:
        return self.result.mean


@dataclass(frozen=True)
class Outcomes:
    """
    Attributes:
        biased: the model before any method.
        results: of the first run, for what all share: names of groups, confidence, seeds.
        folder: of the runs. clusters: as of :func:`difference`.
    """

    arms: list[Outcome]
    biased: MethodResult
    results: Results
    folder: Path = Path()
    clusters: Mapping[str, str] = field(default_factory=dict)

    def versus_at(self, one: Outcome, other: Outcome, confidence: float) -> Mapping[str, Difference]:
        """Metric -> ``one`` minus ``other`` with intervals of another confidence; raises as :func:`difference`."""
        results = self.results.model_copy(update={"confidence": confidence})
        mine, theirs = (
            Predictions.load(self.folder / arm.group, results.seeds, arm.method) for arm in (one.arm, other.arm)
        )
        return difference(mine, theirs, results, self.clusters)

    def verdict(self, outcome: Outcome, metric: str) -> Verdict:
        """Whether the arm is better than the reference, by the rule of the report."""
        return judge(metric, (outcome.versus or outcome.versus_biased)[metric], self.results.small_group)


def collect(plan: Plan, folder: Path, clusters: Mapping[str, str]) -> Outcomes:
    """Reads the finished runs ``folder/<group>``.

    Args:
        clusters: as of :func:`difference`.

    Raises:
        AimfairError: a file is missing or damaged.
    """
    results = {group: Results.load(folder / group / "results.json") for group in plan.groups}
    reference = next((arm for arm in plan.arms if arm.label == plan.reference), None)

    def versus(arm: Arm) -> Mapping[str, Difference] | None:
        if reference is None or arm is reference:
            return None
        own = results[arm.group].methods[arm.method].versus
        if arm.group == reference.group and reference.method in own:
            return own[reference.method]
        seeds = results[arm.group].seeds
        mine, other = (Predictions.load(folder / one.group, seeds, one.method) for one in (arm, reference))
        return difference(mine, other, results[arm.group], clusters)

    arms = []
    for arm in plan.arms:
        result = results[arm.group].methods[arm.method]
        histories = _histories(folder / arm.group, results[arm.group].seeds, arm.method)
        kept = [history.epochs[history.kept_epoch - 1] for history in histories]
        arms.append(
            Outcome(
                arm,
                result,
                validation_accuracy=float(np.mean([epoch.validation_accuracy for epoch in kept])),
                validation_loss=float(np.mean([epoch.validation_loss for epoch in kept])),
                seconds=float(np.mean([sum(epoch.seconds for epoch in history.epochs) for history in histories])),
                versus=versus(arm),
                versus_biased=result.versus[BIASED],
            )
        )
    first = results[plan.arms[0].group]
    return Outcomes(arms, first.methods[BIASED], first, folder, clusters)


def _histories(run: Path, seeds: Sequence[int], method: str) -> list[History]:
    paths = [run / "seeds" / str(seed) / "finetuned" / method / HISTORY for seed in seeds]
    return [read_record(path, History, way_out(path, f"run: aimfair finetune --run {run}")) for path in paths]


def difference(
    mine: Predictions, other: Predictions, results: Results, clusters: Mapping[str, str]
) -> dict[str, Difference]:
    """Metric -> ``mine`` minus ``other``, methods of two runs, paired by seed and by image.

    Args:
        results: of either run, for the names of the groups and the settings of the intervals.
        clusters: id -> cluster of the test images, see :class:`aimfair.evaluation.intervals.PairedPredictions`; images
            without one are clustered by id.

    Raises:
        AimfairError: they are not of the same images.
    """
    if mine.ids != other.ids:
        raise AimfairError("the runs of this ablation have different test images; repeat it with --overwrite")
    grouping = Grouping(
        mine.target,
        mine.protected,
        (len(results.protected_names), len(results.target_names)),
        {"mine": list(mine.predicted), "other": list(other.predicted)},
        clusters=[clusters.get(image, image) for image in mine.ids],
        confidence=results.confidence,
        replicates=results.replicates,
        generator=generator("evaluate", "bootstrap"),
    )
    return grouping.difference("mine", "other")


# -- findings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    title: str
    caption: str
    chart: Markup


@dataclass(frozen=True)
class Heat:
    """A table of values coloured by size.

    Attributes:
        cells: [rows][columns] of (string, shade in [0, 1]); None: no such arm.
    """

    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[tuple[str, float] | None]]


@dataclass(frozen=True)
class Findings:
    """
    Attributes:
        sentences: the conclusions that the intervals support.
        columns: further column of the table -> label of the arm -> cell.
        data: further entries of the JSON file.
    """

    figures: Sequence[Figure]
    sentences: Sequence[str]
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    heats: Sequence[Heat] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


def sweep(outcomes: Outcomes, x_name: str, x_format: Callable[[float], str]) -> Findings:
    """A curve of each metric over the ``x`` of the arms."""
    figures = []
    for metric in METRICS:
        points = [
            charts.Point(one.arm.x or 0.0, one.mean[metric], "", "after", *one.result.interval[metric])
            for one in outcomes.arms
        ]
        chart = charts.scatter(
            points, x_name=x_name, y_name=wording.lower_label(metric), joined=range(len(points)), x_format=x_format,
            log_x=True,
        )  # fmt: skip
        caption = "Mean over the seeds; bars are intervals over the test images."
        figures.append(Figure(wording.LABELS[metric], caption, chart))
    return Findings(figures, versus_reference(outcomes, METRICS[:2]))


def versus_reference(outcomes: Outcomes, metrics: Sequence[str]) -> list[str]:
    """For each metric a sentence on which arms are clearly better or worse than the reference."""
    reference = next((one for one in outcomes.arms if one.versus is None), None)
    others = [one for one in outcomes.arms if one is not reference]
    name = reference.arm.label if reference is not None else "the biased model"
    return [_sentence(outcomes, others, name, metric) for metric in metrics] if others else []


def _sentence(outcomes: Outcomes, others: Sequence[Outcome], reference: str, metric: str) -> str:
    parts = []
    for verdict, words in _VERDICTS.items():
        labels = [f"“{one.arm.label}”" for one in others if outcomes.verdict(one, metric) == verdict]
        if labels:
            parts.append(f"{words} {wording.listing(labels)}")
    return f"{wording.LABELS[metric]} compared with {reference}: {'; '.join(parts)}."
