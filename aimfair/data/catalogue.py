"""What a data set says of its images, before one of them is opened."""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from aimfair.errors import AimfairError, ConfigError
from aimfair.run.log import Log

SPLITS = ("train", "val", "test")
"""In this order wherever a number stands for a split."""

_SHOWN = 5


class Rejected(NamedTuple):
    """A row or file that is left out."""

    name: str
    reason: str


@dataclass(frozen=True)
class Catalogue:
    """N images by name, with their labels.

    Attributes:
        root: folder of the data set.
        listing: what to edit, in ``root``, to leave an image out.
        files: N paths relative to ``root``, without doublets; sorted within each split.
        split: int64 [N], numbers in :data:`SPLITS`, ascending; None: the data set has no splits of its own.
        target, protected: int64 [N], y and a.
        target_names, protected_names: names of the Y classes and of the A values.
        rows: rows or names that were read.
        rejected: those of them that are in none of ``files``.
    """

    root: Path
    listing: str
    files: tuple[str, ...]
    split: npt.NDArray[np.int64] | None
    target: npt.NDArray[np.int64]
    protected: npt.NDArray[np.int64]
    target_names: tuple[str, ...]
    protected_names: tuple[str, ...]
    rows: int
    rejected: tuple[Rejected, ...] = ()

    def subset(self, indices: npt.NDArray[np.int64]) -> "Catalogue":
        """The images at ``indices``, ascending."""
        return replace(
            self,
            files=tuple(self.files[number] for number in indices),
            split=None if self.split is None else self.split[indices],
            target=self.target[indices],
            protected=self.protected[indices],
        )


def relative_file(text: str) -> str:
    """``text`` as a path inside its data set, in the one spelling that has no "." and no doubled "/".

    Raises:
        ValueError: it is empty, absolute or leads out of the folder.
    """
    path = PurePosixPath(text)
    if not path.name or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise ValueError(f"found file {text!r}, expected a path inside the data set's folder")
    return str(path)


def leave_out(rejected: Sequence[Rejected], total: int, what: str, max_share: float, log: Log) -> None:
    """Warns of the ``rejected`` among ``total`` things, "images of /data/faces" for example; the log gets all of them.

    Names are shown as ``repr`` writes them: nobody but their giver knows what is in them.

    Raises:
        AimfairError: they are more than ``max_share`` of the total.
    """
    if not rejected:
        return
    first = "; ".join(f"{name!r}: {reason}" for name, reason in rejected[:_SHOWN])
    more = f"; and {len(rejected) - _SHOWN:,} more" if len(rejected) > _SHOWN else ""
    count = f"{len(rejected):,} of {total:,} {what}"
    if len(rejected) > max_share * total:
        raise AimfairError(
            f"{count} cannot be used, a larger share than the {max_share:g} of data.max_bad_share: {first}{more}"
        )
    log.warn(f"{count} left out: {first}{more}", rejected=[list(one) for one in rejected])


def unknown_name(key: str, found: str, known: Iterable[str], where: str) -> ConfigError:
    """The error for a setting that names nothing in ``where``, with the nearest name that does."""
    known = list(known)
    near = difflib.get_close_matches(found, known, 1, 0.5)
    expected = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
    return ConfigError(f"{key}: found {found!r}, which {where} does not have; {expected}")
