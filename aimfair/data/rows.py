"""Tables of labels, row by row: ``.csv``, ``.tsv``, ``.jsonl`` and ``.parquet``.

Text is UTF-8, with or without a byte order mark. A .csv or .tsv begins with a header; if that has no comma or tab, but
semicolons, tabs, commas or vertical bars, those separate the columns. Each line of .jsonl is an object, the first of
which defines the columns; of .parquet only the requested columns are read. A row is named by its line or, in a
.parquet, its number from 1. An unusable row does not end the reading.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aimfair.base.errors import AimfairError
from aimfair.base.storage import File
from aimfair.data import parquet_file
from aimfair.data.catalogue import unknown_name
from aimfair.data.text import utf8

_DELIMITERS = {".csv": ",", ".tsv": "\t"}

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

_DECLARED = re.compile(r"sep=([,;\t|])")
"""As Excel writes and reads it, in a line before the header."""


def header(path: File) -> list[str]:
    """The names of the columns.

    Raises:
        AimfairError: the table cannot be read, or is empty.
    """
    if path.suffix.lower() == ".parquet":
        return parquet_file.header(path)
    assert isinstance(path, Path)  # of files at URLs, only Parquet is read in place
    if path.suffix.lower() == ".jsonl":
        for line, row in _objects(path):
            if isinstance(row, str):
                raise AimfairError(f"{path}:{line}: {row}")
            return list(row)
        raise AimfairError(f"{path}: is empty, expected an object for each image")
    for _, cells in _lines(path):
        return cells
    raise AimfairError(f"{path}: is empty, expected a header and a row for each image")


def notes(path: Path) -> list[str]:
    """A line about the separator, if it is not that of the suffix.

    Raises:
        AimfairError: as :func:`header`.
    """
    expected = _DELIMITERS.get(path.suffix.lower())
    if expected is None or (found := _delimiter(path)) == expected:
        return []
    return [f"{path}: its columns are separated by {_SEPARATORS[found]}, not {_SEPARATORS[expected]}"]


def rows(path: File, columns: Sequence[tuple[str, str]]) -> Iterator[tuple[int, list[str] | str]]:
    """Line or number of each row, and its values of ``columns`` as stripped strings, or the reason why it is unusable.

    Integral numbers become integers (1.0 is "1"), booleans true and false, null and NaN "".

    Args:
        columns: (setting that names it, name) of each column.

    Raises:
        ConfigError: a column does not exist.
        AimfairError: the table cannot be read.
    """
    found = header(path)
    for key, name in columns:
        if name not in found:
            if isinstance(path, Path):
                _refuse_other_separator(path, name)
            raise unknown_name(key, name, found, f"the header of {path}")
        if found.count(name) > 1:
            raise AimfairError(f"{path}: column {name!r} occurs {found.count(name)} times, expected once")
    names = [name for _, name in columns]
    for number, values in _values(path, found, names):
        if isinstance(values, str):
            yield number, values
            continue
        texts = [text_of(value) for value in values]
        unusable = next((name for name, text in zip(names, texts, strict=True) if text is None), None)
        if unusable is None:
            yield number, [text for text in texts if text is not None]
        else:
            kind = kind_of(values[names.index(unusable)])
            yield number, f"column {unusable!r} is {kind}, expected a string or a number in every row"


def _values(path: File, found: list[str], names: list[str]) -> Iterator[tuple[int, Sequence[Any] | str]]:
    if path.suffix.lower() == ".parquet":
        yield from parquet_file.rows(path, names)
        return
    assert isinstance(path, Path)
    if path.suffix.lower() == ".jsonl":
        for line, row in _objects(path):
            yield line, row if isinstance(row, str) else [row.get(name) for name in names]
    else:
        places = [found.index(name) for name in names]
        lines = _lines(path)
        next(lines)
        for line, cells in lines:
            if len(cells) != len(found):
                yield line, f"found {len(cells)} cells, expected {len(found)} as in the header"
            else:
                yield line, [cells[place] for place in places]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that has any, the header's first."""
    delimiter = _delimiter(path)
    with _readable(path), utf8(path, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        for cells in reader:
            if cells and not (reader.line_num == 1 and _DECLARED.fullmatch(delimiter.join(cells))):
                yield reader.line_num, [cell.strip() for cell in cells]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise AimfairError(f"{path}: cannot be read as a table of {path.suffix[1:].lower()}: {error}") from error


def _delimiter(path: Path) -> str:
    """That of the suffix, unless the header has only one column with it, and several with another or a declared one."""
    expected = _DELIMITERS[path.suffix.lower()]
    if len(_split_header(path, expected)) > 1:
        return expected
    with _readable(path), utf8(path) as file:
        declared = _DECLARED.fullmatch(file.readline().strip())
    if declared:
        return declared[1]
    return max((expected, *_SEPARATORS), key=lambda delimiter: len(_split_header(path, delimiter)))


def _split_header(path: Path, delimiter: str) -> list[str]:
    with _readable(path), utf8(path, newline="") as file:
        return [cell.strip() for cell in next(filter(None, csv.reader(file, delimiter=delimiter)), [])]


def _refuse_other_separator(path: Path, name: str) -> None:
    """Refuses a header that has the column ``name`` if it is separated in another way."""
    suffix = path.suffix.lower()
    if suffix not in _DELIMITERS:
        return
    for delimiter, separators in _SEPARATORS.items():
        if name in _split_header(path, delimiter):
            raise AimfairError(
                f"{path}: its columns seem to be separated by {separators}, but its header has"
                f" {_SEPARATORS[_DELIMITERS[suffix]]} too: remove those from the header"
            )


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line and object of each line that is not blank, or the reason why it is unusable."""
    with _readable(path), utf8(path) as file:
        for line, text in enumerate(file, 1):
            if text.strip():
                yield line, _object(text)


def _object(text: str) -> dict[str, Any] | str:
    try:
        row = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        return f"cannot be read as JSON: {error}"
    return row if isinstance(row, dict) else f"found {type(row).__name__}, expected an object"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """``json`` would silently keep the last of duplicate keys."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("duplicate key")
    return row


def text_of(value: object) -> str | None:
    """A cell as :func:`rows` gives it; None: neither a string nor a number."""
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    return None


def kind_of(value: object) -> str:
    """What a value that is no text is, for an error."""
    return str(value) if isinstance(value, float) else type(value).__name__
