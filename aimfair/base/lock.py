"""Locks on files between processes; those of a process that ends, by kill -9 too, become free.

The kernel keeps them. Where several machines share the file system, its locks may hold for one machine or be absent:
there, :mod:`aimfair.base.lease` keeps them between machines.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from aimfair.base import lease
from aimfair.base.files import naming
from aimfair.base.interrupt import Interrupt
from aimfair.base.lease import Lease

_ABSENT = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


class Lock:
    """The lock of a file, held until it is released.

    Args:
        descriptor: holds the kernel's lock.
        lease: None: the file system is of this machine alone.
    """

    def __init__(self, descriptor: int, lease: Lease | None):
        self._descriptor, self._lease = descriptor, lease

    def release(self) -> None:
        if self._lease is not None:
            self._lease.release()
        os.close(self._descriptor)


def try_lock(
    path: Path, check: Callable[[], None] = lambda: None, waiting: Callable[[str], None] = lambda _: None
) -> Lock | None:
    """The lock of a file, made if absent; None if others hold it.

    The file tells others the number and machine of the process; see :func:`holder`. filelock cannot keep them there:
    releases before 4 truncate the file before they have the lock.

    Args:
        check, waiting: as in :func:`aimfair.base.lease.take`, which waits where another machine held the lock.
    """
    shared = lease.is_shared(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    held = None
    try:
        with naming(path):
            alone = _lock(descriptor, absent=shared)
            if shared:
                held = lease.take(_lease(path), alone=alone, check=check, waiting=waiting)
                if held is None:
                    os.close(descriptor)
                    return None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{lease.this_process()}\n".encode(), 0)
    except BaseException as error:
        os.close(descriptor)
        if held is not None:
            held.release()
        if isinstance(error, BlockingIOError):
            return None
        raise
    return Lock(descriptor, held)


def holder(path: Path) -> str:
    """Number and machine of the process that holds the lock of a file, or "unknown"."""
    time.sleep(0.05)  # it may be about to write them
    if _lease(path).exists():
        return lease.holder(_lease(path))
    return path.read_text(encoding="utf-8", errors="replace")[:256].strip() or "unknown"


@contextlib.contextmanager
def locked(path: Path, interrupt: Interrupt, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds the lock of a file, once others have released it.

    Args:
        waiting: called once if others hold it.
    """
    while (lock := try_lock(path, interrupt.check)) is None:
        if waiting is not None:
            waiting()
            waiting = None
        interrupt.check()
        time.sleep(0.1)
    try:
        yield
    finally:
        lock.release()


def _lock(descriptor: int, *, absent: bool) -> bool:
    """Takes the kernel's lock; False if the file system has none.

    Args:
        absent: that is no error.

    Raises:
        BlockingIOError: another process holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if absent and error.errno in _ABSENT:
            return False
        raise
    return True


def _lease(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")
