"""Writing files so that whoever looks, at whatever moment, finds the old one or the new one, never a part."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a path to write to, in the folder of ``path``, and puts what was written in place of ``path`` at the end.

    The data reach the disk before the name does, so this holds for kill -9 and for loss of power. When the body raises,
    ``path`` is as it was and the temporary file is gone; after kill -9 :func:`remove_temporaries` removes it. Its name
    does not end as that of ``path``: writers that guess a format from the name must be told.

    Raises:
        OSError: the file cannot be written; what was there before is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces ``path`` by ``text``, in UTF-8."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Adds ``text``, in UTF-8, to a file that may not be there yet; it is on disk when this returns.

    Raises:
        OSError: it cannot be written, of a full disk say; the file is cut back to what it was, if it can be.
    """
    new = not path.exists()
    length = 0 if new else path.stat().st_size
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # after "with": closing writes once more what was not written
        with suppress(OSError):
            os.truncate(path, length)
        raise
    if new:
        sync(path.parent)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replaces ``path`` by ``value``.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON has no word for.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is what :func:`replace_file` writes to."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path, but: str | None = None) -> int:
    """Removes what killed writers left under ``folder``; the number of files. No writer may be at work there.

    Args:
        but: name of a folder in ``folder`` that is left alone.
    """
    stray = [
        path
        for path in folder.rglob(".*.tmp")
        if is_temporary(path.name) and path.is_file() and path.relative_to(folder).parts[0] != but
    ]
    for path in stray:
        path.unlink()
    return len(stray)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
