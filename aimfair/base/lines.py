"""Files of validated records: one as JSON, or many as JSON Lines."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.files import replace_file
from aimfair.base.settings import Record, first_fault


class Line(Record, strict=True):
    """One line: exactly these fields, of exactly these types."""

    def model_post_init(self, _: Any) -> None:
        """A million lines share the set of the fields that they were given, 700 bytes each; nothing looks at it."""
        object.__setattr__(self, "__pydantic_fields_set__", _fields(type(self)))


@cache
def _fields(kind: type[Line]) -> set[str]:
    return set(kind.model_fields)


LineType = TypeVar("LineType", bound=Line)
RecordType = TypeVar("RecordType", bound=BaseModel)


def read_record(path: Path, kind: type[RecordType], remedy: str) -> RecordType:
    """The record that is the whole of ``path``.

    Args:
        remedy: what to do about a file that is missing or damaged.

    Raises:
        AimfairError: it is missing or damaged; names file and field, and ends with the remedy.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise AimfairError(f"{path}: there is no such file; {remedy}") from error
    except ValidationError as error:
        raise AimfairError(f"{path}: {first_fault(error, 'file')}; {remedy}") from error


def read_lines(path: Path, kind: type[LineType], again: str, *, appended: bool = False) -> list[LineType]:
    """The records of ``path``, in its order.

    Args:
        again: the command that writes the file.
        appended: the file was written line by line: a last line without its end was left by a killed process and is
            ignored.

    Raises:
        AimfairError: the file is missing, or a line is not such a record; names file, line and field.
    """
    records: list[LineType] = []
    try:
        for line in _lines(path, appended):
            records.append(kind.model_validate_json(line))
    except FileNotFoundError as error:
        raise AimfairError(f"{path}: there is no such file; first: {again}") from error
    except ValidationError as error:
        raise AimfairError(
            f"{path}:{len(records) + 1}: {first_fault(error, 'line')}; expected one {kind.__name__} as JSON: restore"
            f" the file, or remove it and do: {again}"
        ) from error
    return records


def readable_lines(path: Path, kind: type[LineType], *, appended: bool = False) -> tuple[list[LineType], int]:
    """The records of ``path`` that can be read, and the number of other lines; none if there is no file.

    Args:
        appended: as in :func:`read_lines`.
    """
    records, damaged = [], 0
    for line in _lines(path, appended) if path.exists() else []:
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return records, damaged


def _lines(path: Path, appended: bool) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n") or not appended:
                yield line.removesuffix(b"\n")


def as_lines(records: Iterable[Line]) -> str:
    """The text of a file that :func:`read_lines` reads."""
    return "".join(map(as_line, records))


def as_line(record: Line) -> str:
    """A line of it."""
    return record.model_dump_json() + "\n"


def write_lines(path: Path, records: Iterable[Line]) -> None:
    """Replaces ``path`` by a file that :func:`read_lines` reads, one line after the other."""
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(map(as_line, records))
