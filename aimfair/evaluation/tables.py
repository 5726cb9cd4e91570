"""Results as tables: results.csv with every number of the methods, table.md to be pasted into a text."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from aimfair.base.files import replace_file, write_text
from aimfair.evaluation.fairness import METRICS
from aimfair.evaluation.results import MethodResult, Results
from aimfair.evaluation.scores import SCORES

COLUMNS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "worst_group_accuracy": "worst group",
    "eo_mean": "EO",
    "group_std": "STD",
}
"""Metrics that every table of methods shows, and their headings."""

_SCORES = {"auroc": "AUROC", "calibration_error": "ECE", "brier": "Brier"}


def percent(value: float, digits: int = 1) -> str:
    """A share in percent, without the sign; a dash where undefined."""
    return "\N{EN DASH}" if math.isnan(value) else f"{100 * value:.{digits}f}"


def spread(mean: float, std: float) -> str:
    """Mean and standard deviation in percent; one seed has no standard deviation."""
    return percent(mean) if math.isnan(std) else f"{percent(mean)} ± {percent(std)}"


def worst_metric(results: Results) -> str:
    """The worst group of all; where groups have no test images, the worst of those that have some."""
    return "worst_present_group_accuracy" if results.empty else "worst_group_accuracy"


def empty_groups(results: Results) -> str:
    """For example "1 of 4 groups has no test images"."""
    return f"{results.empty} of {len(results.groups)} groups {'has' if results.empty == 1 else 'have'} no test images"


def save_tables(results: Results, folder: Path) -> list[Path]:
    """Replaces results.csv and table.md in ``folder``; their paths."""
    numbers, text = folder / "results.csv", folder / "table.md"
    rows = [numeric_row(name, method) for name, method in results.methods.items()]
    with replace_file(numbers) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_text(text, markdown(results))
    return [numbers, text]


def numeric_row(name: str, method: MethodResult) -> dict[str, str]:
    """Column -> text of a method: shares in full, nothing where undefined.

    Of each metric: mean and std over the seeds, low and high of the interval over the test images, and
    of_mean_rates, the metric of the seed-averaged rates. Of each score: mean, std, and those of the gap.
    """
    row = {
        "method": name,
        "tuned": _number(method.density),
        "reads_groups": str(method.reads_groups).lower(),
    }
    for metric in METRICS:
        low, high = method.interval[metric]
        row |= {
            f"{metric}_mean": _number(method.mean[metric]),
            f"{metric}_std": _number(method.std[metric]),
            f"{metric}_low": _number(low),
            f"{metric}_high": _number(high),
            f"{metric}_of_mean_rates": _number(method.of_mean_rates[metric]),
        }
    for part, of_part in (("mean", method.scores_mean), ("std", method.scores_std)):
        for score in SCORES:
            row[f"{score}_{part}"] = _number(of_part.overall[score] if of_part else None)
            row[f"{score}_gap_{part}"] = _number(of_part.gap[score] if of_part else None)
    return row


def markdown(results: Results) -> str:
    """A Markdown table of the methods, in percent, with what its columns mean."""
    seeds = len(results.seeds)
    empty = f"worst of the {len(results.groups) - results.empty} groups with images"
    columns = {**COLUMNS, **({"worst_present_group_accuracy": empty} if results.empty else {})}
    headings = ["method", "tuned", *columns.values()]
    headings += [f"{COLUMNS[metric]} of seed-averaged rates" for metric in _AVERAGED]
    headings += list(_SCORES.values())
    lines = [_line(headings), _line(["---", *["---:"] * (len(headings) - 1)])]
    readers = False
    for name, method in results.methods.items():
        readers |= method.reads_groups
        lines.append(
            _line(
                [
                    name + (" \\*" if method.reads_groups else ""),
                    "" if method.density is None else percent(method.density),
                    *(spread(method.mean[metric], method.std[metric]) for metric in columns),
                    *(percent(method.of_mean_rates[metric]) for metric in _AVERAGED),
                    *(_score(method, score) for score in _SCORES),
                ]
            )
        )
    over = f"mean ± standard deviation (ddof 1) over {seeds} seeds" if seeds > 1 else "of one seed"
    notes = [
        f"Percent; {over}, on {sum(map(sum, results.test_images)):,} test images. EO: equalized odds, mean over the"
        " rates; STD: of the group accuracies; ECE: expected calibration error"
        f" ({results.bins} bins). Columns “of seed-averaged rates” average the rates of the seeds first, as AIM-Fair"
        " does: their worst group, EO and STD flatter.",
        *([f"{empty_groups(results)}: metrics of all groups are undefined."] if results.empty else []),
        *(["\\* trained with the protected attribute of real images."] if readers else []),
    ]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n"


_AVERAGED = ("worst_group_accuracy", "eo_mean", "group_std")


def _score(method: MethodResult, score: str) -> str:
    if method.scores_mean is None or method.scores_std is None:
        return percent(math.nan)
    return spread(method.scores_mean.overall[score], method.scores_std.overall[score])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    """All digits."""
    return "" if value is None or math.isnan(value) else repr(value)
