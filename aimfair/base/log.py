"""The log of a run: one JSON object per line."""

import json
import math
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aimfair.base.files import naming


class Log:
    """Appends events to a file; each survives kill -9 once the call returns.

    Args:
        path: the file; None: events are dropped, and warnings become Python warnings.
        show: also shows warnings and notes to the user.
        notes: whether notes are shown.
    """

    def __init__(self, path: Path | None, show: Callable[[str], None] | None = None, *, notes: bool = True):
        self._show, self._notes = show, notes
        self._file = None
        if path is not None:
            _drop_half_line(path)
            self._path = path
            self._file = path.open("ab", buffering=0)

    def __call__(self, event: str, **fields: Any) -> None:
        """Adds ``{"time": ..., "event": event, **fields}``; values that JSON lacks are written as strings."""
        if self._file is not None:
            values = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
            text = json.dumps({key: _plain(value) for key, value in values.items()}, default=str) + "\n"
            self._append(text.encode())

    def tell(self, message: str) -> None:
        """An event "note" that is also shown to the user."""
        self("note", message=message)
        if self._show is not None and self._notes:
            self._show(message)

    def warn(self, message: str, **fields: Any) -> None:
        """An event "warning" that is also shown to the user, quiet or not."""
        self("warning", message=message, **fields)
        if self._show is not None:
            self._show(f"warning: {message}")
        elif self._file is None:
            warnings.warn(message, stacklevel=2)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _append(self, line: bytes) -> None:
        """The whole line or, where an error is raised, nothing."""
        assert self._file is not None
        length = os.fstat(self._file.fileno()).st_size
        try:
            with naming(self._path):
                while line:
                    line = line[self._file.write(line) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(length)
            raise


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _drop_half_line(path: Path) -> None:
    """Removes the last line if a killed process did not finish it."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


NOWHERE = Log(None)
"""Drops events; its warnings are Python warnings."""

SILENT = Log(None, show=lambda _: None)
"""Drops everything: for a second model with the settings of one that has warned."""
