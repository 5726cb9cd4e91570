"""Atomic file writes: readers find the old file or the new one, never a part."""

import hashlib
import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from aimfair.selective.atomic import naming, note_needed, replace_file, sync

__all__ = [
    "append_text", "cache_folder", "file_digest", "is_temporary", "naming", "note_needed", "remove_temporaries",
    "replace_file", "sync", "way_out", "write_json", "write_text",
]  # fmt: skip

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/aimfair/<name>``, or ``~/.cache/aimfair/<name>``: shared by all runs, deletable any time."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "aimfair" / name


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replaces ``path`` by ``text``, in UTF-8."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def append_text(path: Path, text: str) -> None:
    """Adds ``text``, in UTF-8, to a file that may not be there yet; it is on disk when this returns.

    Raises:
        OSError: it cannot be written, for example on a full disk; the file is truncated to its old length if possible.
    """
    new = not path.exists()
    length = 0 if new else path.stat().st_size
    try:
        with naming(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # after "with": closing tries again to write the rest
        with suppress(OSError):
            os.truncate(path, length)
        raise
    if new:
        sync(path.parent)


def way_out(path: Path, again: str) -> str:
    """What to do about a file or folder that cannot be read; ``again`` makes it once no damaged one is in the way."""
    return f"remove it and {again}" if path.exists() else again


def file_digest(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replaces ``path`` by ``value``.

    Raises:
        ValueError: ``value`` holds NaN or infinity, which JSON cannot represent.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def is_temporary(name: str) -> bool:
    """Whether the name is that of a temporary file of :func:`replace_file`."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path, but: str | None = None) -> int:
    """Removes temporary files of killed writers under ``folder``; returns their number. No writer may be active there.

    Args:
        but: name of a folder in ``folder`` to skip.
    """
    stray = [
        path
        for path in folder.rglob(".*.tmp")
        if is_temporary(path.name) and path.is_file() and path.relative_to(folder).parts[0] != but
    ]
    for path in stray:
        path.unlink()
    return len(stray)
