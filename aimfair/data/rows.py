"""Tables of labels, row by row: ``.csv``, ``.tsv``, ``.jsonl`` and ``.parquet``.

Text is UTF-8, with or without a byte order mark. A .csv or .tsv begins with a header; a line of .jsonl is one object,
the first of which says what columns there are; of .parquet only the columns that are asked for are read. A row is named
by its line, in a .parquet by its number from 1.
"""

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aimfair.data import parquet
from aimfair.data.catalogue import unknown_name
from aimfair.errors import AimfairError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def header(path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        AimfairError: the table cannot be read.
    """
    if path.suffix == ".parquet":
        return parquet.header(path)
    if path.suffix == ".jsonl":
        return next((list(row) for _, row in _objects(path)), [])
    return next((cells for _, cells in _lines(path)), [])


def rows(path: Path, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, list[str]]]:
    """The line or number of each row, and its values of ``columns`` as text, without blanks around it.

    Whole numbers are written as such, also where they are stored as 1.0; true and false so.

    Args:
        columns: for each column the setting that names it, and its name.

    Raises:
        ConfigError: there is no such column.
        AimfairError: the table or a row cannot be read, or a value is missing, not finite or has parts.
    """
    found = header(path)
    for key, name in columns:
        if name not in found:
            raise unknown_name(key, name, found, f"the header of {path}")
        if found.count(name) > 1:
            raise AimfairError(f"{path}: column {name!r} is there {found.count(name)} times, expected once")
    names = [name for _, name in columns]
    for number, values in _values(path, found, names):
        where = f"{path}:{number}"
        yield number, [_text(value, name, where) for name, value in zip(names, values, strict=True)]


def _values(path: Path, found: list[str], names: list[str]) -> Iterator[tuple[int, Sequence[Any]]]:
    if path.suffix == ".parquet":
        yield from parquet.rows(path, names)
    elif path.suffix == ".jsonl":
        for line, row in _objects(path):
            for name in names:
                if name not in row:
                    raise AimfairError(f"{path}:{line}: found no {name!r}, expected it in every row")
            yield line, [row[name] for name in names]
    else:
        places = [found.index(name) for name in names]
        lines = _lines(path)
        next(lines)
        for line, cells in lines:
            if len(cells) != len(found):
                raise AimfairError(f"{path}:{line}: found {len(cells)} cells, expected {len(found)} as in the header")
            yield line, [cells[place] for place in places]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that has any, the header's first."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=_DELIMITERS[path.suffix], strict=True)
            for cells in reader:
                if cells:
                    yield reader.line_num, [cell.strip() for cell in cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AimfairError(f"{path}: cannot be read as a table of {path.suffix[1:]}: {error}") from error


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield line, _object(text, f"{path}:{line}")
    except (OSError, UnicodeDecodeError) as error:
        raise AimfairError(f"{path}: cannot be read as a table of jsonl: {error}") from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise AimfairError(f"{where}: cannot be read as JSON: {error}") from error
    if not isinstance(row, dict):
        raise AimfairError(f"{where}: found {type(row).__name__}, expected an object")
    return row


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``json`` would keep the last of two equal keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key is there twice")
    return row


def _text(value: object, name: str, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    found = {type(None): "null", float: str(value)}.get(type(value), type(value).__name__)
    raise AimfairError(f"{where}: column {name!r} is {found}, expected text or a number in every row")
