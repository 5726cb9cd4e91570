"""A user's own images: a folder with a table of labels, ``data.table``.

:mod:`aimfair.data.rows` says what tables there are. Columns: ``data.file_column`` (a path inside the folder),
``data.split_column`` (names as :func:`aimfair.data.catalogue.split_number` knows them) unless that is null, and one for
each attribute that the settings name. More columns do no harm.
"""

from collections.abc import Iterator
from pathlib import Path

from aimfair.config import DataSettings
from aimfair.data import entries
from aimfair.data.catalogue import SPLITS, Catalogue, one_spelling, split_number
from aimfair.data.rows import rows
from aimfair.errors import AimfairError


def read(root: Path, settings: DataSettings) -> Catalogue:
    """What the table in ``root`` says. Classes are the values of a column, sorted; as numbers if all are whole.

    Raises:
        ConfigError: there is no such column, or it has no two values.
        AimfairError: the table or a row of it cannot be used; a file is listed with two labels or in two splits.
    """
    return entries.catalogue(
        settings, root, settings.table, _entries(root, settings), has_splits=settings.split_column is not None
    )


def _entries(root: Path, settings: DataSettings) -> Iterator[tuple[str, entries.Entry]]:
    columns = [("data.file_column", settings.file_column), *((key, name) for name, key in settings.roles().items())]
    if settings.split_column is not None:
        columns.append(("data.split_column", settings.split_column))
    names: set[str] = set()
    for number, (file, *values) in rows(root / settings.table, columns):
        place = f"{settings.table}:{number}"
        split = 0
        if settings.split_column is not None:
            name = values.pop()
            known = split_number(name)
            if known is None:
                raise AimfairError(f"{root / place}: found split {name!r}, expected one of {', '.join(SPLITS)}")
            names.add(name)
            split = known
        yield place, entries.entry(str(root / place), split, file, values)
    one_spelling(names, str(root / settings.table))
