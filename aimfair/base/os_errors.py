"""Errors of the operating system in one line: the file, what is wrong with it, and what to do."""

import errno
import os
import pwd
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path

from aimfair.base.errors import one_line

FULL = {errno.ENOSPC, errno.EDQUOT}

_OF_A_DISK = FULL | {errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE}

_OF_THE_MACHINE = FULL | {
    errno.EROFS, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT,
}  # fmt: skip

# errno -> what is wrong, and what to do about it where it is
_WORDS: dict[int | None, tuple[str, str]] = {
    errno.EDQUOT: ("disk quota exceeded", "free some"),
    errno.EROFS: ("read-only file system", ""),
    errno.EFBIG: ("larger than the file system or ulimit -f allows", ""),
    errno.ENAMETOOLONG: ("name too long, most file systems allow 255 bytes", "shorten it"),
    errno.EISDIR: ("is a folder, expected a file", "remove it"),
    errno.ELOOP: ("a link that leads to itself", "remove it"),
    errno.ENODEV: ("the file system does not support memory maps", ""),
    errno.ENOLCK: ("the file system does not support locks", ""),
    errno.EIO: ("input or output error, the disk or the connection to it fails", ""),
    errno.ENFILE: ("too many open files on this machine", "end other programs"),
}


def of_the_machine(error: Exception) -> bool:
    """Whether it says nothing about a file's content or a program: a full disk, too many open files."""
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


def explain(error: OSError, places: Mapping[Path, str]) -> str:
    """One line without the number of the error.

    Args:
        error: of a full disk, notes say how much space is needed.
        places: files and folders -> the setting or flag that chooses another; where a disk fails and the error names no
            file, it is the first.
    """
    path = _path(error) or (next(iter(places), None) if error.errno in _OF_A_DISK else None)
    if path is None or error.errno is None:
        return one_line(error)
    path, what, remedy = _diagnosis(error, path)
    setting = None if error.errno in (errno.EMFILE, errno.ENFILE) else _setting(path, places)
    advice = [remedy] * bool(remedy) + [f"choose another with {setting}"] * bool(setting)
    return "; ".join([f"{path}: {what}", *([", or ".join(advice)] if advice else [])])


def _path(error: OSError) -> Path | None:
    """Of two names, as in a copy, the one to which the error belongs."""
    written = error.errno in FULL | {errno.EROFS, errno.EFBIG} and error.filename2 is not None
    name = error.filename2 if written else error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes) and name else None


def _diagnosis(error: OSError, path: Path) -> tuple[Path, str, str]:
    """The path at fault, what is wrong with it, and what to do there."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(_existing(path)).free
        needed = "".join(f", {note}" for note in getattr(error, "__notes__", []))
        return path, f"no space left on the disk ({free / 1e6:,.2f} MB free{needed})", "free some"
    if error.errno == errno.EMFILE:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return path, f"too many open files, the limit is {limit:,}", f"raise it: ulimit -n {max(4 * limit, 4096)}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return path, f"permission denied to user {_user()}", "change its permissions"
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
        return _missing(path, error)
    what, remedy = _WORDS.get(error.errno, (error.strerror or one_line(error), ""))
    return path, what, remedy


def _missing(path: Path, error: OSError) -> tuple[Path, str, str]:
    """The first part of the path that is not there, or no folder."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return part, f"a link to {os.readlink(part)}, which does not exist", "remove the link"
        if part.exists() and not part.is_dir() and (part != path or error.errno != errno.ENOENT):
            return part, "is a file, expected a folder", "move it away"
        if part != path and not part.exists():
            return part, "the folder is gone", ""
    return (
        path,
        "is not there, or cannot be made here" if error.errno == errno.ENOENT and not path.exists() else _lower(error),
        "",
    )


def _lower(error: OSError) -> str:
    return (error.strerror or one_line(error)).lower()


def _setting(path: Path, places: Mapping[Path, str]) -> str | None:
    """Of a place at the path or within it, or else of the innermost that holds it."""
    path = Path(os.path.abspath(path))
    by_depth = sorted(((Path(os.path.abspath(place)), name) for place, name in places.items()), key=_depth)
    within = [name for place, name in by_depth if place.is_relative_to(path)]
    around = [name for place, name in by_depth if path.is_relative_to(place)]
    return next(iter(within + around[::-1]), None)


def _depth(place: tuple[Path, str]) -> int:
    return len(place[0].parts)


def _existing(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return next(part for part in (path, *path.parents) if part.exists())


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a number without a name, as in containers
        return str(os.geteuid())
