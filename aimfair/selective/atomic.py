"""Replacing a file in one step: a reader, or a machine that loses power, sees the old file or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, and renames it to ``path`` at the end.

    Data reach the disk before the name does, so this holds for kill -9 and power loss. If the body raises, ``path``
    is unchanged and the temporary file is removed; after kill -9 it stays, a hidden file ``.NAME.PID.tmp``.
    Writers that guess a format from the file name must be given the format.

    Raises:
        OSError: the file cannot be written; an older file is unchanged.
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


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
