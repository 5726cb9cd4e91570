"""The report page: from its material to one HTML string."""

import math
from typing import Any

import numpy as np

from aimfair.evaluation.compare import TIMES
from aimfair.evaluation.results import Audit, Results, ScoreResult
from aimfair.evaluation.scores import SCORES
from aimfair.methods import BIASED
from aimfair.report import charts, run_sections, template, wording
from aimfair.report.material import Material, real_samples
from aimfair.report.pairs_section import pairs_section
from aimfair.report.tuning_section import tuning_section
from aimfair.report.wording import Comparison

_MASKS = 6
"""Of more masks only the default method's is shown, and all of them in a collapsed table."""

_SECONDARY = ("eo_mean", "accuracy")
"""Metrics of the tiles, and of comparisons between methods, besides the worst group."""

_AUDITED = ("worst_group_accuracy", "eo_mean", "eo_max", "group_std", "demographic_parity")
"""Metrics of the tables of other attributes."""


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
        scores=_scores(results),
        attributes=_audit_tables(results, TIMES.join(factors)),
        factors=factors if data.intersect_with else [],
        confusions=_confusions(results),
        trainings=run_sections.trainings(material.histories, results.default_method),
        prompts=run_sections.prompts_section(material.diversity) if material.diversity is not None else None,
        pairs=pairs_section(material.flips, material.pairs, results.small_group) if material.flips else None,
        tuning=tuning_section(material.tuned, material.config),
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
    train = splits.train.group_counts(*splits.shape)
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


# -- other attributes --------------------------------------------------------------------------------------------------


def _audit_tables(results: Results, protected: str) -> list[dict[str, Any]]:
    """Each attribute, followed by its intersection, if any, with the one that is called ``protected``."""
    found = []
    for name, audit in results.attributes.items():
        found.append(_audit_table(results, audit, name))
        if name in results.intersections:
            title = f"{protected}{TIMES}{name}"
            found.append(_audit_table(results, results.intersections[name], title))
    return found


def _audit_table(results: Results, audit: Audit, title: str) -> dict[str, Any]:
    """rows: per metric the default method compared with the biased model; before, after: (group, accuracy) with the
    lowest seed-averaged accuracy, None without test images."""
    before, after = audit.methods[BIASED], audit.methods[results.default_method]
    rows = [
        Comparison.of(metric, BIASED, before.mean, after.mean, after.versus[BIASED], results.small_group)
        for metric in (*(["worst_present_group_accuracy"] if audit.empty else []), *_AUDITED)
    ]

    def worst(name: str) -> tuple[str, float] | None:
        method = audit.methods[name]
        if method.worst_present_group is None:
            return None
        y, a = method.worst_present_group
        return f"{results.target_names[y]} · {audit.value_names[a]}", method.by_group.mean[a][y]

    ends = {"before": worst(BIASED), "after": worst(results.default_method)}
    return {"title": title, "audit": audit, "rows": rows, **ends}


# -- scores ------------------------------------------------------------------------------------------------------------


def _scores(results: Results) -> dict[str, Any] | None:
    """Scores of certainty.html, None without any. Cells are "mean ± standard deviation" over the seeds.

    rows: (kind of test images, [(before, after) per score]); methods: (name, [(all test images, gap) per score]).
    """
    cells = {
        name: _score_cells(method.scores_mean, method.scores_std)
        for name, method in results.methods.items()
        if method.scores_mean is not None and method.scores_std is not None
    }
    if not cells:
        return None
    names = ("all test images", *results.protected_names, "largest difference")
    both = zip(names, cells[BIASED], cells[results.default_method], strict=True)
    return {
        "labels": list(wording.SCORE_LABELS.values()),
        "rows": [(name, list(zip(before, after, strict=True))) for name, before, after in both],
        "methods": [(name, list(zip(of[0], of[-1], strict=True))) for name, of in cells.items()],
    }


def _score_cells(mean: ScoreResult, std: ScoreResult) -> list[list[str]]:
    """[all images, each protected value, gap][score]."""
    values = range(len(mean.by_value[SCORES[0]]))
    return [
        [_cell(mean.overall[score], std.overall[score]) for score in SCORES],
        *([_cell(mean.by_value[score][a], std.by_value[score][a]) for score in SCORES] for a in values),
        [_cell(mean.gap[score], std.gap[score]) for score in SCORES],
    ]


def _cell(mean: float, std: float) -> str:
    if math.isnan(mean):
        return "\N{EN DASH}"
    return f"{mean:.3f}" if math.isnan(std) else f"{mean:.3f} ± {std:.3f}"


# -- confusions --------------------------------------------------------------------------------------------------------


def _confusions(results: Results) -> list[tuple[str, list[tuple[str, int, list[float]]]]]:
    """Per protected value (its name, rows): per true class its name, test images and the shares of predicted classes.

    Of the default method, mean over its seeds; NaN without images. Empty with two classes, where the group accuracies
    say the same.
    """
    if len(results.target_names) == 2:
        return []
    counts = np.mean([seed.counts for seed in results.methods[results.default_method].seeds], axis=0)
    return template.confusions(counts, results.test_images, results.target_names, results.protected_names)
