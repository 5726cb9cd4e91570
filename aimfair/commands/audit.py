"""``aimfair audit``: fairness of anybody's predictions, from a table."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.commands.settings import Overrides, refuse_overrides

if TYPE_CHECKING:
    from aimfair.evaluation.evaluate import Evaluation

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("table", type=Path, metavar="FILE", help=f"a row per case: {', '.join(_SUFFIXES)}")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="true class")
    parser.add_argument("--protected", required=True, nargs="+", metavar="COLUMN", help="attributes to group by")
    parser.add_argument("--prediction", nargs="+", default=[], metavar="COLUMN", help="predicted class of each model")
    parser.add_argument(
        "--probability",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="of the positive class, or of each class in their order, for one model",
    )
    parser.add_argument("--positive", metavar="CLASS", help="of two classes the one that rates are of (default: last)")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="in order (default: those of the target, sorted)")
    parser.add_argument("--cluster", metavar="COLUMN", help="equal for rows that belong together, such as a patient's")
    parser.add_argument("--no-intersections", action="store_true", help="do not cross the attributes")
    parser.add_argument("--confidence", type=float, default=0.95, help="of every interval (default: 0.95)")
    parser.add_argument("--replicates", type=int, default=10_000, help="of the bootstrap (default: 10000)")
    parser.add_argument("--small-group", type=int, default=30, help="fewer rows get a caution (default: 30)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report to FILE")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number to FILE")


def main(options: argparse.Namespace, overrides: Overrides) -> int:
    """Prints the table, and writes the files that are named.

    Raises:
        AimfairError: the table cannot be read, or a value in it cannot be used.
        ConfigError: a column does not exist, or a file cannot be written there; before anything is computed.
    """
    refuse_overrides("audit", overrides)
    for flag, file in (("--html", options.html), ("--json", options.json)):
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise ConfigError(f"{flag} {file}: expected a file in an existing folder")
        if file is not None and file.resolve() == options.table.resolve():
            raise ConfigError(f"{flag} {file}: is the table itself, which it would replace; name another file")
    if options.html is not None and options.json is not None and options.html.resolve() == options.json.resolve():
        raise ConfigError(f"--html and --json are both {options.html}; name two files")
    found = _evaluate(options)
    from aimfair.base.files import write_text
    from aimfair.report.evaluation_page import render, show

    show(found)
    if options.json is not None:
        found.save(options.json)
    if options.html is not None:
        write_text(options.html, render(found, options.table.name))
    return 0


def _evaluate(options: argparse.Namespace) -> "Evaluation":
    import aimfair
    from aimfair.evaluation.arguments import MODEL

    columns = _columns(options)
    predictions = {name: columns[name] for name in options.prediction}
    model = options.prediction[0] if predictions else MODEL
    probabilities = {model: _numbers(options.table, columns, options.probability)} if options.probability else None
    return aimfair.evaluate(
        predictions or None,
        columns[options.target],
        {name: columns[name] for name in options.protected},
        probabilities=probabilities,
        classes=options.classes,
        positive=options.positive,
        clusters=columns[options.cluster] if options.cluster else None,
        intersections=not options.no_intersections,
        confidence=options.confidence,
        replicates=options.replicates,
        small_group=options.small_group,
    )


def _columns(options: argparse.Namespace) -> dict[str, list[str]]:
    """The columns that are asked for, as strings."""
    from aimfair.data.rows import rows

    table: Path = options.table
    if not options.prediction and not options.probability:
        raise ConfigError("give --prediction COLUMN..., --probability COLUMN..., or both")
    if len(options.prediction) > 1 and options.probability:
        raise ConfigError("--probability: expected one --prediction beside it, as it is of one model")
    if table.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{table}: expected one of {', '.join(_SUFFIXES)}")
    wanted = [("--target", options.target), *(("--protected", name) for name in options.protected)]
    wanted += [("--prediction", name) for name in options.prediction]
    wanted += [("--probability", name) for name in options.probability]
    wanted += [("--cluster", options.cluster)] if options.cluster else []
    names = [name for _, name in wanted]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"column {twice!r} is named {names.count(twice)} times, expected once")
    required = set(names) - set(options.protected)
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, cells in rows(table, wanted):
        if isinstance(cells, str):
            raise AimfairError(f"{table}:{number}: {cells}")
        for name, cell in zip(names, cells, strict=True):
            if not cell and name in required:
                raise AimfairError(f"{table}:{number}: column {name!r} is empty, expected a value")
            columns[name].append(cell)
    if not columns[options.target]:
        raise AimfairError(f"{table}: has no rows below its header")
    return columns


def _numbers(table: Path, columns: dict[str, list[str]], names: list[str]) -> list[float] | list[list[float]]:
    """[N] of one column, [N, K] of several."""
    found = []
    for name in names:
        try:
            found.append([float(text) for text in columns[name]])
        except ValueError as error:
            raise AimfairError(f"{table}: column {name!r}: {error}, expected probabilities") from None
    return found[0] if len(found) == 1 else [list(row) for row in zip(*found, strict=True)]
