"""Image folders as in Hugging Face's ``datasets``: ``metadata.csv``, ``.jsonl`` or ``.parquet`` with a column
``file_name``, in each split's folder (paths relative to it) or once in the root.

    root/train/metadata.csv     file_name,sex,age          root/metadata.csv     file_name,sex,age
    root/train/cat/1.jpg        cat/1.jpg,f,30 to 40       root/train/cat/1.jpg  train/cat/1.jpg,f,30 to 40
    root/test/metadata.csv
    root/test/dog/7.jpg

Splits are folders with a name of :func:`aimfair.data.catalogue.split_number`; without any, images are split at random.
The attribute ``label`` is the column of that name or, without one, the name of an image's folder (cat, dog).
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from aimfair.base.errors import AimfairError
from aimfair.data import entries
from aimfair.data.catalogue import (
    Catalogue,
    Rejected,
    image_files,
    refuse_synonyms,
    split_number,
    unknown_name,
)
from aimfair.data.files import Files
from aimfair.data.rows import header, notes, rows
from aimfair.data.settings import DataSettings
from aimfair.data.spellings import SPLIT, Spellings

LABEL = "label"
FILE_NAME = "file_name"

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read(root: Path, settings: DataSettings) -> Catalogue:
    """The images that the metadata list; others are rejected. Classes are sorted column values or folder names.

    Raises:
        ConfigError: there is no such attribute, or it has no two values.
        AimfairError: metadata are missing, duplicated or unusable.
    """
    splits = sorted(path.name for path in root.iterdir() if path.is_dir() and split_number(path.name) is not None)
    refuse_synonyms(splits, str(root))
    tables = _tables(root, splits, settings)
    _check_labels(root, tables, settings)
    listed: set[str] = set()
    files = Files(root)
    found = [one for table in tables for one in _entries(root, table, splits, settings, files, listed)]
    names = " or ".join(sorted({table.name for table in tables}))
    others = [Rejected(file, f"not in {names}") for file in image_files(root) if file not in listed]
    listing = tables[0].name if tables[0].parent == root else f"*/{names}"
    folders = Counter(one.file.partition("/")[0] for _, one in found if splits and not isinstance(one, str))
    return entries.catalogue(
        settings,
        root,
        listing,
        found,
        has_splits=bool(splits),
        others=others,
        spellings=Spellings.of(SPLIT, "folder", folders),
        notes=[*(note for table in tables for note in notes(table)), *files.notes],
    )


def _tables(root: Path, splits: list[str], settings: DataSettings) -> list[Path]:
    """The metadata of the root, or of each split's folder."""
    above = _table(root)
    in_splits = {split: table for split in splits if (table := _table(root / split)) is not None}
    if above is not None and in_splits:
        both = next(iter(in_splits.values()))
        raise AimfairError(f"{root}: found {above} and {both}, expected them once or in the folders of the splits")
    if above is not None:
        return [above]
    if not in_splits:
        raise AimfairError(
            f"{root}: found no {', '.join(_METADATA[:-1])} or {_METADATA[-1]}, expected one with a column {FILE_NAME}"
            f" and one for each of {', '.join(map(repr, settings.roles()))}: folders can give {LABEL!r} only"
        )
    for split in splits:
        if split not in in_splits:
            raise AimfairError(
                f"{root / split}: found no metadata, expected them as in {next(iter(in_splits.values()))}"
            )
    return list(in_splits.values())


def _table(folder: Path) -> Path | None:
    there = [path for path in sorted(folder.iterdir()) if path.name.lower() in _METADATA and path.is_file()]
    if len(there) > 1:
        raise AimfairError(f"{folder}: found {there[0].name} and {there[1].name}, expected one of them")
    return there[0] if there else None


def _check_labels(root: Path, tables: list[Path], settings: DataSettings) -> None:
    """Labels must come from a column in all splits, or from folder names in all."""
    if LABEL in settings.roles() and len({LABEL in header(table) for table in tables}) > 1:
        raise AimfairError(
            f"{root}: found a column {LABEL!r} in the metadata of some splits, expected it in all or none"
        )


def _entries(
    root: Path, table: Path, splits: list[str], settings: DataSettings, files: Files, listed: set[str]
) -> Iterator[tuple[str, entries.Entry | str]]:
    """(place, entry or reason why it is unusable) of each row.

    Args:
        listed: is extended by all files, including those of unusable rows.
    """
    columns = _columns(table, settings, has_splits=bool(splits))
    names = [name for _, name in columns]
    if settings.group_column is not None:
        columns.append(("data.group_column", settings.group_column))
    within = "" if table.parent == root else f"{table.parent.relative_to(root).as_posix()}/"
    for number, cells in rows(table, columns):
        place = f"{table.relative_to(root)}:{number}"
        if isinstance(cells, str):
            yield place, cells
            continue
        try:
            path = files.find(cells[0], within)
            listed.add(path)
            yield place, _entry(PurePosixPath(path), cells, splits, settings, from_folder=LABEL not in names)
        except ValueError as error:
            yield place, str(error)


def _entry(
    path: PurePosixPath, cells: list[str], splits: list[str], settings: DataSettings, *, from_folder: bool
) -> entries.Entry:
    """
    Args:
        from_folder: there is no column :data:`LABEL`.

    Raises:
        ValueError: the row is unusable; with the reason.
    """
    file, *values = cells
    cluster = None if settings.group_column is None else values.pop()
    split = 0
    folders = list(path.parts[:-1])
    if splits:
        known = split_number(folders.pop(0)) if folders else None
        if known is None:
            raise ValueError(f"found {file!r}, expected a path in {', '.join(splits)}")
        split = known
    roles = list(settings.roles())
    if from_folder and LABEL in roles:
        if len(folders) != 1:
            above = "its split" if splits else "the data set"
            raise ValueError(f"found {file!r}, expected one folder, the {LABEL!r}, between it and that of {above}")
        values.insert(roles.index(LABEL), folders[0])
    return entries.entry(settings, split, str(path), values, cluster)


def _columns(table: Path, settings: DataSettings, *, has_splits: bool) -> list[tuple[str, str]]:
    """Setting and name of each column to read: the file's and the attributes', except a label from folder names."""
    names = header(table)
    if FILE_NAME not in names:
        raise AimfairError(f"{table}: found no column {FILE_NAME!r} in {', '.join(names)[:200]!r}, expected it")
    if not has_splits and "split" in names:
        raise AimfairError(
            f"{table}: found a column 'split', expected folders of the splits; to split by it: data.kind table,"
            f" data.table {table.name}, data.file_column {FILE_NAME}"
        )
    for name, key in settings.roles().items():
        if name not in (*names, LABEL):
            raise unknown_name(key, name, [LABEL, *(one for one in names if one not in (FILE_NAME, LABEL))], str(table))
    return [("data.kind", FILE_NAME), *((key, name) for name, key in settings.roles().items() if name in names)]
