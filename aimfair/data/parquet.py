"""Columns of a Parquet file as text. The only file that imports pyarrow."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimfair.base.errors import AimfairError

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]


def header(path: Path) -> list[str]:
    """The names of the columns.

    Raises:
        AimfairError: pyarrow is not installed, or the file cannot be read.
    """
    with _open(path) as file:
        return list(file.schema_arrow.names)


def rows(path: Path, names: Sequence[str]) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """The number of each row, from 1, and its values of the columns ``names``, as Python has them.

    Raises:
        AimfairError: as :func:`header`.
    """
    import pyarrow  # type: ignore[import-untyped]

    with _open(path) as file:
        number = 0
        try:
            for batch in file.iter_batches(columns=list(names)):
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield number, values
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
            raise AimfairError(f"{path}: cannot be read as Parquet after row {number}: {_line(error)}") from error


def _open(path: Path) -> "ParquetFile":
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise AimfairError(f"{path}: Parquet is read by pyarrow, which is missing: pip install pyarrow") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise AimfairError(f"{path}: cannot be read as Parquet: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
