"""Reads Parquet files."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.libraries import optional
from aimfair.base.os_errors import of_the_machine
from aimfair.base.storage import File, reading

if TYPE_CHECKING:
    from pyarrow import ChunkedArray  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]


def header(path: File) -> list[str]:
    """The names of the columns.

    Raises:
        AimfairError: pyarrow is not installed, or the file cannot be read.
    """
    with open_file(path) as file:
        return list(file.schema_arrow.names)


def rows(path: File, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Number of each row, from 1, and its values of the columns ``names``, as Python objects.

    Raises:
        AimfairError: as :func:`open_file`.
    """
    import pyarrow  # type: ignore[import-untyped]

    with open_file(path) as file:
        number = 0
        try:
            for batch in file.iter_batches(columns=list(names)):
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, values
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise AimfairError(f"{path}: cannot be read as Parquet after row {number}: {one_line(error)}") from error


@contextmanager
def open_file(path: File) -> Iterator["ParquetFile"]:
    """
    Raises:
        AimfairError: pyarrow is not installed, or the file cannot be read.
    """
    with optional(f"{path}, a Parquet file,", "pyarrow"):
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet
    with reading(path) as stream:  # of a path, too: pyarrow's error would have no file name
        try:
            file = pyarrow.parquet.ParquetFile(path if isinstance(path, Path) else stream)
        except (pyarrow.ArrowException, OSError) as error:
            raise AimfairError(f"{path}: cannot be read as Parquet: {one_line(error)}") from error
        with file:
            yield file


def group_ends(path: File) -> list[int]:
    """Number of the row after each row group.

    Raises:
        AimfairError: as :func:`open_file`.
    """
    with open_file(path) as file:
        return list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))


def column(path: File, name: str, group: int) -> "ChunkedArray":
    """A column of a row group.

    Raises:
        AimfairError: as :func:`open_file`, or the row group is damaged.
    """
    import pyarrow

    with open_file(path) as file:
        try:
            return file.read_row_group(group, columns=[name]).column(0)
        except (pyarrow.ArrowException, OSError) as error:
            if of_the_machine(error):
                raise
            raise AimfairError(f"{path}: row group {group} cannot be read: {one_line(error)}") from error
