"""What an ablation writes: table.csv, table.md, NAME.json and ablation.html, and the table on the terminal."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimfair.ablation.outcomes import Findings, Outcome, Outcomes
from aimfair.ablation.plan import Fact, Plan
from aimfair.base.files import write_json, write_text
from aimfair.evaluation.results import Difference, MethodResult
from aimfair.methods import BIASED
from aimfair.report import charts, template, wording
from aimfair.report.tables import COLUMNS, csv_table, escape, markdown_table, print_table

JUDGED = ("worst_group_accuracy", "eo_mean")
"""Metrics with a verdict against the reference."""

PAGE = "ablation.html"


def write(folder: Path, name: str, plan: Plan, outcomes: Outcomes, found: Findings) -> None:
    """Replaces the four files in ``folder``."""
    write_text(folder / "table.csv", _csv(plan, outcomes, found))
    write_text(folder / "table.md", _markdown(plan, header(plan, found), rows(plan, outcomes, found), found))
    write_json(folder / f"{name}.json", _without_nan(_data(name, plan, outcomes, found)))
    write_text(folder / PAGE, page(plan, outcomes, found))


# -- table -------------------------------------------------------------------------------------------------------------


def header(plan: Plan, found: Findings) -> list[str]:
    """Headings of :func:`rows`."""
    versus = [f"{COLUMNS[metric]} vs. {plan.reference or BIASED}" for metric in JUDGED]
    return ["arm", *_facts(plan), "tuned", *COLUMNS.values(), *versus, "validation accuracy", *found.columns]


def rows(plan: Plan, outcomes: Outcomes, found: Findings) -> list[list[str]]:
    """The arms and, last, the biased model, as strings."""
    facts = _facts(plan)
    table = []
    for one in outcomes.arms:
        cells = [one.arm.label, *(_fact(one.arm.facts.get(name)) for name in facts), _tuned(one.result)]
        cells += _spreads(one.result)
        cells += [_verdict(plan, outcomes, one, metric) for metric in JUDGED]
        cells += [wording.percent(one.validation_accuracy)]
        table.append([*cells, *(of.get(one.arm.label, "") for of in found.columns.values())])
    rest = [""] * (len(JUDGED) + 1 + len(found.columns))
    return [*table, [f"{BIASED} model", *[""] * len(facts), "", *_spreads(outcomes.biased), *rest]]


def show(plan: Plan, outcomes: Outcomes, found: Findings) -> None:
    """Prints means and verdicts, as far as they fit a terminal, and the sentences."""
    metrics = [metric for metric in COLUMNS if metric != "group_std"]
    versus = f"vs. {plan.reference or BIASED}"
    head = ["arm", "tuned", *(COLUMNS[metric] for metric in metrics), f"worst group\n{versus}", f"EO\n{versus}"]
    arms = [
        [one.arm.label, _tuned(one.result), *(wording.percent(one.result.mean[metric]) for metric in metrics)]
        + [_verdict(plan, outcomes, one, metric) for metric in JUDGED]
        for one in outcomes.arms
    ]
    biased = [f"{BIASED} model", "", *(wording.percent(outcomes.biased.mean[metric]) for metric in metrics), "", ""]
    print_table(head, [*arms, biased], plan.reference)
    for sentence in [*found.sentences, *plan.notes]:
        print(sentence)


def _data(name: str, plan: Plan, outcomes: Outcomes, found: Findings) -> dict[str, Any]:
    """Everything of the JSON file; undefined values are NaN."""
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


def _facts(plan: Plan) -> list[str]:
    return list(dict.fromkeys(name for arm in plan.arms for name in arm.facts))


def _fact(value: Fact) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tuned(result: MethodResult) -> str:
    return "" if result.density is None else wording.percent(result.density)


def _spreads(result: MethodResult) -> list[str]:
    return [wording.spread(result.mean[metric], result.std[metric]) for metric in COLUMNS]


def _verdict(plan: Plan, outcomes: Outcomes, one: Outcome, metric: str) -> str:
    if plan.reference is not None and one.versus is None:
        return "reference"
    mean = (one.versus or one.versus_biased)[metric].mean
    return f"{wording.points(mean)} {outcomes.verdict(one, metric)}"


# -- files -------------------------------------------------------------------------------------------------------------


def _csv(plan: Plan, outcomes: Outcomes, found: Findings) -> str:
    """A row for each arm and one for the biased model, with intervals."""
    facts = _facts(plan)
    columns = ["arm", "run", "method", *facts, "tuned"]
    for metric in COLUMNS:
        columns += [f"{metric}{end}" for end in ("", "_std", "_low", "_high")]
    for metric in COLUMNS:
        columns += [
            f"{metric}_minus_reference{end}" for end in ("", "_low_images", "_high_images", "_low_seeds", "_high_seeds")
        ]
    columns += ["validation_accuracy", "validation_loss", "seconds", *found.columns]
    table: list[list[Any]] = []
    for one in outcomes.arms:
        cells: list[Any] = [one.arm.label, one.arm.group, one.arm.method, *(one.arm.facts.get(name) for name in facts)]
        cells += [one.result.density, *_numbers(one.result)]
        versus = one.versus if plan.reference is not None else one.versus_biased
        for metric in COLUMNS:
            cells += _difference(versus[metric]) if versus else [None] * 5
        cells += [one.validation_accuracy, one.validation_loss, one.seconds]
        table.append([*cells, *(of.get(one.arm.label) for of in found.columns.values())])
    biased = [BIASED, None, BIASED, *[None] * len(facts), None, *_numbers(outcomes.biased)]
    table.append([*biased, *[None] * (len(columns) - len(biased))])
    return csv_table(columns, table)


def _numbers(result: MethodResult) -> list[float]:
    return [value for m in COLUMNS for value in (result.mean[m], result.std[m], *result.interval[m])]


def _difference(one: Difference) -> list[float]:
    return [one.mean, *one.over_images, *one.over_seeds]


def _markdown(plan: Plan, heading: Sequence[str], body: Sequence[Sequence[str]], found: Findings) -> str:
    """Labels and names of attributes come from the user, so every cell is escaped."""
    table = markdown_table([escape(cell) for cell in heading], [[escape(cell) for cell in row] for row in body])
    notes = "\n".join(f"- {escape(sentence)}" for sentence in [*found.sentences, *plan.notes])
    return f"# {escape(plan.title)}\n\n{escape(plan.question)}\n\n{table}\n\n{notes}\n"


def _without_nan(value: Any) -> Any:
    """With null for NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    return [_without_nan(one) for one in value] if isinstance(value, list | tuple) else value


# -- page --------------------------------------------------------------------------------------------------------------


def page(plan: Plan, outcomes: Outcomes, found: Findings) -> str:
    """ablation.html. It loads nothing from elsewhere, and every string is escaped."""
    metric = "worst_group_accuracy"
    shown = [(one.arm.label, one.result, "after") for one in outcomes.arms]
    shown.append((f"{BIASED} model", outcomes.biased, "before"))
    scale = charts.scale_for([result.interval[metric][0] for _, result, _ in shown])
    marks = [(label, charts.Mark(result.mean[metric], *result.interval[metric], kind)) for label, result, kind in shown]
    return template.render(
        "ablation.html",
        plan=plan,
        found=found,
        results=outcomes.results,
        cautions=wording.cautions(outcomes.results),
        arms=[(label, mark, charts.dots_with_intervals([mark], scale)) for label, mark in marks],
        axis=charts.axis(scale),
        **_page_table(plan, outcomes, found),
    )


def _page_table(plan: Plan, outcomes: Outcomes, found: Findings) -> dict[str, Any]:
    """The table without STD and without settings that all arms share (``shared`` lists those), to fit a screen."""
    headings, table = header(plan, found), rows(plan, outcomes, found)
    facts = set(_facts(plan))
    shown, shared = [], []
    for column, name in enumerate(headings):
        values = {row[column] for row in table[:-1]} - {""}
        if name in facts and len(values) <= 1 and len(table) > 2:
            shared += [f"{name} {value}" for value in values]
        elif name != COLUMNS["group_std"]:
            shown.append(column)
    return {
        "header": [headings[column] for column in shown],
        "rows": [[row[column] for column in shown] for row in table],
        "judged": [column for column, of in enumerate(shown) if " vs. " in headings[of]],
        "shared": shared,
    }
