"""How varied the prompts are: charts, and ranges over the groups."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from aimfair.prompts.diversity import Attribute, Diversity, Wording
from aimfair.report import charts, wording

_MOST_VALUES = 12
"""Of a contextual attribute that are shown; a language model can find thousands."""

MEASURES = {
    "distinct_1": ("Distinct words", "Different words, of all words in a group. More is more varied."),
    "distinct_2": ("Distinct word pairs", "The same of neighbouring words, which tell phrases from each other."),
    "similarity": ("Similarity", "Words that two prompts of a group share, of the words of both. Less is more varied."),
}
"""Field of Wording -> its name, and what it means."""


@dataclass(frozen=True)
class Measure:
    """One of MEASURES, of plain and of contextual prompts; texts are the mean over the groups and their range."""

    name: str
    meaning: str
    plain: str
    plain_range: str
    contextual: str
    contextual_range: str
    chart: Markup


@dataclass(frozen=True)
class Row:
    """One contextual attribute.

    Attributes:
        counts: for the groups in their order, "7 of 7" values of the settings, or how many different values.
        shown: value -> prompts with it, of each group, the most frequent first; left_out: how many more values.
        chart: for each group the shares of the values, those left out together.
    """

    attribute: Attribute
    counts: Sequence[str]
    evenness: str
    shown: Sequence[tuple[str, Sequence[int]]]
    left_out: int
    chart: Markup


@dataclass(frozen=True)
class Section:
    """
    Attributes:
        fixed: whether only values of the settings are used.
        alike: whether all groups have the same contexts equally often.
        sampled: how many prompts similarity is of, where that is not all.
    """

    diversity: Diversity
    fixed: bool
    alike: bool
    sampled: int | None
    measures: Sequence[Measure]
    axis: Markup
    rows: Sequence[Row]


def section(diversity: Diversity) -> Section:
    scale = charts.scale_for([0.0])
    fixed = diversity.provider == "grammar"
    return Section(
        diversity=diversity,
        fixed=fixed,
        alike=all(attribute.difference == 0 for attribute in diversity.attributes),
        sampled=next((one.compared for one in diversity.contextual if one.compared < one.prompts), None),
        measures=[_measure(diversity, field, scale) for field in MEASURES],
        axis=charts.axis(scale),
        rows=[_row(attribute, diversity.contextual, fixed) for attribute in diversity.attributes],
    )


def _measure(diversity: Diversity, field: str, scale: charts.Scale) -> Measure:
    plain, contextual = (
        _mark([value for one in groups if (value := getattr(one, field)) is not None], kind)
        for groups, kind in ((diversity.plain, "before"), (diversity.contextual, "after"))
    )
    return Measure(
        *MEASURES[field],
        wording.percent(plain.value),
        _range(plain),
        wording.percent(contextual.value),
        _range(contextual),
        charts.dots_with_intervals([plain, contextual], scale),
    )


def _mark(values: Sequence[float], kind: str) -> charts.Mark:
    """The mean, from the least to the greatest; NaN without any."""
    return charts.Mark(
        float(np.mean(values)) if values else math.nan,
        min(values, default=math.nan),
        max(values, default=math.nan),
        kind,
    )


def _range(mark: charts.Mark) -> str:
    """Nothing where all are equal."""
    return wording.percents((mark.low, mark.high)) if mark.low < mark.high else ""


def _row(attribute: Attribute, groups: Sequence[Wording], fixed: bool) -> Row:
    together: dict[str, int] = {}
    for group in attribute.groups:
        for value, n in group.values.items():
            together[value] = together.get(value, 0) + n
    values = sorted(together, key=lambda value: (-together[value], value))
    most, rest = values[:_MOST_VALUES], values[_MOST_VALUES:]
    sized = list(zip(attribute.groups, groups, strict=True))
    shares = [[of.values.get(value, 0) / group.prompts for value in most] for of, group in sized]
    others = [sum(of.values.get(value, 0) for value in rest) / group.prompts for of, group in sized]
    even = [group.evenness for group in attribute.groups if group.evenness is not None]
    return Row(
        attribute,
        [
            f"{round(group.coverage * attribute.values)} of {attribute.values}" if fixed else f"{len(group.values):,}"
            for group in attribute.groups
        ],
        wording.percent(min(even, default=math.nan)),
        [(value, [group.values.get(value, 0) for group in attribute.groups]) for value in most],
        len(rest),
        charts.stacks(shares, others),
    )
