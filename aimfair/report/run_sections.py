"""Sections of the report on what led to the results: prompts, generation, masks, training."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aimfair.base.progress import duration
from aimfair.evaluation.intervals import wilson
from aimfair.generation.shown import Confusion, merged
from aimfair.generation.summary import GenerationSummary, GroupSummary, Speed
from aimfair.methods import BIASED
from aimfair.prompts.diversity import Attribute, Diversity, Wording
from aimfair.report import charts, wording
from aimfair.selective.mask import ParameterMask
from aimfair.selective.summary import Share
from aimfair.training.history import History

# -- prompts -----------------------------------------------------------------------------------------------------------

_MOST_VALUES = 12
"""Values shown of a contextual attribute; a language model can find thousands."""

MEASURES = {
    "distinct_1": ("Distinct words", "Different words over all words in a group. More is more varied."),
    "distinct_2": ("Distinct word pairs", "The same for pairs of neighbouring words. More is more varied."),
    "similarity": (
        "Similarity",
        "Words common to two prompts of a group over the words of either. Less is more varied.",
    ),
}
"""Field of Wording -> its name, and what it means."""


def prompts_section(diversity: Diversity) -> dict[str, Any]:
    scale = charts.scale_for([0.0])
    fixed = diversity.provider == "grammar"
    return {
        "diversity": diversity,
        "fixed": fixed,  # whether only values of the settings are used
        "alike": all(attribute.difference == 0 for attribute in diversity.attributes),
        "sampled": next((one.compared for one in diversity.contextual if one.compared < one.prompts), None),
        "measures": [_measure(diversity, field, scale) for field in MEASURES],
        "axis": charts.axis(scale),
        "rows": [_attribute_row(attribute, diversity.contextual, fixed) for attribute in diversity.attributes],
    }


def _measure(diversity: Diversity, field: str, scale: charts.Scale) -> dict[str, Any]:
    """One of MEASURES, of plain and of contextual prompts: mean over the groups, and their range."""
    marks = {}
    for prompts, groups, kind in (
        ("plain", diversity.plain, "before"),
        ("contextual", diversity.contextual, "after"),
    ):
        values = [value for one in groups if (value := getattr(one, field)) is not None] or [math.nan]
        marks[prompts] = charts.Mark(float(np.mean(values)), min(values), max(values), kind)
    name, meaning = MEASURES[field]
    return {
        "name": name,
        "meaning": meaning,
        "chart": charts.dots_with_intervals(list(marks.values()), scale),
        **{prompts: wording.percent(mark.value) for prompts, mark in marks.items()},
        **{
            f"{prompts}_range": wording.percents((mark.low, mark.high)) if mark.low < mark.high else ""
            for prompts, mark in marks.items()
        },
    }


def _attribute_row(attribute: Attribute, groups: Sequence[Wording], fixed: bool) -> dict[str, Any]:
    """One contextual attribute.

    counts: per group, "7 of 7" values of the settings, or how many different values. shown: the most frequent values
    with the prompts of each group that have them; left_out: how many more values. chart: per group the shares of the
    values, those left out as one part.
    """
    total: dict[str, int] = {}
    for group in attribute.groups:
        for value, n in group.values.items():
            total[value] = total.get(value, 0) + n
    values = sorted(total, key=lambda value: (-total[value], value))
    most, rest = values[:_MOST_VALUES], values[_MOST_VALUES:]
    sized = list(zip(attribute.groups, groups, strict=True))
    shares = [[of.values.get(value, 0) / group.prompts for value in most] for of, group in sized]
    others = [sum(of.values.get(value, 0) for value in rest) / group.prompts for of, group in sized]
    evenness = [group.evenness for group in attribute.groups if group.evenness is not None]
    return {
        "attribute": attribute,
        "counts": [
            f"{round(group.coverage * attribute.values)} of {attribute.values}" if fixed else f"{len(group.values):,}"
            for group in attribute.groups
        ],
        "evenness": wording.percent(min(evenness, default=math.nan)),
        "shown": [(value, [group.values.get(value, 0) for group in attribute.groups]) for value in most],
        "left_out": len(rest),
        "chart": charts.stacks(shares, others),
    }


# -- generation --------------------------------------------------------------------------------------------------------


def generation_section(summary: GenerationSummary | None) -> dict[str, Any]:
    """Images made (or found in a folder) and kept; rows: (group, rejected per reason). Without a summary, no rows.

    biased: the groups with the largest and the smallest rejection rate, if their 95% intervals are apart. confusions:
    attribute -> its rows of (confusion, images, shares per value), the last share that of unclear ones, if any.
    """
    groups = summary.groups if summary else []
    counts = [merged(group.rejected) for group in groups]
    reasons = sorted(sum(counts, Counter[str]()))
    confusions: dict[str, list[tuple[Confusion, int, list[float]]]] = {}
    for one in summary.confusions if summary else []:
        found = [*one.shown, one.unclear]
        shares = [number / sum(found) if sum(found) else math.nan for number in found]
        confusions.setdefault(one.attribute, []).append((one, sum(found), shares))
    return {
        "biased": _biased(groups) if summary and summary.folder is None else None,
        "confusions": confusions,
        "folder": summary.folder if summary else None,
        "made": summary.made if summary else 0,
        "kept": summary.kept if summary else 0,
        "reasons": reasons,
        "rows": [
            (group, [of_group[reason] for reason in reasons]) for group, of_group in zip(groups, counts, strict=True)
        ],
        "facts": _generation_facts(summary) if summary else {},
    }


def _biased(groups: Sequence[GroupSummary]) -> tuple[GroupSummary, GroupSummary] | None:
    if not any(group.rejected for group in groups):
        return None
    most, least = (choose(groups, key=lambda group: group.rejection_rate) for choose in (max, min))
    failed, judged = ([group.failed for group in (most, least)], [group.judged for group in (most, least)])
    (low, _), (_, high) = wilson(failed, judged, 0.95)
    return (most, least) if low > high else None


def _generation_facts(summary: GenerationSummary) -> dict[str, str]:
    facts = _speed_facts(summary.speed) if summary.speed else {}
    if (found := summary.comparison) is not None:
        facts["Compared with the plain model"] = f"{found}, over {found.images} images"
    return facts


def _speed_facts(speed: Speed) -> dict[str, str]:
    made = f"{speed.images:,} images in {duration(speed.seconds)}"
    facts = {"Overall speed": f"{speed.images / max(speed.seconds, 1e-9):,.1f} images/s ({made})"}
    if speed.sampling:
        facts["Sampling only"] = f"{speed.images / speed.sampling:,.1f} images/s"
    if speed.filters >= 0.05:
        facts["Filters outside sampling"] = duration(speed.filters)
    if speed.sampling:
        facts["Waiting for files"] = duration(speed.stalled)
    if shares := {name: share for name, share in speed.shares.items() if share >= 0.005}:
        facts["Where the time went"] = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    if speed.encoding:
        facts["Encoding and writing, beside sampling"] = f"{duration(speed.encoding)} in all threads together"
    if speed.processes > 1:
        facts["Processes"] = f"{speed.processes}; times are means over them"
    return facts


# -- masks -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DensityRow:
    """A block or tensor, with its density for each method."""

    name: str
    numel: int
    densities: tuple[float, ...]


def block_densities(masks: Mapping[str, Mapping[int, ParameterMask]]) -> list[DensityRow]:
    """Per block of the model, in order, the density of each method, mean over its seeds."""
    return _densities([[mask.summary().blocks for mask in of_seeds.values()] for of_seeds in masks.values()])


def tensor_densities(of_seeds: Mapping[int, ParameterMask]) -> list[DensityRow]:
    """Per parameter tensor, the density of one method, mean over its seeds."""
    return _densities([[mask.summary().tensors for mask in of_seeds.values()]])


def agreement(of_seeds: Mapping[int, ParameterMask]) -> float | None:
    """Jaccard index of the selected weights, mean over pairs of seeds; None for less than two seeds."""
    masks = list(of_seeds.values())
    shares = [(one & other).nnz / max((one | other).nnz, 1) for i, one in enumerate(masks) for other in masks[i + 1 :]]
    return float(np.mean(shares)) if shares else None


def _densities(shares: Sequence[Sequence[Sequence[Share]]]) -> list[DensityRow]:
    """From shares of each method, seed and block."""
    return [
        DensityRow(
            first.name, first.numel, tuple(float(np.mean([one[i].density for one in method])) for method in shares)
        )
        for i, first in enumerate(shares[0][0])
    ]


# -- training ----------------------------------------------------------------------------------------------------------


def trainings(histories: Mapping[str, Mapping[int, History]], default_method: str) -> list[dict[str, Any]]:
    """Of the biased model and of the default method, where there are histories; the seeds are lines of the panels."""
    of_methods = {
        name: [history for history in histories.get(name, {}).values() if history.epochs]
        for name in (BIASED, default_method)
    }
    return [
        {
            "name": name,
            "panels": [_panel(quantity, of_seeds) for quantity in ("accuracy", "loss")],
            "epochs": max(len(history.epochs) for history in of_seeds),
            "kept_epochs": [history.kept_epoch for history in of_seeds],
            "skipped_steps": sum(history.skipped_steps for history in of_seeds),
        }
        for name, of_seeds in of_methods.items()
        if of_seeds
    ]


def mean_seconds(of_seeds: Mapping[int, History]) -> float | None:
    """Time of one training, mean over the seeds; None without any."""
    times = [sum(epoch.seconds for epoch in history.epochs) for history in of_seeds.values()]
    return sum(times) / len(times) if times else None


def _panel(quantity: str, histories: Sequence[History]) -> dict[str, Any]:
    """A chart with the labels of its edges, and the values at the last epoch, mean over the seeds."""
    lines = [
        (kind, [float(getattr(epoch, f"{kind}_{quantity}")) for epoch in history.epochs])
        for kind in ("train", "validation")
        for history in histories
    ]
    values = [value for _, line in lines for value in line if math.isfinite(value)]
    if quantity == "accuracy":
        top, bottom, show = 1.0, min(math.floor(min(values, default=0) * 10) / 10, 0.9), wording.percent
    else:
        top, bottom, show = _round_up(max(values, default=1.0)), 0.0, "{:.3f}".format
    last = {kind: [line[-1] for of, line in lines if of == kind] for kind in ("train", "validation")}
    return {
        "quantity": quantity,
        "chart": charts.curves(lines, top, bottom),
        "top": f"{top:.0%}" if quantity == "accuracy" else f"{top:g}",
        "bottom": f"{bottom:.0%}" if quantity == "accuracy" else "0",
        **{f"last_{kind}": show(sum(of_seeds) / len(of_seeds)) for kind, of_seeds in last.items()},
    }


def _round_up(value: float) -> float:
    """To the next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(factor * power for factor in (1, 2, 5, 10) if value <= factor * power * (1 + 1e-9))
