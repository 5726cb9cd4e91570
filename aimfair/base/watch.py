"""Notices processes that are lost: killed, on a machine that is gone, or hanging."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from aimfair.base.errors import AimfairError

_SECONDS_BETWEEN_BEATS = 1.0
_SECONDS_TO_BE_LOST = 60.0
_SECONDS_TO_BE_LOST_SOON = 4.0  # where an operation with it has failed
_SECONDS_TO_END = 15.0  # of the main thread, once another process has failed or is lost
_SECONDS_TO_STOP = 10.0  # of the thread, whose last question the store may never answer
_LEFT = "left"


class Watch:
    """Each process counts up in the store, in a thread, and reads what the others have counted.

    If another process has failed or is lost and the main thread has not noticed some time later, for it waits in an
    operation that nothing ends, the thread says so and ends the process.

    Attributes:
        done: operations with the others that this process has come to.
    """

    def __init__(self, rank: int, size: int, store: Any):
        self.done = 0
        self._rank, self._size, self._store = rank, size, store
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._beats = 0
        self._seen: dict[int, tuple[int, int, float]] = {}  # rank -> its beats, what it has done, and when they changed
        store.set(f"name/{rank}", f"process {rank} of {size} ({socket.gethostname()}, pid {os.getpid()})")
        self._beat()

    def start(self, failure: Callable[[], AimfairError | None]) -> None:
        """
        Args:
            failure: of another process.
        """
        self._failure = failure
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This process is leaving: from now on it is not missed."""
        self._stopped.set()
        # Python ends daemon threads as it exits: one inside the store, which is C++, would abort the process.
        self._thread.join(_SECONDS_TO_STOP)
        with suppress(RuntimeError):  # the store may be gone
            self._store.set(f"{_LEFT}/{self._rank}", "")

    def soon(self) -> Iterator[None]:
        """For as long as it takes until a killed process is known to be lost."""
        end = time.monotonic() + _SECONDS_TO_BE_LOST_SOON + 2 * _SECONDS_BETWEEN_BEATS
        while time.monotonic() < end:
            self._look()
            yield
            time.sleep(0.1)

    def lost(self, *, soon: bool = False) -> str | None:
        """Names a process that has not counted for long; None: all have."""
        longest = _SECONDS_TO_BE_LOST_SOON if soon else _SECONDS_TO_BE_LOST
        now = time.monotonic()
        for rank, (_, _, changed) in sorted(self._seen.items()):
            if now - changed > longest:
                return f"{self._name(rank)} is lost: it was killed, or its machine is unreachable"
        return None

    def behind(self) -> str:
        """Names the process that others wait for."""
        self._look()
        rank = min(self._seen, key=lambda rank: self._seen[rank][1])
        done = self._seen[rank][1]
        return (
            f"{self._name(rank)} hangs: the others have waited for it for distributed.timeout minutes (it has come to"
            f" {done} common operations, this process to {self.done})"
        )

    def _run(self) -> None:
        while not self._stopped.wait(_SECONDS_BETWEEN_BEATS):
            if reason := self._reason_to_end():
                if not self._stopped.wait(_SECONDS_TO_END):
                    print(f"error: {reason}", file=sys.stderr, flush=True)
                    os._exit(1)
                return

    def _reason_to_end(self) -> str | None:
        try:
            self._beat()
            self._look()
            failed = self._failure()
            return str(failed) if failed else self.lost()
        except (RuntimeError, AimfairError):
            return f"process {self._rank} of {self._size} has lost the connection to the others"

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self._rank}", f"{self._beats} {self.done}")

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            for rank in range(self._size):
                if rank == self._rank or not self._store.check([f"beat/{rank}"]):
                    continue
                if self._store.check([f"{_LEFT}/{rank}"]):
                    self._seen.pop(rank, None)
                    continue
                beats, done = map(int, self._store.get(f"beat/{rank}").split())
                if self._seen.get(rank, (0, 0, now))[0] != beats:
                    self._seen[rank] = (beats, done, now)

    def _name(self, rank: int) -> str:
        try:
            return str(self._store.get(f"name/{rank}").decode())
        except RuntimeError:  # the store is gone
            return f"process {rank} of {self._size}"
