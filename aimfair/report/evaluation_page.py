"""The page and the table of ``aimfair audit``: anybody's predictions, without a run."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from aimfair.evaluation.compare import SEPARATOR
from aimfair.evaluation.evaluate import NAMES, AttributeEvaluation, Evaluation, ModelEvaluation
from aimfair.evaluation.intervals import wilson
from aimfair.report import charts, template
from aimfair.report.tables import print_table
from aimfair.report.wording import LABELS, SCORE_LABELS, judge, percent, percents

_LABELS = {
    **{metric: LABELS.get(ours, "") for metric, ours in NAMES.items()},
    "demographic_parity_difference": "Demographic parity (difference)",
    "demographic_parity_ratio": "Demographic parity (ratio)",
    "equalized_odds_difference": "Equalized odds (difference)",
    "equalized_odds_mean_difference": "Equalized odds (mean difference)",
}

_PRINTED = {
    "accuracy": "accuracy",
    "worst_present_group_accuracy": "worst group",
    "demographic_parity_difference": "parity",
    "equal_opportunity_difference": "opportunity",
    "equalized_odds_difference": "odds",
}
"""Metrics of the terminal, and their headings."""


def render(found: Evaluation, title: str) -> str:
    """An evaluation as HTML. It loads nothing from elsewhere, and every string is escaped."""
    return template.render(
        "evaluation.html",
        found=found,
        title=title,
        kinds=[charts.kind_of(m, len(found.models)) for m in range(len(found.models))],
        several=len(found.models) > 1,
        scored=any(model.scores for of in found.attributes.values() for model in of.models.values()),
        sentences=sentences(found),
        sections=[_section(found, i, name, of) for i, (name, of) in enumerate(found.attributes.items())],
    )


def sentences(found: Evaluation) -> list[str]:
    """What every model does in its worst group, for each attribute."""
    said = []
    for name, of in found.attributes.items():
        for model, one in of.models.items():
            if one.worst_group is None:
                continue
            worst, whole = one.metrics["worst_present_group_accuracy"], one.metrics["accuracy"]
            said.append(
                f"{name}: {model} is right in {percent(whole.value)} of all rows, and in {percent(worst.value)}"
                f" ({percents(worst.interval)}) of its worst group, {SEPARATOR.join(one.worst_group)}."
            )
    return said


def show(found: Evaluation) -> None:
    """Prints a row per attribute and model, and the cautions."""
    several = len(found.models) > 1
    rows = [
        [
            name,
            *([model] if several else []),
            *(percent(one.metrics[metric].value, unit="") for metric in _PRINTED),
            SEPARATOR.join(one.worst_group or ()),
        ]
        for name, of in found.attributes.items()
        for model, one in of.models.items()
    ]
    print_table(["attribute", *(["model"] if several else []), *_PRINTED.values(), "worst group is"], rows, None)
    print("Percent. Parity, opportunity, odds: largest differences between values of the attribute.")
    for name, of in found.attributes.items():
        for caution in of.cautions:
            print(f"caution: {name}: {caution}")


def _section(found: Evaluation, number: int, name: str, of: AttributeEvaluation) -> dict[str, Any]:
    groups = list(_groups(found, of))
    scale = charts.scale_for([mark.low for group in groups for _, mark in group["marks"]])
    for group in groups:
        group["chart"] = charts.dots_with_intervals([mark for _, mark in group["marks"]], scale)
    return {
        "id": f"attribute-{number}",  # names are not always valid in links
        "name": name,
        "of": of,
        "axis": charts.axis(scale),
        "groups": groups,
        "metrics": list(_metrics(found, of)),
        "rates": [_rates(found, of, model, one) for model, one in of.models.items()],
    }


def _groups(found: Evaluation, of: AttributeEvaluation) -> Iterator[dict[str, Any]]:
    """Every group with the accuracy of each model in it."""
    for y, target in enumerate(found.classes):
        for a, value in enumerate(of.values):
            rows, marks = of.rows[a][y], []
            for m, (model, one) in enumerate(of.models.items()):
                right = one.confusion[a][y][y]
                low, high = wilson(right, rows, found.confidence).tolist()
                kind = charts.kind_of(m, len(of.models))
                marks.append((model, charts.Mark(right / rows if rows else math.nan, low, high, kind)))
            yield {"name": SEPARATOR.join((target, value)), "rows": rows, "marks": marks}


def _metrics(found: Evaluation, of: AttributeEvaluation) -> Iterator[dict[str, Any]]:
    """A row per metric, a cell per model; the worst group without empty ones only where there are any."""
    for metric, ours in NAMES.items():
        if metric == "worst_present_group_accuracy" and not of.empty:
            continue
        cells = []
        for one in of.models.values():
            difference = next((versus[metric] for versus in one.versus.values()), None)
            verdict = judge(ours, difference, found.small_group) if difference else None
            cells.append({"estimate": one.metrics[metric], "difference": difference, "verdict": verdict})
        yield {"metric": metric, "label": _LABELS[metric], "cells": cells}


def _rates(found: Evaluation, of: AttributeEvaluation, model: str, one: ModelEvaluation) -> dict[str, Any]:
    rows = []
    for a, value in enumerate(of.values):
        scores = [one.scores.by_value[score][a] for score in SCORE_LABELS] if one.scores else []
        rates = list(one.by_group[value].values())
        rows.append({"name": value, "count": sum(of.rows[a]), "rates": rates, "scores": scores})
    confusions = template.confusions(np.array(one.confusion), of.rows, found.classes, of.values)
    names = list(next(iter(one.by_group.values())))
    scored = list(SCORE_LABELS.values()) if one.scores else []
    return {"model": model, "rates": names, "scores": scored, "rows": rows, "confusions": confusions}
