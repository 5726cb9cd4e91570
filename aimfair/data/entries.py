"""Rows of a user's table as a catalogue: each file once."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimfair.config import DataSettings
from aimfair.data.catalogue import Catalogue, Rejected, relative_file
from aimfair.data.labels import Attribute, Labels
from aimfair.errors import AimfairError

_MISSING = {"", "nan", "NaN", "null", "NULL", "<NA>"}
"""What programs write for "not known". As a class of its own nobody would want it."""


class Entry(NamedTuple):
    """One image.

    Attributes:
        split: number of its split; 0 for all where there are none.
        file: path relative to the data set's folder, as :func:`aimfair.data.catalogue.relative_file` gives it.
        values: texts of its attributes, in the order of ``settings.roles()``.
    """

    split: int
    file: str
    values: tuple[str, ...]


def entry(where: str, split: int, file: str, values: Iterable[str]) -> Entry:
    """The row at ``where``, checked.

    Raises:
        AimfairError: the path leads elsewhere, or a value is missing or not printable.
    """
    values = tuple(values)
    try:
        file = relative_file(file)
    except ValueError as error:
        raise AimfairError(f"{where}: {error}") from error
    for value in values:
        if value in _MISSING:
            raise AimfairError(f"{where}: a label of {file!r} is {value!r}, expected a value in every row")
        if not value.isprintable():
            raise AimfairError(f"{where}: a label of {file!r} is {value!r}, expected printable text")
    return Entry(split, file, values)


def catalogue(
    settings: DataSettings,
    root: Path,
    listing: str,
    entries: Iterable[tuple[str, Entry]],
    *,
    has_splits: bool,
    others: Iterable[Rejected] = (),
) -> Catalogue:
    """All entries, sorted by split and file; of a file that is there twice with the same labels, the first.

    Args:
        listing: as in :class:`aimfair.data.catalogue.Catalogue`.
        entries: with the place of each, relative to ``root``.
        others: what else is left out.

    Raises:
        ConfigError: as :meth:`aimfair.data.labels.Labels.of`.
        AimfairError: there are none, or one file has two labels or is in two splits.
    """
    first: dict[str, tuple[str, Entry]] = {}
    rejected = []
    for place, one in entries:
        known_place, known = first.setdefault(one.file, (place, one))
        if known != one:
            raise AimfairError(
                f"{root / place}: {one.file!r} is at {known_place}, too, with another label or in another split"
            )
        if known_place != place:
            rejected.append(Rejected(place, f"{one.file!r} is at {known_place}, too"))
    if not first:
        raise AimfairError(f"{root / listing}: found no rows, expected one for each image")
    rejected += others
    rows = sorted(one for _, one in first.values())
    known_attributes = {
        name: Attribute.of_texts([row.values[place] for row in rows]) for place, name in enumerate(settings.roles())
    }
    return Catalogue(
        root=root,
        listing=listing,
        files=tuple(row.file for row in rows),
        split=np.array([row.split for row in rows], dtype=np.int64) if has_splits else None,
        labels=Labels.of(settings, known_attributes),
        rows=len(rows) + len(rejected),
        rejected=tuple(rejected),
    )
