"""A user's own images: a folder with a table of labels, ``labels.csv``.

The table is UTF-8 with a header. Columns: ``file`` (a path inside the folder), ``split`` (train, val or test), and one
for each attribute, of which a run names two, ``data.target`` and ``data.protected``. More columns do no harm.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimfair.config import DataSettings
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected, relative_file, unknown_name
from aimfair.errors import AimfairError

TABLE = "labels.csv"


class _Row(NamedTuple):
    split: int
    file: str
    target: str
    protected: str


def read(root: Path, settings: DataSettings) -> Catalogue:
    """What ``labels.csv`` in ``root`` says. Classes are the values of a column, sorted; as numbers if all are whole.

    Raises:
        ConfigError: there is no such column.
        AimfairError: the table or a row of it cannot be used; a file is listed with two labels or in two splits.
    """
    path = root / TABLE
    lines: dict[str, tuple[int, _Row]] = {}
    rejected = []
    count = 0
    for line, row in _rows(path, settings):
        count += 1
        first, known = lines.setdefault(row.file, (line, row))
        if known != row:
            raise AimfairError(f"{path}:{line}: {row.file!r} is in line {first}, too, with another label or split")
        if first != line:
            rejected.append(Rejected(f"{TABLE}:{line}", f"{row.file!r} is in line {first}, too"))
    rows = sorted(row for _, row in lines.values())
    target_names = _classes({row.target for row in rows})
    protected_names = _classes({row.protected for row in rows})
    return Catalogue(
        root=root,
        listing=TABLE,
        files=tuple(row.file for row in rows),
        split=np.array([row.split for row in rows], dtype=np.int64),
        target=np.array([target_names.index(row.target) for row in rows], dtype=np.int64),
        protected=np.array([protected_names.index(row.protected) for row in rows], dtype=np.int64),
        target_names=target_names,
        protected_names=protected_names,
        rows=count,
        rejected=tuple(rejected),
    )


def _rows(path: Path, settings: DataSettings) -> Iterator[tuple[int, _Row]]:
    """The checked rows with their line numbers."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            places = [_column(path, header, key, name) for key, name in _columns(settings)]
            for cells in reader:
                if cells:
                    yield reader.line_num, _row(f"{path}:{reader.line_num}", cells, header, places)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AimfairError(f"{path}: cannot be read as a table of comma-separated values: {error}") from error


def _columns(settings: DataSettings) -> list[tuple[str, str]]:
    """Where each column's name comes from, and the name, in the order of :class:`_Row`."""
    return [
        (TABLE, "split"),
        (TABLE, "file"),
        ("data.target", settings.target),
        ("data.protected", settings.protected),
    ]


def _column(path: Path, header: list[str], key: str, name: str) -> int:
    if name not in header:
        raise unknown_name(key, name, header, f"the header of {path}")
    if header.count(name) > 1:
        raise AimfairError(f"{path}: column {name!r} is there {header.count(name)} times, expected once")
    return header.index(name)


def _row(where: str, cells: list[str], header: list[str], places: list[int]) -> _Row:
    if len(cells) != len(header):
        raise AimfairError(f"{where}: found {len(cells)} cells, expected {len(header)} as in the header")
    split, file, target, protected = (cells[place].strip() for place in places)
    if split not in SPLITS:
        raise AimfairError(f"{where}: found split {split!r}, expected one of {', '.join(SPLITS)}")
    if not target or not protected:
        raise AimfairError(f"{where}: the label of {file!r} is empty, expected a value in every row")
    try:
        return _Row(SPLITS.index(split), relative_file(file), target, protected)
    except ValueError as error:
        raise AimfairError(f"{where}: {error}") from error


def _classes(values: set[str]) -> tuple[str, ...]:
    whole = all(value.isdecimal() and value.isascii() for value in values)
    return tuple(sorted(values, key=lambda value: (int(value), value) if whole else (0, value)))
