"""What an ablation adds to the table of its arms: figures, sentences, columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from aimfair.ablation.outcomes import Outcome, Outcomes
from aimfair.report import charts, wording

METRICS = ("worst_group_accuracy", "eo_mean", "accuracy")

_VERDICTS = {
    "better": "clearly better:",
    "worse": "clearly worse:",
    "no clear change": "no clear difference:",
    "too few images": "too few test images to judge:",
    "undefined": "undefined:",
}


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
