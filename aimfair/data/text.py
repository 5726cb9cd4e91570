"""Text files of users, which are not always UTF-8."""

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from aimfair.base.errors import AimfairError

_BEGINNINGS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (b"PK\x03\x04", "an Excel workbook or a zip file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"PAR1", "Parquet"),
)
_AROUND = 12


@contextmanager
def utf8(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of ``path``, in UTF-8 with or without a byte order mark.

    Args:
        newline: as in ``open``.

    Raises:
        AimfairError: it has another encoding, which the message names.
        OSError: it cannot be read.
    """
    with path.open("rb") as binary:
        first = binary.read(4)
    found = next((name for beginning, name in _BEGINNINGS if first.startswith(beginning)), None)
    if found is None and b"\0" in first:
        found = "UTF-16 without a byte order mark, or no text"
    if found is not None:
        raise AimfairError(f"{path}: is {found}, expected text in UTF-8: save it as such")
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        start = max(error.start - _AROUND, 0)
        near = error.object[start : error.end + _AROUND].decode("cp1252", "replace")
        raise AimfairError(
            f"{path}: is not UTF-8 but probably Windows-1252 or Latin-1 (byte {error.object[error.start]:#04x} in"
            f" {near!r}): save it as UTF-8, or convert it by iconv -f WINDOWS-1252 -t UTF-8"
        ) from error
