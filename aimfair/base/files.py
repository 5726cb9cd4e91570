"""Writing files so that whoever looks, at whatever moment, finds the old one or the new one, never a part."""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from aimfair.selective.atomic import replace_file, sync

__all__ = [
    "append_text", "cache_folder", "is_temporary", "remove_temporaries", "replace_file", "sync", "write_json",
    "write_text",
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
