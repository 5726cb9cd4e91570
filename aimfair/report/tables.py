"""Tables as Markdown and CSV, and a run's results as both: results.csv with every number, table.md for papers."""

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aimfair.base.files import write_text
from aimfair.evaluation.metrics import METRICS
from aimfair.evaluation.results import MethodResult, Results, ScoreResult
from aimfair.evaluation.scores import SCORES
from aimfair.report.wording import empty_groups, percent, spread

COLUMNS = {"accuracy": "accuracy", "worst_group_accuracy": "worst group", "eo_mean": "EO", "group_std": "STD"}
"""Metrics that every table of methods shows, and their headings."""

_SCORES = {"auroc": "AUROC", "calibration_error": "ECE", "brier": "Brier"}

_AVERAGED = ("worst_group_accuracy", "eo_mean", "group_std")
"""Also shown of the seed-averaged rates."""

_SPECIAL = re.compile(r"([\\`*{}\[\]#|~$!@]|(?<![^\W_])_|_(?![^\W_])|:(?=\S)|(?<=www)\.)", re.IGNORECASE)
"""Inline syntax of CommonMark 0.31 and GitHub (tables, formulas, bare links), disabled by a backslash. Block syntax
needs no escape, as no foreign string begins a line; nor do underscores within words."""


# -- writers -----------------------------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """``text`` without line breaks; control and bidirectional-formatting characters become spaces."""
    return " ".join("".join(symbol if symbol.isprintable() else " " for symbol in text).split())


def escape(text: str) -> str:
    """``text`` on one line, safe in Markdown: it makes no heading, link, code, table, HTML or front matter."""
    pieces = (
        html.escape(piece, quote=False) if piece in "<>&" else _SPECIAL.sub(r"\\\1", piece)
        for piece in re.split("([<>&])", one_line(text))
        if piece
    )
    return "".join(pieces) or "\N{EN DASH}"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already; the first column is left-aligned, the others right-aligned."""
    lines = [head, [":--", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with all digits of floats; None and NaN are empty cells."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])
    return out.getvalue()


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]], bold: str | None) -> None:
    """A table for the terminal; the row that begins with ``bold`` is bold.

    Only the first column wraps, between words; of columns that do not fit beside it, the last are left out.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    widths = [max(map(cell_len, "\n".join(column).splitlines())) for column in zip(head, *rows, strict=True)]
    whole = sum(widths) + 2 * (len(head) - 1)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width
        console.width = whole
    narrowest = whole - widths[0] + max(cell_len(word) for row in rows for word in row[0].split())
    shown = len(head)
    while shown > 2 and narrowest > console.width:
        shown -= 1
        narrowest -= widths[shown] + 2
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(head[:shown]):
        table.add_column(Text(heading), justify="right" if i else "left", vertical="bottom", no_wrap=i > 0)
    for row in rows:
        table.add_row(*map(Text, row[:shown]), style="bold" if row[0] == bold else "")
    console.print(table)
    if left_out := [" ".join(heading.split()) for heading in head[shown:]]:
        print(f"Left out, as the terminal is {console.width} columns wide: {', '.join(left_out)}; see table.md.")


# -- results of a run --------------------------------------------------------------------------------------------------


def save_tables(results: Results, folder: Path) -> list[Path]:
    """Replaces results.csv and table.md in ``folder``; their paths."""
    numbers, text = folder / "results.csv", folder / "table.md"
    rows = [_numbers(name, method) for name, method in results.methods.items()]
    write_text(numbers, csv_table(list(rows[0]), [list(row.values()) for row in rows]))
    write_text(text, markdown(results))
    return [numbers, text]


def _numbers(name: str, method: MethodResult) -> dict[str, str | float | None]:
    """Column -> value of a method, shares as fractions.

    Per metric: mean and std over the seeds, low and high of the interval over the test images, and of_mean_rates, the
    metric of the seed-averaged rates. Per score: mean and std, also of the gap.
    """
    row: dict[str, str | float | None] = {
        "method": name,
        "tuned": method.density,
        "reads_groups": str(method.reads_groups).lower(),
    }
    for metric in METRICS:
        row[f"{metric}_mean"], row[f"{metric}_std"] = method.mean[metric], method.std[metric]
        row[f"{metric}_low"], row[f"{metric}_high"] = method.interval[metric]
        row[f"{metric}_of_mean_rates"] = method.of_mean_rates[metric]
    for part, scores in (("mean", method.scores_mean), ("std", method.scores_std)):
        for score in SCORES:
            row[f"{score}_{part}"] = scores.overall[score] if scores else None
            row[f"{score}_gap_{part}"] = scores.gap[score] if scores else None
    return row


def markdown(results: Results) -> str:
    """A Markdown table of the methods, in percent, with a legend of its columns."""
    empty = f"worst of the {len(results.groups) - results.empty} groups with images"
    columns = {**COLUMNS, **({"worst_present_group_accuracy": empty} if results.empty else {})}
    head = ["method", "tuned", *columns.values()]
    head += [f"{COLUMNS[metric]} of seed-averaged rates" for metric in _AVERAGED] + list(_SCORES.values())
    rows = [
        [
            name + (" \\*" if method.reads_groups else ""),
            "" if method.density is None else percent(method.density, unit=""),
            *(spread(method.mean[metric], method.std[metric], unit="") for metric in columns),
            *(percent(method.of_mean_rates[metric], unit="") for metric in _AVERAGED),
            *(_score(method.scores_mean, method.scores_std, score) for score in _SCORES),
        ]
        for name, method in results.methods.items()
    ]
    seeds = len(results.seeds)
    over = f"mean ± standard deviation (ddof 1) over {seeds} seeds" if seeds > 1 else "of one seed"
    notes = [
        f"Percent; {over}, on {sum(map(sum, results.test_images)):,} test images. EO: equalized odds, mean over the"
        " rates; STD: of the group accuracies; ECE: expected calibration error"
        f" ({results.bins} bins). Columns “of seed-averaged rates” average the rates over the seeds first, as AIM-Fair"
        " does; worst group, EO and STD of averaged rates are optimistic.",
        *([f"{empty_groups(results)}: metrics of all groups are undefined."] if results.empty else []),
        *(
            ["\\* trained with the protected attribute of real images."]
            if any(method.reads_groups for method in results.methods.values())
            else []
        ),
    ]
    return "\n\n".join([markdown_table(head, rows), *notes]) + "\n"


def _score(mean: ScoreResult | None, std: ScoreResult | None, score: str) -> str:
    if mean is None or std is None:
        return percent(math.nan)
    return spread(mean.overall[score], std.overall[score], unit="")
