"""The table of an ablation: for spreadsheets, for papers, as JSON and for the terminal."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimfair.ablation.findings import Findings
from aimfair.ablation.outcomes import Outcome, Outcomes
from aimfair.ablation.plan import Fact, Plan
from aimfair.base.files import write_json, write_text
from aimfair.evaluation.results import Difference, MethodResult
from aimfair.methods import BIASED
from aimfair.report import wording

METRICS = {"accuracy": "accuracy", "worst_group_accuracy": "worst group", "eo_mean": "EO", "group_std": "STD"}
"""Metric -> heading."""

JUDGED = ("worst_group_accuracy", "eo_mean")
"""Metrics that are judged against the reference."""


def header(plan: Plan, found: Findings) -> list[str]:
    """Headings of :func:`rows`."""
    beside = plan.reference or BIASED
    judged = [f"{METRICS[metric]} beside {beside}" for metric in JUDGED]
    return ["arm", *_facts(plan), "tuned", *METRICS.values(), *judged, "validation accuracy", *found.columns]


def rows(plan: Plan, outcomes: Outcomes, found: Findings) -> list[list[str]]:
    """The arms and, at the end, the biased model, as texts."""
    facts = _facts(plan)
    table = []
    for one in outcomes.arms:
        cells = [one.arm.label, *(fact(one.arm.facts.get(name)) for name in facts), _tuned(one.result)]
        cells += _spreads(one.result)
        cells += [_judged(plan, outcomes, one, metric) for metric in JUDGED]
        cells += [wording.percent(one.validation_accuracy)]
        table.append([*cells, *(of.get(one.arm.label, "") for of in found.columns.values())])
    blank = [""] * len(facts)
    rest = [""] * (len(JUDGED) + 1 + len(found.columns))
    return [*table, [f"{BIASED} model", *blank, "", *_spreads(outcomes.biased), *rest]]


def write(folder: Path, name: str, plan: Plan, outcomes: Outcomes, found: Findings) -> None:
    """table.csv, table.md and <name>.json in ``folder``."""
    write_text(folder / "table.csv", _csv(plan, outcomes, found))
    write_text(folder / "table.md", _markdown(plan, header(plan, found), rows(plan, outcomes, found), found))
    write_json(folder / f"{name}.json", _plain(as_data(name, plan, outcomes, found)))


def show(plan: Plan, outcomes: Outcomes, found: Findings) -> None:
    """Prints means and verdicts, as much as a terminal has room for, and the sentences."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold", vertical="bottom")
    metrics = [metric for metric in METRICS if metric != "group_std"]
    beside = f"beside {plan.reference or BIASED}"
    for heading in ["tuned", *(METRICS[metric] for metric in metrics), f"worst group\n{beside}", f"EO\n{beside}"]:
        table.add_column(Text(heading), justify="right", vertical="bottom", overflow="fold")
    for one in outcomes.arms:
        cells = [one.arm.label, _tuned(one.result), *(wording.percent(one.result.mean[metric]) for metric in metrics)]
        cells += [_judged(plan, outcomes, one, metric) for metric in JUDGED]
        table.add_row(*map(Text, cells), style="bold" if one.arm.label == plan.reference else "")
    biased = [f"{BIASED} model", "", *(wording.percent(outcomes.biased.mean[metric]) for metric in metrics), "", ""]
    table.add_row(*map(Text, biased))
    console.print(table)
    for sentence in [*found.sentences, *plan.notes]:
        console.print(Text(sentence))


def as_data(name: str, plan: Plan, outcomes: Outcomes, found: Findings) -> dict[str, Any]:
    """Everything, with NaN where something is undefined."""
    return {
        "ablation": name,
        "title": plan.title,
        "question": plan.question,
        "reference": plan.reference or BIASED,
        "seeds": outcomes.results.seeds,
        "confidence": outcomes.results.confidence,
        "arms": [
            {
                "label": one.arm.label,
                "run": one.arm.group,
                "method": one.arm.method,
                **dict(one.arm.facts),
                "tuned": one.result.density,
                "mean": one.result.mean,
                "std": one.result.std,
                "interval": one.result.interval,
                "per_seed": {str(seed.seed): seed.overall for seed in one.result.seeds},
                "validation_accuracy": one.validation_accuracy,
                "validation_loss": one.validation_loss,
                "seconds": one.seconds,
                "minus_biased": {metric: of.model_dump() for metric, of in one.versus_biased.items()},
                "minus_reference": {metric: of.model_dump() for metric, of in (one.versus or {}).items()},
                **{column: of.get(one.arm.label) for column, of in found.columns.items()},
            }
            for one in outcomes.arms
        ],
        "biased": {"mean": outcomes.biased.mean, "std": outcomes.biased.std, "interval": outcomes.biased.interval},
        "sentences": list(found.sentences),
        "notes": plan.notes,
        **found.data,
    }


def fact(value: Fact) -> str:
    """A cell."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(plan: Plan) -> list[str]:
    return list(dict.fromkeys(name for arm in plan.arms for name in arm.facts))


def _tuned(result: MethodResult) -> str:
    return "" if result.density is None else wording.percent(result.density)


def _spreads(result: MethodResult) -> list[str]:
    return [wording.spread(result.mean[metric], result.std[metric]) for metric in METRICS]


def _judged(plan: Plan, outcomes: Outcomes, one: Outcome, metric: str) -> str:
    if plan.reference is not None and one.versus is None:
        return "reference"
    mean = (one.versus or one.versus_biased)[metric].mean
    return f"{wording.points(mean)} {outcomes.verdict(one, metric)}"


def _csv(plan: Plan, outcomes: Outcomes, found: Findings) -> str:
    """Numbers as they are, a row for each arm and one for the biased model; what is undefined is empty."""
    facts = _facts(plan)
    columns = ["arm", "run", "method", *facts, "tuned"]
    for metric in METRICS:
        columns += [f"{metric}{end}" for end in ("", "_std", "_low", "_high")]
    for metric in METRICS:
        columns += [
            f"{metric}_minus_reference{end}" for end in ("", "_low_images", "_high_images", "_low_seeds", "_high_seeds")
        ]
    columns += ["validation_accuracy", "validation_loss", "seconds", *found.columns]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for one in outcomes.arms:
        cells: list[Any] = [one.arm.label, one.arm.group, one.arm.method, *(one.arm.facts.get(name) for name in facts)]
        cells += [one.result.density, *_numbers(one.result)]
        versus = one.versus if plan.reference is not None else one.versus_biased
        for metric in METRICS:
            cells += _difference(versus[metric]) if versus else [None] * 5
        cells += [one.validation_accuracy, one.validation_loss, one.seconds]
        writer.writerow([_cell(cell) for cell in [*cells, *(of.get(one.arm.label) for of in found.columns.values())]])
    biased = [BIASED, None, BIASED, *[None] * len(facts), None, *_numbers(outcomes.biased)]
    writer.writerow([_cell(cell) for cell in [*biased, *[None] * (len(columns) - len(biased))]])
    return out.getvalue()


def _numbers(result: MethodResult) -> list[float]:
    return [value for m in METRICS for value in (result.mean[m], result.std[m], *result.interval[m])]


def _difference(one: Difference) -> list[float]:
    return [one.mean, *one.over_images, *one.over_seeds]


def _cell(value: Any) -> Any:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _markdown(plan: Plan, heading: Sequence[str], body: Sequence[Sequence[str]], found: Findings) -> str:
    lines = [f"# {_escape(plan.title)}", "", _escape(plan.question), ""]
    lines += [_line(heading), "|---|" + "---:|" * (len(heading) - 1), *(_line(cells) for cells in body), ""]
    lines += [f"- {_escape(sentence)}" for sentence in [*found.sentences, *plan.notes]]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_escape(cell) for cell in cells)} |"


def _escape(text: str) -> str:
    """Names of attributes and methods are a user's; none may become a column or a tag."""
    text = " ".join(text.split())
    for sign in "\\|<>`*":
        text = text.replace(sign, f"\\{sign}")
    return text


def _plain(value: Any) -> Any:
    """With null for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
