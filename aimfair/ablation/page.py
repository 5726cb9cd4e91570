"""ablation.html: the figures, the table and what may be said of them, in the style of the report."""

from datetime import UTC, datetime

import aimfair
from aimfair.ablation import tables
from aimfair.ablation.findings import Findings
from aimfair.ablation.outcomes import Outcomes
from aimfair.ablation.plan import Plan
from aimfair.config import BIASED
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
        header=tables.header(plan, found),
        rows=tables.rows(plan, outcomes, found),
        environment=environment.describe(),
    )
