"""Locks on files between processes; the kernel releases them when their holder ends, by kill -9 too."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aimfair.base.files import naming
from aimfair.base.interrupt import Interrupt


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file, made if absent, until it is closed; None if others hold it.

    The file tells others the number of the process; see :func:`holder`. filelock cannot keep one there: releases before
    4 truncate the file before they have the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with naming(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def holder(path: Path) -> str:
    """The number of the process that holds the lock of a file, or "unknown"."""
    time.sleep(0.05)  # it may be about to write its number
    return path.read_text(encoding="utf-8", errors="replace")[:32].strip() or "unknown"


@contextlib.contextmanager
def locked(path: Path, interrupt: Interrupt, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of a file, once others have released it.

    Args:
        waiting: called once if others hold it.
    """
    while (descriptor := try_lock(path)) is None:
        if waiting is not None:
            waiting()
            waiting = None
        interrupt.check()
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)
