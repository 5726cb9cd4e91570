"""Figures of arms along one number."""

from collections.abc import Callable

from aimfair.ablation import charts
from aimfair.ablation.findings import Figure, Findings
from aimfair.ablation.outcomes import Outcome, Outcomes
from aimfair.report import wording

METRICS = ("worst_group_accuracy", "eo_mean", "accuracy")


def findings(outcomes: Outcomes, x_name: str, x_format: Callable[[float], str]) -> Findings:
    """A curve of each metric, and what may be said of the ends."""
    figures = []
    for metric in METRICS:
        points = [
            charts.Point(one.arm.x or 0.0, one.mean[metric], "", "after", *one.result.interval[metric])
            for one in outcomes.arms
        ]
        figures.append(
            Figure(
                wording.LABELS[metric],
                "Mean over the seeds; bars are intervals over the test images.",
                charts.scatter(
                    points,
                    x_name=x_name,
                    y_name=charts.axis_name(metric),
                    joined=range(len(points)),
                    x_format=x_format,
                    log_x=True,
                ),
            )
        )
    return Findings(figures, beside_reference(outcomes, METRICS[:2]))


def beside_reference(outcomes: Outcomes, metrics: tuple[str, ...]) -> list[str]:
    """For each metric, which arms are clearly better or worse than the reference."""
    reference = next((one for one in outcomes.arms if one.versus is None), None)
    others = [one for one in outcomes.arms if one is not reference]
    name = reference.arm.label if reference is not None else "the biased model"
    return [_sentence(outcomes, others, name, metric) for metric in metrics] if others else []


def _sentence(outcomes: Outcomes, others: list[Outcome], reference: str, metric: str) -> str:
    said = []
    for verdict, words in _WORDS.items():
        if labels := [one.arm.label for one in others if outcomes.verdict(one, metric) == verdict]:
            said.append(f"{words} {_quoted(labels)}")
    return f"{wording.LABELS[metric]} beside {reference}: {'; '.join(said)}."


def _quoted(labels: list[str]) -> str:
    return wording.listing(
        [f"\N{LEFT DOUBLE QUOTATION MARK}{label}\N{RIGHT DOUBLE QUOTATION MARK}" for label in labels]
    )


_WORDS = {
    "better": "clearly better is",
    "worse": "clearly worse is",
    "no clear change": "no clear difference in",
    "too few images": "too few test images to judge",
    "undefined": "undefined in",
}
