"""Creates a folder of files atomically."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.files import sync

MARK = "export.json"
"""The file that identifies a folder as an export; written last."""


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to fill, beside ``path``, and replaces ``path`` by it at the end.

    The data are on disk before the name is. If the body raises, ``path`` is unchanged; leftovers of a killed process
    are removed or restored by the next call. Callers ensure that only one process does this (``Run``'s lock).

    Args:
        overwrite: whether an earlier export in ``path`` may be replaced; anything else never is.

    Raises:
        AimfairError: ``path`` has other content, or is or contains the current folder.
        OSError: the files cannot be written.
    """
    _require_elsewhere(path)
    path = Path(os.path.abspath(path))  # resolves ".." but follows no link
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    _clean(path, old)
    _require_replaceable(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(error.filename2 or error.filename or path).replace(str(temporary), str(path))
            if error.filename2 is not None:  # of a copy
                del error.filename2
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clean(path: Path, old: Path) -> None:
    """After a kill: restores the earlier export if its successor is missing, and removes partial ones."""
    if old.is_dir() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    temporary = re.compile(re.escape(f".{path.name}.") + r"\d+\.tmp")
    for entry in path.parent.iterdir():
        if temporary.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)


def _require_elsewhere(path: Path) -> None:
    here = Path.cwd().resolve()
    if path.resolve() in (here, *here.parents):
        raise AimfairError(f"{path}: is or contains the current folder; choose another with --to")


def _require_replaceable(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise AimfairError(f"{path}: is not a folder; choose another with --to")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    if not _is_export(path):
        raise AimfairError(
            f"{path}: not empty and not an export of aimfair: it contains {', '.join(names[:3])}; choose another with"
            " --to"
        )
    if not overwrite:
        raise AimfairError(f"{path}: already contains an export; replace it with --overwrite, or choose another folder")


def _is_export(path: Path) -> bool:
    """Whether the folder contains :data:`MARK` and only files that it lists."""
    try:
        files = json.loads((path / MARK).read_text(encoding="utf-8"))["files"]
        return {entry.name for entry in path.iterdir()} <= {MARK, *files}
    except (OSError, ValueError, KeyError, TypeError):
        return False
