"""Leases: locks that need nothing but a file system that several machines share.

A lease is a file that its holder rewrites every few seconds. Another process takes it over once it has seen no change
for :data:`EXPIRES` seconds by its own clock: clocks of machines and times of files are not compared. A holder that
cannot rewrite its lease in that time, or finds that it is another's, ends at once, as if it were killed.
"""

import contextlib
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

BEAT = 5.0
"""Seconds between two changes of a lease."""

EXPIRES = 60.0
"""Seconds without a change after which a lease may be taken over."""

_SETTLES = 2.0
"""Seconds after which one of several processes that take it over at once knows whether it was the last."""

_SIZE = 256
"""Bytes of a lease: always as many, so that readers never find a part of one."""

_LOCAL = {
    "apfs", "aufs", "bcachefs", "btrfs", "devtmpfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfs",
    "jfs", "nilfs2", "ntfs3", "overlay", "ramfs", "rootfs", "squashfs", "tmpfs", "ubifs", "vfat", "xfs", "zfs",
}  # fmt: skip
"""File systems of one machine, in whose kernel the locks are."""

_MOUNTS = Path("/proc/self/mountinfo")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def is_shared(path: Path) -> bool:
    """Whether several machines may have the file system of ``path``: NFS, Lustre, every type not known as local."""
    if not _MOUNTS.exists():  # no Linux
        return False
    types: dict[str, str] = {}  # of later mounts where there are several
    for line in _MOUNTS.read_text(encoding="utf-8", errors="replace").splitlines():
        mount, _, rest = line.partition(" - ")
        types[mount.split()[4].replace("\\040", " ")] = rest.split()[0]
    path = path.resolve()
    return next((types[str(part)] for part in (path, *path.parents) if str(part) in types), "") not in _LOCAL


def this_process() -> str:
    """Number and machine of this process, as others are told."""
    return f"{os.getpid()} on {os.uname().nodename}"


def holder(path: Path) -> str:
    """:func:`this_process` of the process that has the lease."""
    return _holder(_read(path))


class Lease:
    """A lease that this process has, from :func:`take` to :meth:`release`."""

    def __init__(self, path: Path, text: str):
        self._path, self._text = path, text
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets others take it at once."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if _is_of(_read(self._path), self._text):
                self._path.unlink()

    def _keep(self) -> None:
        beats, written = 0, time.monotonic()
        while not self._released.wait(BEAT):
            beats += 1
            try:
                found = _read(self._path)
                if not _is_of(found, self._text):
                    return _end(self._whose(found))
                _write(self._path, self._text, beats)
                written = time.monotonic()
            except OSError as error:
                if time.monotonic() - written > EXPIRES - 2 * BEAT:
                    return _end(f"{self._path}: could not be written for {EXPIRES - 2 * BEAT:.0f} s: {error.strerror}")

    def _whose(self, found: bytes) -> str:
        if not found:
            return f"{self._path}: was removed, so others may work here now"
        here, silent = self._path.parent, f"this one gave no sign of life for {EXPIRES:.0f} s"
        return f"{here}: process {_holder(found)} works here now: {silent}"


def take(
    path: Path, *, alone: bool, check: Callable[[], None], waiting: Callable[[str], None] = lambda _: None
) -> Lease | None:
    """The lease at ``path``; None if another process has it, which may take :data:`EXPIRES` seconds to find out.

    Args:
        alone: no other process of this machine has it.
        check: called repeatedly while it waits; may raise.
        waiting: told in words why it waits, if it does.
    """
    text = f"{this_process()}\n{_boot()}\n{secrets.token_hex(8)}\n"
    try:
        _write(path, text, 0, os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        found = _read(path)
        dead = alone and f"\n{_boot()}\n".encode() in found
        if not dead and not _expires(path, found, check, waiting):
            return None
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        _write(temporary, text, 0, os.O_CREAT | os.O_EXCL)
        os.replace(temporary, path)
        time.sleep(_SETTLES)
        if not _is_of(_read(path), text):
            return None
    return Lease(path, text)


def _expires(path: Path, found: bytes, check: Callable[[], None], waiting: Callable[[str], None]) -> bool:
    """Whether the lease, as it was ``found``, stays as it is until it has expired."""
    waiting(f"{path.parent}: waiting up to {EXPIRES:.0f} s for a sign of life of process {_holder(found)}")
    since = time.monotonic()
    while time.monotonic() - since < EXPIRES:
        check()
        time.sleep(min(0.5, BEAT / 2))
        if _read(path) != found:
            return False
    return True


def _read(path: Path) -> bytes:
    """Nothing if there is no file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _write(path: Path, text: str, beats: int, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags, 0o644)
    try:
        os.pwrite(descriptor, f"{text}{beats}\n".encode()[:_SIZE].ljust(_SIZE), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holder(found: bytes) -> str:
    return found.partition(b"\n")[0].decode(errors="replace").strip() or "unknown"


def _is_of(found: bytes, text: str) -> bool:
    return found.startswith(text.encode())


def _boot() -> str:
    """Differs between machines, and after each start of one."""
    return _BOOT.read_text(encoding="ascii").strip() if _BOOT.exists() else os.uname().nodename


def _end(reason: str) -> None:
    """Ends the process, which might otherwise write over the work of another."""
    os.write(2, f"error: {reason}\n".encode())
    os._exit(1)
