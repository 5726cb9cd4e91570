"""The report page: from its material to one HTML string."""

from typing import Any

from aimfair.evaluation.results import Results
from aimfair.methods import BIASED
from aimfair.report import charts, results_sections, run_sections, template, wording
from aimfair.report.material import Material, real_samples

_MASKS = 6
"""Of more masks only the default method's is shown, and all of them in a collapsed table."""

_SECONDARY = ("eo_mean", "accuracy")
"""Metrics of the tiles, and of comparisons between methods, besides the worst group."""


def render(material: Material) -> str:
    """The report of a run as HTML. It loads nothing from elsewhere, and every string of the run is escaped."""
    data, results = material.config.data, material.results
    default = material.config.methods[results.default_method]
    factors = [data.protected, *data.intersect_with]
    return template.render(
        "page.html",
        material=material,
        results=results,
        labels=_labels(results),
        worst_metric=wording.worst_metric(results),
        empty_groups=wording.empty_groups(results),
        how=default.summary(results.methods[results.default_method].density, material.synthetic_images),
        synthetic_seen=default.uses_synthetic,
        **_summary(results),
        **_groups(material),
        **_methods(material),
        **_masks(material),
        scores=results_sections.scores(results),
        attributes=results_sections.audit_tables(results, wording.TIMES.join(factors)),
        factors=factors if data.intersect_with else [],
        confusions=results_sections.confusions(results),
        trainings=run_sections.trainings(material.histories, results.default_method),
        prompts=run_sections.prompts_section(material.diversity) if material.diversity is not None else None,
        generation=run_sections.generation_section(material.generation),
    )


def _summary(results: Results) -> dict[str, Any]:
    others = [name for name in results.methods if name != results.default_method]
    metrics = (wording.worst_metric(results), *_SECONDARY)
    compared = {name: [wording.compare(results, name, metric) for metric in metrics] for name in others}
    return {
        "headline": wording.headline(results),
        "changes": compared[BIASED],
        "controls": wording.against_controls(results),
        "comparisons": [one for of_method in compared.values() for one in of_method],
        "cautions": wording.cautions(results),
    }


def _labels(results: Results) -> dict[str, str]:
    """Of the metrics shown."""
    hidden = set() if results.empty else {"worst_present_group_accuracy"}  # equal to worst_group_accuracy
    return {metric: label for metric, label in wording.LABELS.items() if metric not in hidden}


def _groups(material: Material) -> dict[str, Any]:
    """Every group with its accuracies, chart and images."""
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
                "real": real_samples(splits.train, y, a),
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
            "seconds": run_sections.mean_seconds(material.histories.get(name, {})),
        }
        for name, method in methods.items()
    ]
    return {"methods": rows, "strip_axis": charts.axis(scale)}


def _masks(material: Material) -> dict[str, Any]:
    """Densities of the blocks for every method with masks, and of the tensors for the default."""
    blocks = run_sections.block_densities(material.masks) if material.masks else []
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
        "tensors": run_sections.tensor_densities(default) if default else [],
        "agreement": run_sections.agreement(default) if default else None,
    }
