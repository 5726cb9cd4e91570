"""ablation.html: the figures, the table and what may be said of them, in the style of the report."""

from datetime import UTC, datetime
from typing import Any

import aimfair
from aimfair.ablation import tables
from aimfair.ablation.findings import Findings
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import Plan
from aimfair.methods import BIASED
from aimfair.report import charts, environment, wording
from aimfair.report.template import template

_METRIC = "worst_group_accuracy"


def render(plan: Plan, outcomes: Outcomes, found: Findings) -> str:
    """The page as HTML. Nothing in it is loaded from elsewhere, and every text is escaped."""
    shown = [(one.arm.label, one.result, "after") for one in outcomes.arms]
    shown.append((f"{BIASED} model", outcomes.biased, "before"))
    scale = charts.scale_for([result.interval[_METRIC][0] for _, result, _ in shown])
    arms = [
        {
            "label": label,
            "value": result.mean[_METRIC],
            "interval": result.interval[_METRIC],
            "chart": charts.dots_with_intervals(
                [charts.Mark(result.mean[_METRIC], *result.interval[_METRIC], kind)], scale
            ),
        }
        for label, result, kind in shown
    ]
    return template("ablation.html").render(
        version=aimfair.__version__,
        date=datetime.now(UTC),
        plan=plan,
        found=found,
        results=outcomes.results,
        cautions=wording.cautions(outcomes.results),
        arms=arms,
        axis=charts.axis(scale),
        **_table(plan, outcomes, found),
        environment=environment.describe(),
    )


def _table(plan: Plan, outcomes: Outcomes, found: Findings) -> dict[str, Any]:
    """The table as wide as a screen: without STD, and without settings that all arms share.

    Columns that are left out are named beside it, with the value that the arms share; table.csv has them all.
    """
    header, rows = tables.header(plan, found), tables.rows(plan, outcomes, found)
    facts = {name for arm in plan.arms for name in arm.facts}
    shown, shared = [], []
    for column, name in enumerate(header):
        values = {row[column] for row in rows[:-1]} - {""}
        if name in facts and len(values) <= 1 and len(rows) > 2:
            shared += [f"{name} {value}" for value in values]
        elif name != tables.METRICS["group_std"]:
            shown.append(column)
    return {
        "header": [header[column] for column in shown],
        "rows": [[row[column] for column in shown] for row in rows],
        "judged": [column for column, of in enumerate(shown) if " beside " in header[of]],
        "shared": shared,
    }
