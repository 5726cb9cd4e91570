"""Sections of the report that come from results.json alone: other attributes, scores, confusions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aimfair.evaluation.results import Audit, Results, ScoreResult
from aimfair.evaluation.scores import SCORES
from aimfair.methods import BIASED
from aimfair.report import wording
from aimfair.report.wording import Comparison

_AUDITED = ("worst_group_accuracy", "eo_mean", "eo_max", "group_std", "demographic_parity")


# -- other attributes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AuditTable:
    """
    Attributes:
        title: the attribute, or the two.
        rows: per metric the default method compared with the biased model.
        before, after: (group, accuracy) with the lowest seed-averaged accuracy; None without test images.
    """

    title: str
    audit: Audit
    rows: Sequence[Comparison]
    before: tuple[str, float] | None
    after: tuple[str, float] | None

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Every (y, a), class by class."""
        values, targets = len(self.audit.test_images), len(self.audit.test_images[0])
        return [(y, a) for y in range(targets) for a in range(values)]


def audit_tables(results: Results, protected: str) -> list[AuditTable]:
    """Each attribute, followed by its intersection, if any, with the one that is called ``protected``."""
    found = []
    for name, audit in results.attributes.items():
        found.append(_audit_table(results, audit, name))
        if name in results.intersections:
            title = f"{protected}{wording.TIMES}{name}"
            found.append(_audit_table(results, results.intersections[name], title))
    return found


def _audit_table(results: Results, audit: Audit, title: str) -> AuditTable:
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

    return AuditTable(title, audit, rows, worst(BIASED), worst(results.default_method))


# -- scores ------------------------------------------------------------------------------------------------------------

SCORE_LABELS = {"auroc": "AUROC", "calibration_error": "Calibration error", "brier": "Brier score"}


def scores(results: Results) -> dict[str, Any] | None:
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
        "labels": list(SCORE_LABELS.values()),
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


def confusions(results: Results) -> list[tuple[str, list[tuple[str, int, list[float]]]]]:
    """Per protected value (its name, rows): per true class its name, test images and the shares of predicted classes.

    Of the default method, mean over its seeds; NaN without images. Empty with two classes, where the group accuracies
    say the same.
    """
    if len(results.target_names) == 2:
        return []
    counts = np.mean([seed.counts for seed in results.methods[results.default_method].seeds], axis=0)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=2, keepdims=True)
    return [
        (
            protected,
            [
                (target, results.test_images[a][y], shares[a, y].tolist())
                for y, target in enumerate(results.target_names)
            ],
        )
        for a, protected in enumerate(results.protected_names)
    ]
