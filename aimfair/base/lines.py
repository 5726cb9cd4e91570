"""JSON Lines files whose every line is one validated record."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.settings import Record


class Line(Record, strict=True):
    """One line: exactly these fields, of exactly these types."""


LineType = TypeVar("LineType", bound=Line)


def read_lines(path: Path, kind: type[LineType], *, appended: bool = False) -> list[LineType]:
    """The records of ``path``, in its order.

    Args:
        appended: the file was written line by line: a last line without its end was left by a killed process and is
            ignored.

    Raises:
        AimfairError: the file is missing, or a line is not such a record; names file, line and field.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise AimfairError(f"{path}: there is no such file; the step before this one writes it") from error
    *lines, rest = data.split(b"\n")
    if rest and not appended:
        lines.append(rest)
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "line"
            raise AimfairError(
                f"{path}:{number}: {field}: {first['msg']}; expected one {kind.__name__} as JSON: restore the file, or "
                "remove it and repeat the step that writes it"
            ) from error
    return records


def as_lines(records: Sequence[Line]) -> str:
    """The text of a file that :func:`read_lines` reads."""
    return "".join(record.model_dump_json() + "\n" for record in records)
