"""The groups of other attributes, and their intersections with the protected one, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from aimfair.evaluation.results import Audit, Difference, Interval, Results
from aimfair.methods import BIASED
from aimfair.report import wording
from aimfair.report.wording import Verdict

_METRICS = {
    "worst_group_accuracy": "Worst group",
    "eo_mean": "Equalized odds (mean)",
    "eo_max": "Equalized odds (max)",
    "group_std": "Spread of groups (STD)",
    "demographic_parity": "Demographic parity",
}
_PRESENT = {"worst_present_group_accuracy": "Worst group with test images"}
"""Shown where groups are empty, so that the strict one is undefined."""


@dataclass(frozen=True)
class Row:
    """One metric: mean over the seeds of the biased model and of the default method, and what lies between."""

    label: str
    before: float
    after: float
    difference: Difference
    verdict: Verdict


@dataclass(frozen=True)
class Group:
    """A group with its test images and accuracies, with Wilson's intervals."""

    name: str
    images: int
    before: float
    before_interval: Interval
    after: float
    after_interval: Interval


@dataclass(frozen=True)
class Worst:
    """The group of the lowest seed-averaged accuracy; ``rate`` is that."""

    name: str
    rate: float


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        title: the attribute, or the two.
        before, after: the worst group; None without test images.
        empty: groups without test images, of all ``groups``.
    """

    title: str
    rows: Sequence[Row]
    groups: Sequence[Group]
    before: Worst | None
    after: Worst | None
    empty: int
    cautions: Sequence[str]


def tables(results: Results, protected: str) -> list[Table]:
    """Each attribute, followed by its intersection, where there is one, with that which is called ``protected``."""
    found = []
    for name, audit in results.attributes.items():
        found.append(_table(results, audit, name))
        if name in results.intersections:
            title = f"{protected}{wording.TIMES}{name}"
            found.append(_table(results, results.intersections[name], title))
    return found


def _table(results: Results, audit: Audit, title: str) -> Table:
    before, after = audit.methods[BIASED], audit.methods[results.default_method]
    differences = after.versus[BIASED]
    return Table(
        title=title,
        rows=[
            Row(
                label,
                before.mean[metric],
                after.mean[metric],
                differences[metric],
                wording.judge(metric, differences[metric], results.small_group),
            )
            for metric, label in ((_PRESENT if audit.empty else {}) | _METRICS).items()
        ],
        groups=[
            Group(
                _name(results, audit, y, a),
                audit.test_images[a][y],
                before.by_group.mean[a][y],
                before.by_group.interval[a][y],
                after.by_group.mean[a][y],
                after.by_group.interval[a][y],
            )
            for y in range(len(results.target_names))
            for a in range(len(audit.value_names))
        ],
        before=_worst(results, audit, BIASED),
        after=_worst(results, audit, results.default_method),
        empty=audit.empty,
        cautions=audit.cautions,
    )


def _worst(results: Results, audit: Audit, method: str) -> Worst | None:
    of = audit.methods[method]
    if of.worst_present_group is None:
        return None
    y, a = of.worst_present_group
    return Worst(_name(results, audit, y, a), of.by_group.mean[a][y])


def _name(results: Results, audit: Audit, y: int, a: int) -> str:
    return f"{results.target_names[y]} · {audit.value_names[a]}"
