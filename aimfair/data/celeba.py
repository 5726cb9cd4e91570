"""CelebA (Liu et al., 2015) as its authors hand it out: ``img_align_celeba/``, ``list_attr_celeba.txt`` and
``list_eval_partition.txt``.

The splits are the official ones.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from aimfair.config import DataSettings
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected, unknown_name
from aimfair.errors import AimfairError

IMAGES = "img_align_celeba"
ATTRIBUTES = "list_attr_celeba.txt"
PARTITION = "list_eval_partition.txt"

_VALUES = {"-1": 0, "1": 1}
_PARTITIONS = {str(number): number for number in range(len(SPLITS))}


def read(root: Path, settings: DataSettings) -> Catalogue:
    """All images that both tables list.

    Attributes are named as in the header ("Smiling", "Male"); class 1 has the attribute. A row that is malformed, or is
    in one of the two tables only, is rejected.

    Raises:
        ConfigError: an attribute does not exist.
        AimfairError: a table is missing or has another form.
    """
    lines = _lines(root / ATTRIBUTES)
    _, first = next(lines, (1, []))
    _, names = next(lines, (2, []))
    if len(first) != 1 or not first[0].isdecimal():
        found = " ".join(first)[:40]
        raise AimfairError(f"{root / ATTRIBUTES}:1: found {found!r}, expected the number of images, alone")
    for key, name in (("data.target", settings.target), ("data.protected", settings.protected)):
        if name not in names:
            raise unknown_name(key, name, names, f"the header of {root / ATTRIBUTES}")
    places = [names.index(settings.target), names.index(settings.protected)]

    rejected: list[Rejected] = []
    labels: dict[str, tuple[int, int]] = {}
    for line, (file, *values) in lines:
        if len(values) != len(names) or not all(values[place] in _VALUES for place in places):
            rejected.append(Rejected(f"{ATTRIBUTES}:{line}", f"expected a file and {len(names)} values of -1 or 1"))
        elif Path(file).name != file or file in labels:
            rejected.append(Rejected(f"{ATTRIBUTES}:{line}", f"{file!r} is no name of a file, or is there twice"))
        else:
            labels[file] = (_VALUES[values[places[0]]], _VALUES[values[places[1]]])

    splits: dict[str, int] = {}
    for line, cells in _lines(root / PARTITION):
        if len(cells) != 2 or cells[1] not in _PARTITIONS or cells[0] in splits:
            rejected.append(Rejected(f"{PARTITION}:{line}", "expected a file, once, and 0, 1 or 2"))
        else:
            splits[cells[0]] = _PARTITIONS[cells[1]]
    rejected += [Rejected(file, f"not in {PARTITION}") for file in sorted(labels.keys() - splits.keys())]
    rejected += [Rejected(file, f"not in {ATTRIBUTES}") for file in sorted(splits.keys() - labels.keys())]

    rows = sorted((splits[file], file, *labels[file]) for file in labels.keys() & splits.keys())
    split, target, protected = (np.array([row[column] for row in rows], dtype=np.int64) for column in (0, 2, 3))
    return Catalogue(
        root=root,
        listing=PARTITION,
        files=tuple(f"{IMAGES}/{row[1]}" for row in rows),
        split=split,
        target=target,
        protected=protected,
        target_names=_names(settings.target),
        protected_names=_names(settings.protected),
        rows=len(rows) + len(rejected),
        rejected=tuple(rejected),
    )


def _names(attribute: str) -> tuple[str, str]:
    return f"not {attribute}", attribute


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The words of each line that has any, with its number."""
    try:
        with path.open(encoding="utf-8") as file:
            for line, text in enumerate(file, 1):
                if words := text.split():
                    yield line, words
    except (OSError, UnicodeDecodeError) as error:
        raise AimfairError(f"{path}: cannot be read: {error}; data.root must hold CelebA's {path.name}") from error
