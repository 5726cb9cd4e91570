"""Rows of a user's table as a catalogue: each file once.

A row that cannot be used is left out and counted, whatever is wrong with it; ``data.max_bad_share`` says of how many
that may be so.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.data.catalogue import Catalogue, Rejected, relative_file
from aimfair.data.labels import UNKNOWN, Attribute, Labels
from aimfair.data.settings import DataSettings

_MISSING = {"", "-", "na", "n/a", "#n/a", "nan", "null", "<na>"}
"""What programs write for "not known", in small letters. As a class of its own nobody would want it."""

_PYTHON_NONE = "None"
"""The same, in this spelling alone: "none" is a class of its own in many a table, beside "mild" and "severe"."""

_WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)
"""As pandas writes whole numbers of a column that has gaps."""


class Entry(NamedTuple):
    """One image.

    Attributes:
        split: number of its split; 0 for all where there are none.
        file: path relative to the data set's folder, as :func:`aimfair.data.catalogue.relative_file` gives it.
        values: texts of its attributes, in the order of ``settings.roles()``.
        original: its text of ``data.group_column``, if that is set.
    """

    split: int
    file: str
    values: tuple[str, ...]
    original: str | None


def entry(settings: DataSettings, split: int, file: str, values: Iterable[str], original: str | None) -> Entry:
    """A row, checked. What is not known of an attribute of ``data.audit`` is a value of its own: no image is lost to
    training for it.

    Raises:
        ValueError: why it cannot be used: the path leads elsewhere, or a value is missing or not printable.
    """
    file = relative_file(file)
    texts = tuple(
        _value(name, text, optional=key == "data.audit")
        for (name, key), text in zip(settings.roles().items(), values, strict=True)
    )
    if original is not None:
        original = _value(str(settings.group_column), original, optional=False)
    return Entry(split, file, texts, original)


def _value(name: str, text: str, optional: bool) -> str:
    if text.lower() in _MISSING or text == _PYTHON_NONE:
        if optional:
            return UNKNOWN
        raise ValueError(f"{name!r} is {text!r}, expected a value in every row")
    if not text.isprintable():
        raise ValueError(f"{name!r} is {text!r}, expected printable text")
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def catalogue(
    settings: DataSettings,
    root: Path,
    listing: str,
    entries: Iterable[tuple[str, Entry | str]],
    *,
    has_splits: bool,
    others: Iterable[Rejected] = (),
) -> Catalogue:
    """All entries, sorted by split and file; of a file that is there twice the first, or none if they differ.

    Args:
        listing: as in :class:`aimfair.data.catalogue.Catalogue`.
        entries: with the place of each, relative to ``root``; a text says why the row there cannot be used.
        others: what else is left out.

    Raises:
        ConfigError: as :meth:`aimfair.data.labels.Labels.of`.
        AimfairError: there are none.
    """
    places: defaultdict[str, list[tuple[str, Entry]]] = defaultdict(list)
    rejected: list[Rejected] = []
    for place, one in entries:
        if isinstance(one, str):
            rejected.append(Rejected(place, one))
        else:
            places[one.file].append((place, one))
    rows: list[Entry] = []
    for file, ((first, known), *more) in places.items():
        if all(one == known for _, one in more):
            rows.append(known)
            rejected += [Rejected(place, f"{file!r} is at {first}, too") for place, _ in more]
        else:
            listed = [first, *(place for place, _ in more)]
            reason = f"{file!r} is at {' and '.join(listed[:2])}, with different values"
            rejected += [Rejected(place, reason) for place in listed]
    if not rows:
        found = "found no rows"
        if rejected:
            found = f"none of {len(rejected):,} rows can be used, for example {rejected[0].name}: {rejected[0].reason}"
        raise AimfairError(f"{root / listing}: {found}, expected one for each image")
    rejected += others
    rows.sort()
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
        originals=None if settings.group_column is None else tuple(str(row.original) for row in rows),
    )
