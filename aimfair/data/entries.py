"""Turns rows of a user's table into a catalogue with each file once.

Unusable rows are skipped and counted; ``data.max_bad_share`` limits their share.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.data.catalogue import Catalogue, Rejected, naming_left_out, reasons
from aimfair.data.labels import UNKNOWN, Attribute, Labels
from aimfair.data.settings import DataSettings
from aimfair.data.spellings import Spellings

_WHOLE = re.compile(r"(-?\d+)\.0+", re.ASCII)
"""As pandas writes integers of a column with missing values."""


class Entry(NamedTuple):
    """One image.

    Attributes:
        split: number of its split; 0 if there are no splits.
        file: path relative to the data set's folder, as :meth:`aimfair.data.files.Files.find` gives it.
        values: values of its attributes, in the order of ``settings.roles()``.
        cluster: its value of ``data.group_column``, if that is set.
    """

    split: int
    file: str
    values: tuple[str, ...]
    cluster: str | None


def entry(settings: DataSettings, split: int, file: str, values: Iterable[str], cluster: str | None) -> Entry:
    """A checked row. A missing value of an attribute of ``data.audit`` becomes
    :data:`aimfair.data.labels.UNKNOWN`, so no training image is lost to it.

    Raises:
        ValueError: a value is missing or not printable; with that reason.
    """
    texts = tuple(
        _value(name, text, settings.missing, optional=key == "data.audit")
        for (name, key), text in zip(settings.roles().items(), values, strict=True)
    )
    if cluster is not None:
        cluster = _value(str(settings.group_column), cluster, settings.missing, optional=False)
    return Entry(split, file, texts, cluster)


def _value(name: str, text: str, missing: Sequence[str], optional: bool) -> str:
    if not text or text in missing or text.lower() in missing:
        if optional:
            return UNKNOWN
        counts = "which counts as missing (data.missing)" if text else "expected a value in every row"
        raise ValueError(f"{name!r} is {text!r}, {counts}")
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
    spellings: Iterable[Spellings] = (),
    notes: Iterable[str] = (),
) -> Catalogue:
    """All entries, sorted by split and file; duplicate rows of a file count once, or not at all if they differ.

    Args:
        listing: as in :class:`aimfair.data.catalogue.Catalogue`.
        entries: (place relative to ``root``, entry or the reason why the row is unusable).
        others: further rejected files.
        spellings: further values that are probably one.
        notes: as in :class:`aimfair.data.catalogue.Catalogue`.

    Raises:
        ConfigError: as :meth:`aimfair.data.labels.Labels.of`.
        AimfairError: there are no usable rows.
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
            rejected += [Rejected(place, f"{file!r} is also at {first}") for place, _ in more]
        else:
            listed = [first, *(place for place, _ in more)]
            reason = f"{file!r} is at {' and '.join(listed[:2])}, with different values"
            rejected += [Rejected(place, reason) for place in listed]
    if not rows:
        found = "found no rows"
        if rejected:
            found = f"none of {len(rejected):,} rows can be used: {reasons(rejected)}"
        raise AimfairError(f"{root / listing}: {found}, expected one for each image")
    rejected += others
    rows.sort()
    known_attributes = {
        name: Attribute.of_texts([row.values[place] for row in rows]) for place, name in enumerate(settings.roles())
    }
    total = len(rows) + len(rejected)
    with naming_left_out(rejected, total, "rows"):
        labels = Labels.of(settings, known_attributes)
    return Catalogue(
        root=root,
        listing=listing,
        files=tuple(row.file for row in rows),
        split=np.array([row.split for row in rows], dtype=np.int64) if has_splits else None,
        labels=labels,
        rows=total,
        rejected=tuple(rejected),
        clusters=None if settings.group_column is None else tuple(str(row.cluster) for row in rows),
        spellings=(*_spellings(settings, rows, known_attributes), *spellings),
        notes=tuple(notes),
    )


def _spellings(settings: DataSettings, rows: Sequence[Entry], known: Mapping[str, Attribute]) -> Iterator[Spellings]:
    for name, key in settings.roles().items():
        counts = np.bincount(known[name].values, minlength=len(known[name].names)).tolist()
        yield from Spellings.of(key, name, dict(zip(known[name].names, counts, strict=True)))
    if settings.group_column is not None:
        yield from Spellings.of("data.group_column", settings.group_column, Counter(str(row.cluster) for row in rows))
