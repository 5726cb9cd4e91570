"""A folder of several files that appears whole or not at all."""

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
"""The file that says that a folder is an export of ours; the last one to be written."""


@contextmanager
def new_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yields a folder to fill, beside ``path``, and puts it in the place of ``path`` at the end.

    The data reach the disk before the name does. When the body raises, ``path`` is as it was; what a killed process has
    left beside it is removed here, or put back where it was. One process at a time, please: see ``Run``'s lock.

    Args:
        overwrite: whether an earlier export in ``path`` may be replaced; anything else in it never is.

    Raises:
        AimfairError: there is something in ``path``, or it is the current folder, which cannot be replaced.
        OSError: the files cannot be written.
    """
    _require_elsewhere(path)
    path = Path(os.path.abspath(path))  # which has a name, also "..", but follows no link
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old")
    _clean(path, old)
    _require_replaceable(path, overwrite)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clean(path: Path, old: Path) -> None:
    """After a kill: the earlier export back where it was if its successor is not there, and no parts of others."""
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
        raise AimfairError(f"{path}: is the current folder or holds it; choose a new one with --to")


def _require_replaceable(path: Path, overwrite: bool) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise AimfairError(f"{path}: is no folder; choose another with --to")
    names = sorted(entry.name for entry in path.iterdir())
    if not names:
        return
    if not _is_export(path):
        raise AimfairError(
            f"{path}: not empty and no export of aimfair: it holds {', '.join(names[:3])}; choose another with --to"
        )
    if not overwrite:
        raise AimfairError(f"{path}: holds an export already; replace it with --overwrite, or choose another with --to")


def _is_export(path: Path) -> bool:
    """Whether the folder has our mark and nothing that the mark does not list."""
    try:
        files = json.loads((path / MARK).read_text(encoding="utf-8"))["files"]
        return {entry.name for entry in path.iterdir()} <= {MARK, *files}
    except (OSError, ValueError, KeyError, TypeError):
        return False
