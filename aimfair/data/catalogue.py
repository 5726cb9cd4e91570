"""Files and labels of a data set, before any image is opened."""

import difflib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.log import Log
from aimfair.base.storage import Storage
from aimfair.data.labels import Labels
from aimfair.data.sources import Folder, Source
from aimfair.data.spellings import Spellings, distinct, folded_unicode

SPLITS = ("train", "val", "test")
"""Splits in the order of their numbers."""

_SPLIT_NAMES = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "dev": 1, "test": 2, "testing": 2}

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""Suffixes of image files; the format is detected by content."""

_SHOWN = 5

_PARTICULARS = re.compile(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|\d([\d,.]*\d)?")


class Rejected(NamedTuple):
    """A row or file that is skipped."""

    name: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """N images by name, with their labels.

    Attributes:
        root: folder of the data set, or its URL.
        listing: the file in ``root`` to edit to remove an image.
        files: N distinct paths relative to ``root``, sorted within each split.
        split: int64 [N], numbers in :data:`SPLITS`, ascending; None: the data set has no splits.
        labels: of the N images.
        rows: number of rows or file names read.
        rejected: the unusable ones among them.
        clusters: N values of ``data.group_column``; None: it is not set.
        spellings: values that are probably one.
        notes: how the data set was read, where it is not as documented.
        shards: reads the images, if several are in a file; None: each is a file.
    """

    root: Path | Storage
    listing: str
    files: tuple[str, ...]
    split: npt.NDArray[np.int64] | None
    labels: Labels
    rows: int
    rejected: tuple[Rejected, ...] = ()
    clusters: tuple[str, ...] | None = None
    spellings: tuple[Spellings, ...] = ()
    notes: tuple[str, ...] = ()
    shards: Source | None = None

    @property
    def source(self) -> Source:
        """Reads the images."""
        return self.shards or Folder(Path(str(self.root)))

    @property
    def target(self) -> npt.NDArray[np.int64]:
        """int64 [N], y."""
        return self.labels.target.values

    @property
    def protected(self) -> npt.NDArray[np.int64]:
        """int64 [N], a."""
        return self.labels.protected.values

    @property
    def target_names(self) -> tuple[str, ...]:
        """Names of the Y classes."""
        return self.labels.target.names

    @property
    def protected_names(self) -> tuple[str, ...]:
        """Names of the A values."""
        return self.labels.protected.names

    def subset(self, indices: npt.NDArray[np.int64]) -> "Catalogue":
        """The images at ``indices``, in that order."""
        return replace(
            self,
            files=tuple(self.files[number] for number in indices),
            split=None if self.split is None else self.split[indices],
            labels=self.labels.subset(indices),
            clusters=None if self.clusters is None else tuple(self.clusters[number] for number in indices),
        )


def relative_file(text: str) -> str:
    """``text`` as a path inside its data set, normalized: no "." and no doubled "/".

    Raises:
        ValueError: it is empty, absolute, outside the folder, or no valid file name.
    """
    path = PurePosixPath(text)
    unnameable = any("\ud800" <= character <= "\udfff" for character in text)  # JSON can hold half a character
    if unnameable or not path.name or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError(f"found file {text!r}, expected a path inside the data set's folder")
    return str(path)


def image_files(root: Path) -> list[str]:
    """Paths relative to ``root``, with "/", of all files below it with an image suffix; sorted.

    ``._x.jpg`` is skipped: macOS stores metadata of ``x.jpg`` in such files.

    Raises:
        OSError: a folder cannot be listed.
    """
    return sorted(
        (Path(folder) / name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, onerror=_refuse)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("._")
    )


def _refuse(error: OSError) -> None:
    """``os.walk`` would silently skip a folder that it cannot read."""
    raise error


def split_number(name: str) -> int | None:
    """The number in :data:`SPLITS` of a split's name, in any case: train or training; val, valid, validation or dev;
    test or testing. None: another name."""
    return _SPLIT_NAMES.get(folded_unicode(name))


def refuse_synonyms(found: Iterable[str], where: str) -> None:
    """Refuses two names of one split, such as "val" and "dev", which may differ in meaning; "val" and "Val" do not.

    Args:
        found: names that :func:`split_number` knows.

    Raises:
        AimfairError: a split has two names.
    """
    spelled: dict[int, str] = {}
    for name in sorted(set(found)):
        split = _SPLIT_NAMES[folded_unicode(name)]
        first = spelled.setdefault(split, name)
        if folded_unicode(first) != folded_unicode(name):
            raise AimfairError(f"{where}: found splits {first!r} and {name!r}, expected one {SPLITS[split]!r}")


def by_reason(rejected: Sequence[Rejected]) -> list[tuple[str, list[Rejected]]]:
    """Groups of one reason, the largest first. A reason that recurs word for word is one; of others, names and numbers
    are ignored and replaced by "..."."""
    times = Counter(one.reason for one in rejected)
    groups: defaultdict[str, list[Rejected]] = defaultdict(list)
    for one in rejected:
        groups[one.reason if times[one.reason] > 1 else _PARTICULARS.sub("...", one.reason)].append(one)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def reasons(rejected: Sequence[Rejected]) -> str:
    """The first row or file of each group of :func:`by_reason`, and how many more it has."""
    groups = by_reason(rejected)
    shown = []
    for _, (first, *more) in groups[:_SHOWN]:
        shown.append(f"{first.name!r}{f' and {len(more):,} more' if more else ''}: {first.reason}")
    others = sum(len(group) for _, group in groups[_SHOWN:])
    return "; ".join(shown) + (f"; and {others:,} more" if others else "")


@contextmanager
def naming_left_out(rejected: Sequence[Rejected], total: int, what: str) -> Iterator[None]:
    """Adds to an error what was left out before: the cause may be there.

    Args:
        what: rows or images.
    """
    try:
        yield
    except AimfairError as error:
        if not rejected:
            raise
        raise type(error)(f"{error}{left_out(rejected, total, what)}") from error


def left_out(rejected: Sequence[Rejected], total: int, what: str) -> str:
    """The end of an error: "; 3 of 40 rows are left out: ...", or nothing if there are none."""
    return f"; {len(rejected):,} of {total:,} {what} are left out: {reasons(rejected)}" if rejected else ""


def leave_out(rejected: Sequence[Rejected], total: int, what: str, max_share: float, log: Log) -> None:
    """Warns of the ``rejected`` among ``total`` rows or files; the log file lists all of them.

    Args:
        what: the kind of rows or files, such as "images of /data/faces".
        max_share: ``data.max_bad_share``.

    Raises:
        AimfairError: they are more than ``max_share`` of the total.
    """
    if not rejected:
        return
    count = f"{len(rejected):,} of {total:,} {what}"
    if len(rejected) > max_share * total:
        raise AimfairError(
            f"{count} cannot be used, a larger share than the {max_share:g} of data.max_bad_share: {reasons(rejected)}"
        )
    log.warn(f"{count} left out: {reasons(rejected)}", rejected=[list(one) for one in rejected])


def unknown_name(key: str, found: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a setting whose value is not among the ``known`` names in ``where``, with the nearest one."""
    known = list(known)
    same = [name for name in known if folded_unicode(name) == folded_unicode(found)]
    near = same[:1] or difflib.get_close_matches(found, known, 1, 0.5)
    shown, *nearest = distinct([found, *near])
    expected = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(known)}"
    return ConfigError(f"{key}: found {shown}, which {where} does not have; {expected}")
