"""A user's own images: a folder with a table of labels, ``data.table``.

:mod:`aimfair.data.rows` lists the formats. Columns: ``data.file_column`` (a path inside the folder),
``data.split_column`` (names of :func:`aimfair.data.catalogue.split_number`) unless that is null, one for each attribute
in the settings, and ``data.group_column`` if set. Further columns are ignored.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aimfair.base.errors import ConfigError
from aimfair.data import entries
from aimfair.data.catalogue import Catalogue, refuse_synonyms
from aimfair.data.files import Files
from aimfair.data.rows import notes, rows
from aimfair.data.settings import TABLES, DataSettings
from aimfair.data.spellings import SPLIT, Spellings

_SHOWN = 5


def read(root: Path, settings: DataSettings) -> Catalogue:
    """The images of the table in ``root``. Classes are the sorted values of a column.

    Raises:
        ConfigError: a column does not exist or has fewer than two values, or there are only other tables.
        AimfairError: the table is unusable, or all of its rows are.
    """
    _check_there(root / settings.table)
    names: Counter[str] = Counter()
    files = Files(root)
    return entries.catalogue(
        settings,
        root,
        settings.table,
        _entries(root, settings, files, names),
        has_splits=settings.split_column is not None,
        spellings=Spellings.of(SPLIT, str(settings.split_column), names),
        notes=_notes(root / settings.table, files),
    )


def _notes(table: Path, files: Files) -> Iterator[str]:
    """Of the table and, once its rows are read, of the files."""
    yield from notes(table)
    yield from files.notes


def _check_there(path: Path) -> None:
    if path.exists():
        return
    others = sorted(one.name for one in path.parent.glob("*") if one.suffix.lower() in TABLES)
    there = f"but {', '.join(others[:_SHOWN])}; name one of them" if others else "nor any other table in its folder"
    raise ConfigError(f"data.table: {path} does not exist, {there}")


def _entries(
    root: Path, settings: DataSettings, files: Files, names: Counter[str]
) -> Iterator[tuple[str, entries.Entry | str]]:
    """(place, entry or reason why it is unusable) of each row.

    Args:
        names: counts the names of splits.
    """
    columns = [("data.file_column", settings.file_column), *((key, name) for name, key in settings.roles().items())]
    if settings.group_column is not None:
        columns.append(("data.group_column", settings.group_column))
    if settings.split_column is not None:
        columns.append(("data.split_column", settings.split_column))
    for number, cells in rows(root / settings.table, columns):
        yield f"{settings.table}:{number}", cells if isinstance(cells, str) else _entry(cells, settings, files, names)
    refuse_synonyms(names, str(root / settings.table))


def _entry(cells: list[str], settings: DataSettings, files: Files, names: Counter[str]) -> entries.Entry | str:
    """The entry of a row, or the reason why it is unusable.

    Args:
        names: counts the name of the split.
    """
    file, *values = cells
    try:
        split = 0
        if settings.split_column is not None:
            name = values.pop()
            split = entries.split_of(name)
            names[name] += 1
        cluster = None if settings.group_column is None else values.pop()
        return entries.entry(settings, split, files.find(file), values, cluster)
    except ValueError as error:
        return str(error)
