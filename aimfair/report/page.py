"""The page: material in, one HTML text out."""

from datetime import UTC, datetime
from typing import Any

import aimfair
from aimfair.evaluation.results import Results
from aimfair.methods import BIASED
from aimfair.report import (
    attributes,
    certainty,
    charts,
    confusion,
    environment,
    generation,
    masks,
    prompts,
    samples,
    training,
    wording,
)
from aimfair.report.material import Material
from aimfair.report.template import template

_MASKS = 6
"""Of more masks the default method's stands alone, and all of them in a table that opens."""

_BESIDE_WORST = ("eo_mean", "accuracy")
"""Metrics of the tiles, and of comparisons between methods, besides the worst group."""


def render(material: Material) -> str:
    """The report of a run as HTML. Nothing in it is loaded from elsewhere, and every text of the run is escaped."""
    data = material.config.data
    default = material.config.methods[material.results.default_method]
    return template("page.html").render(
        version=aimfair.__version__,
        date=datetime.now(UTC),
        material=material,
        results=material.results,
        environment=environment.describe(),
        labels=_labels(material.results),
        worst_metric=wording.worst_metric(material.results),
        empty_groups=wording.empty_groups(material.results),
        how=default.summary(
            material.results.methods[material.results.default_method].density, material.synthetic_images
        ),
        synthetic_seen=default.uses_synthetic,
        **_summary(material.results),
        **_groups(material),
        **_methods(material),
        **_masks(material),
        certainty=certainty.section(material.results),
        certainty_labels=certainty.LABELS.values(),
        attributes=attributes.tables(material.results, wording.TIMES.join([data.protected, *data.intersect_with])),
        factors=[data.protected, *data.intersect_with] if data.intersect_with else [],
        confusions=confusion.confusions(material.results),
        trainings=training.trainings(material.histories, material.results.default_method),
        prompts=prompts.section(material.diversity) if material.diversity is not None else None,
        generation=generation.describe(material.generation),
    )


def _summary(results: Results) -> dict[str, Any]:
    others = [name for name in results.methods if name != results.default_method]
    metrics = (wording.worst_metric(results), *_BESIDE_WORST)
    compared = {name: [wording.compare(results, name, metric) for metric in metrics] for name in others}
    return {
        "headline": wording.headline(results),
        "changes": compared[BIASED],
        "controls": wording.against_controls(results),
        "comparisons": [one for of_method in compared.values() for one in of_method],
        "cautions": wording.cautions(results),
    }


def _labels(results: Results) -> dict[str, str]:
    """Of the metrics that are shown."""
    hidden = set() if results.empty else {"worst_present_group_accuracy"}  # it is the strict one then
    return {metric: label for metric, label in wording.LABELS.items() if metric not in hidden}


def _groups(material: Material) -> dict[str, Any]:
    """Every group with its accuracies, chart and pictures."""
    results, splits = material.results, material.splits
    before, after = (results.methods[name].by_group for name in (BIASED, results.default_method))
    scale = charts.scale_for([low for group in (before, after) for row in group.interval for low, _ in row])
    train = splits.train.group_counts(len(splits.target_names), len(splits.protected_names))
    groups = []
    for y, a in results.groups:
        marks = [
            charts.Mark(one.mean[a][y], *one.interval[a][y], kind)
            for one, kind in ((before, "before"), (after, "after"))
        ]
        groups.append(
            {
                "name": results.group_name(y, a),
                "train": int(train[y, a]),
                "test": results.test_images[a][y],
                "small": results.test_images[a][y] < results.small_group,
                "before": marks[0],
                "after": marks[1],
                "chart": charts.dots_with_intervals(marks, scale),
                "real": samples.real(splits.train, y, a),
                "synthetic": material.synthetic.get((y, a), ()),
            }
        )
    return {"groups": groups, "group_axis": charts.axis(scale)}


def _methods(material: Material) -> dict[str, Any]:
    """A row per method, with the seeds as dots."""
    methods = material.results.methods
    metric = wording.worst_metric(material.results)
    worst = {name: [one.overall[metric] for one in method.seeds] for name, method in methods.items()}
    scale = charts.scale_for([value for values in worst.values() for value in values])
    rows = [
        {
            "name": name,
            "method": method,
            "strip": charts.strip(worst[name], method.mean[metric], scale),
            "seconds": training.mean_seconds(material.histories.get(name, {})),
        }
        for name, method in methods.items()
    ]
    return {"methods": rows, "strip_axis": charts.axis(scale)}


def _masks(material: Material) -> dict[str, Any]:
    """Densities of the blocks for every method whose masks are there, and of the tensors for the default."""
    blocks = masks.blocks(material.masks) if material.masks else []
    default = material.masks.get(material.results.default_method)
    return {
        "masked": list(material.masks),
        "every_masked": list(enumerate(material.masks)),
        "few_masked": [
            (i, name)
            for i, name in enumerate(material.masks)
            if len(material.masks) <= _MASKS or name == material.results.default_method
        ],
        "blocks": blocks,
        "densest": [max(densities) for densities in zip(*(row.densities for row in blocks), strict=True)],
        "tensors": masks.tensors(default) if default else [],
        "agreement": masks.agreement(default) if default else None,
    }
