"""Replacing a file in one step: a reader, or a machine that loses power, sees the old file or the new one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``, and renames it to ``path`` at the end.

    Data reach the disk before the name does, so this holds for kill -9 and power loss. If the body raises, ``path``
    is unchanged and the temporary file is removed; after kill -9 it stays, a hidden file ``.NAME.PID.tmp``.
    Writers that guess a format from the file name must be given the format.

    Raises:
        OSError: the file cannot be written; an older file is unchanged. It names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path, temporary):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # where the folder cannot be reached, the error above says so
            temporary.unlink(missing_ok=True)


def note_needed(error: OSError, size: int) -> None:
    """Adds the size in bytes of what could not be written."""
    error.add_note(f"{size / 1e6:,.2f} MB needed")


@contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Errors of the operating system that name no file, as those of a write, or the temporary one, name ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # from a library, such as an encoder of images
            raise OSError(f"{path}: {error}") from error
        names = {error.filename, error.filename2}
        if names == {None} or str(temporary) in {str(name) for name in names}:
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2  # None would be shown
        raise


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
