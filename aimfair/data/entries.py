"""Turns rows of a user's table into a catalogue with each file once.

Unusable rows are skipped and counted; ``data.max_bad_share`` limits their share.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.base.storage import Storage
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected, naming_left_out, reasons, split_number
from aimfair.data.labels import UNKNOWN, Attribute, Labels
from aimfair.data.settings import DataSettings
from aimfair.data.sources import Source
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


def split_of(name: str) -> int:
    """The number in :data:`aimfair.data.catalogue.SPLITS` of a split's name.

    Raises:
        ValueError: it is none; with that reason.
    """
    number = split_number(name)
    if number is None:
        raise ValueError(f"found split {name!r}, expected one of {', '.join(SPLITS)}")
    return number


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
    root: Path | Storage,
    listing: str,
    entries: Iterable[tuple[str, Entry | str]],
    *,
    has_splits: bool,
    others: Iterable[Rejected] = (),
    spellings: Iterable[Spellings] = (),
    notes: Iterable[str] = (),
    shards: Source | None = None,
) -> Catalogue:
    """All entries, sorted by split and file; duplicate rows of a file count once, or not at all if they differ.

    Args:
        listing: as in :class:`aimfair.data.catalogue.Catalogue`.
        entries: (place relative to ``root``, entry or the reason why the row is unusable).
        others: further rejected files.
        spellings, notes, shards: as in :class:`aimfair.data.catalogue.Catalogue`; spellings, besides those of the
            attributes, and notes are read after the entries.

    Raises:
        ConfigError: as :meth:`aimfair.data.labels.Labels.of`.
        AimfairError: there are no usable rows.
    """
    files, of_kind, kinds, rejected = _collect(entries)
    if not files:
        found = "found no rows"
        if rejected:
            found = f"none of {len(rejected):,} rows can be used: {reasons(rejected)}"
        raise AimfairError(f"{root / listing}: {found}, expected one for each image")
    rejected += others
    known_attributes = {
        name: Attribute.of_texts([kind.values[place] for kind in kinds]).subset(of_kind)
        for place, name in enumerate(settings.roles())
    }
    clusters = None
    if settings.group_column is not None:
        clusters = tuple(str(kinds[number].cluster) for number in of_kind)
    total = len(files) + len(rejected)
    with naming_left_out(rejected, total, "rows"):
        labels = Labels.of(settings, known_attributes)
    return Catalogue(
        root=root,
        listing=listing,
        files=tuple(files),
        split=np.array([kind.split for kind in kinds], dtype=np.int64)[of_kind] if has_splits else None,
        labels=labels,
        rows=total,
        rejected=tuple(rejected),
        clusters=clusters,
        spellings=(*_spellings(settings, clusters, known_attributes), *spellings),
        notes=tuple(notes),
        shards=shards,
    )


def _collect(
    entries: Iterable[tuple[str, Entry | str]],
) -> tuple[list[str], npt.NDArray[np.int64], list[Entry], list[Rejected]]:
    """N files sorted by split and name, each once, for each the number of its kind, the K kinds, and rejected rows.

    A kind is what rows of the same split, values and cluster have in common, an entry without a file: a million rows
    are a million names and numbers.
    """
    files: list[str] = []
    places: list[str] = []
    numbers: list[int] = []
    kinds: dict[Entry, int] = {}
    rejected: list[Rejected] = []
    for place, one in entries:
        if isinstance(one, str):
            rejected.append(Rejected(place, one))
        else:
            files.append(one.file)
            places.append(place)
            numbers.append(kinds.setdefault(Entry(one.split, "", one.values, one.cluster), len(kinds)))
    kept: list[int] = []
    for file, rows in itertools.groupby(sorted(range(len(files)), key=files.__getitem__), key=files.__getitem__):
        first, *more = rows
        if all(numbers[row] == numbers[first] for row in more):
            kept.append(first)
            rejected += [Rejected(places[row], f"{file!r} is also at {places[first]}") for row in more]
        else:
            listed = [places[row] for row in (first, *more)]
            reason = f"{file!r} is at {' and '.join(listed[:2])}, with different values"
            rejected += [Rejected(place, reason) for place in listed]
    order = np.array(kept, dtype=np.int64)
    present, of_kind = np.unique(np.array(numbers, dtype=np.int64)[order], return_inverse=True)
    found = [list(kinds)[number] for number in present]
    by_split = np.argsort(np.array([kind.split for kind in found], dtype=np.int64)[of_kind], kind="stable")
    return [files[row] for row in order[by_split]], of_kind[by_split], found, rejected


def _spellings(
    settings: DataSettings, clusters: Sequence[str] | None, known: Mapping[str, Attribute]
) -> Iterator[Spellings]:
    for name, key in settings.roles().items():
        counts = np.bincount(known[name].values, minlength=len(known[name].names)).tolist()
        yield from Spellings.of(key, name, dict(zip(known[name].names, counts, strict=True)))
    if settings.group_column is not None and clusters is not None:
        yield from Spellings.of("data.group_column", settings.group_column, Counter(clusters))
