"""CelebA (Liu et al., 2015) as published, with ``list_attr_celeba.txt`` and ``list_eval_partition.txt``, or with
the same lists as ``.csv``, as on mirrors.

The images are in ``img_align_celeba/``, or in a folder of the same name inside it. The splits are the official ones.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from aimfair.base.errors import AimfairError
from aimfair.data.catalogue import SPLITS, Catalogue, Rejected, left_out, naming_left_out, reasons, unknown_name
from aimfair.data.files import Files
from aimfair.data.labels import Attribute, Labels
from aimfair.data.settings import DataSettings
from aimfair.data.text import utf8

IMAGES = "img_align_celeba"
ATTRIBUTES = "list_attr_celeba"
PARTITION = "list_eval_partition"

OFFICIAL_IMAGES = 202_599

_PUBLISHED = {
    ("Smiling", "Male"): ((5354, 4621), (6893, 3094)),
    ("Smiling", "Young"): ((2358, 7617), (2490, 7497)),
    ("Young", "Male"): ((1916, 2932), (10331, 4783)),
}
"""(target, protected) -> test images of each group, [Y][A], of the official partition (arXiv 2503.05665)."""

_VALUES = {"-1": 0, "1": 1}
_PARTITIONS = {str(number): number for number in range(len(SPLITS))}

_Line = tuple[int, list[str]]


def read(root: Path, settings: DataSettings) -> Catalogue:
    """All images in both lists.

    Attributes are named as in the header ("Smiling", "Male"); value 1 has the attribute. Malformed rows and
    rows in only one list are rejected.

    Raises:
        ConfigError: an attribute does not exist, or all images have the same value of it.
        AimfairError: a list or the folder of the images is missing, duplicated or malformed.
    """
    attributes, partition = _list(root, ATTRIBUTES), _list(root, PARTITION)
    names, lines = _header(attributes)
    for name, key in settings.roles().items():
        if name not in names:
            raise unknown_name(key, name, names, f"the header of {attributes}")
    labels, malformed = _labels(attributes.name, names, lines, [names.index(name) for name in settings.roles()])
    splits, out_of_place = _splits(partition)
    rejected = [
        *malformed,
        *out_of_place,
        *(Rejected(file, f"not in {partition.name}") for file in sorted(labels.keys() - splits.keys())),
        *(Rejected(file, f"not in {attributes.name}") for file in sorted(splits.keys() - labels.keys())),
    ]
    rows = sorted((splits[file], file) for file in labels.keys() & splits.keys())
    if not rows:
        raise AimfairError(
            f"{attributes}: found no image that is also in {partition.name}, expected {OFFICIAL_IMAGES:,}"
            + left_out(rejected, len(rejected), "rows")
        )
    folder = _images(root, rows[0][1])
    disk, files = Files(root), {}
    for _, file in rows:
        try:
            files[file] = disk.find(file, f"{folder}/")
        except ValueError as error:
            rejected.append(Rejected(file, str(error)))
    rows = [row for row in rows if row[1] in files]
    if not rows:
        raise AimfairError(f"{partition}: none of {len(rejected):,} rows can be used: {reasons(rejected)}")
    values_of = np.array([labels[file] for _, file in rows], dtype=np.int64).T
    known = {
        name: Attribute(values, (f"not {name}", name)) for name, values in zip(settings.roles(), values_of, strict=True)
    }
    total = len(rows) + len(rejected)
    with naming_left_out(rejected, total, "rows"):
        roles = Labels.of(settings, known)
    return Catalogue(
        root=root,
        listing=partition.name,
        files=tuple(files[file] for _, file in rows),
        split=np.array([split for split, _ in rows], dtype=np.int64),
        labels=roles,
        rows=total,
        rejected=tuple(rejected),
        notes=tuple(disk.notes),
    )


def _labels(
    listing: str, names: Sequence[str], lines: Iterator[_Line], places: Sequence[int]
) -> tuple[dict[str, tuple[int, ...]], list[Rejected]]:
    """File -> its values at these places among the ``names`` of attributes, and the malformed lines."""
    labels: dict[str, tuple[int, ...]] = {}
    rejected = []
    for line, (file, *values) in lines:
        if len(values) != len(names) or not all(values[place] in _VALUES for place in places):
            rejected.append(Rejected(f"{listing}:{line}", f"expected a file and {len(names)} values of -1 or 1"))
        elif Path(file).name != file or file in labels:
            rejected.append(Rejected(f"{listing}:{line}", f"{file!r} is not a file name, or occurs twice"))
        else:
            labels[file] = tuple(_VALUES[values[place]] for place in places)
    return labels, rejected


def _splits(partition: Path) -> tuple[dict[str, int], list[Rejected]]:
    """File -> number of its split, and the malformed lines."""
    splits: dict[str, int] = {}
    rejected = []
    for line, cells in _partition(partition):
        if len(cells) != 2 or cells[1] not in _PARTITIONS or cells[0] in splits:
            rejected.append(Rejected(f"{partition.name}:{line}", "expected a file, once, and 0, 1 or 2"))
        else:
            splits[cells[0]] = _PARTITIONS[cells[1]]
    return splits, rejected


def published_counts(target: str, protected: str) -> list[list[int]] | None:
    """[Y][A]: test images of each group of the official list, if the AIM-Fair paper (arXiv 2503.05665) gives them;
    else None."""
    counts = _PUBLISHED.get((target, protected))
    return None if counts is None else [list(row) for row in counts]


def differs_from_published(catalogue: Catalogue, settings: DataSettings) -> str | None:
    """A warning if a list of the official length has other test images than published; None if not, or if nothing is
    published."""
    published = published_counts(settings.target, settings.protected)
    if published is None or catalogue.rows != OFFICIAL_IMAGES or catalogue.split is None:
        return None
    # With data.intersect_with, the protected attribute itself is among the further ones.
    protected = catalogue.labels.attributes.get(settings.protected, catalogue.labels.protected)
    test = catalogue.split == SPLITS.index("test")
    found = np.zeros((2, 2), dtype=np.int64)
    np.add.at(found, (catalogue.target[test], protected.values[test]), 1)
    if found.tolist() == published:
        return None
    return (
        f"{catalogue.root / catalogue.listing}: test images of the groups of {settings.target} by {settings.protected}:"
        f" found {found.tolist()}, expected {published} as published; the lists are not the official ones"
    )


def _list(root: Path, name: str) -> Path:
    """The list of that name, as .txt or .csv."""
    there = [path for suffix in (".txt", ".csv") if (path := root / f"{name}{suffix}").is_file()]
    if not there:
        raise AimfairError(f"{root}: found neither {name}.txt nor {name}.csv; is data.root CelebA's folder?")
    if len(there) > 1:
        raise AimfairError(f"{root}: found {name}.txt and {name}.csv, expected one of them; which is the right one?")
    return there[0]


def _images(root: Path, first: str) -> str:
    """The folder of the images, relative to ``root``; some mirrors nest it in another of the same name."""
    outer, inner = root / IMAGES, root / IMAGES / IMAGES
    if not outer.is_dir():
        raise AimfairError(f"{outer}: found no such folder, expected CelebA's images there")
    if not inner.is_dir():
        return IMAGES
    if (outer / first).exists():
        raise AimfairError(f"{outer}: found images in it and in {inner}, expected them in one of the two")
    return f"{IMAGES}/{IMAGES}"


def _header(path: Path) -> tuple[list[str], Iterator[_Line]]:
    """The names of the attributes, and the other lines."""
    if path.suffix == ".csv":
        lines = _csv_lines(path, "image_id")
        return next(lines)[1][1:], lines
    lines = _txt_lines(path)
    _, first = next(lines, (1, []))
    _, names = next(lines, (2, []))
    if len(first) != 1 or not first[0].isdecimal():
        found = " ".join(first)[:40]
        raise AimfairError(f"{path}:1: found {found!r}, expected the number of images, alone")
    return names, lines


def _partition(path: Path) -> Iterator[_Line]:
    if path.suffix == ".txt":
        return _txt_lines(path)
    lines = _csv_lines(path, "image_id,partition")
    next(lines)
    return lines


def _txt_lines(path: Path) -> Iterator[_Line]:
    """Number and words of each line that is not blank."""
    return _lines(path, lambda text: text.split())


def _csv_lines(path: Path, begins: str) -> Iterator[_Line]:
    """Number and cells of each line that is not blank; first the header, which must start with ``begins``."""
    lines = _lines(path, lambda text: [cell.strip() for cell in next(csv.reader([text.strip()]), [])])
    line, header = next(lines, (1, []))
    if header[: len(begins.split(","))] != begins.split(","):
        raise AimfairError(f"{path}:{line}: found {','.join(header)[:40]!r}, expected a header that begins {begins!r}")
    yield line, header
    yield from lines


def _lines(path: Path, parts: Callable[[str], list[str]]) -> Iterator[_Line]:
    try:
        with utf8(path) as file:
            for line, text in enumerate(file, 1):
                if cells := parts(text):
                    yield line, cells
    except csv.Error as error:
        raise AimfairError(f"{path}: cannot be read: {error}") from error
