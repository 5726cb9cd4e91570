"""Ctrl-C and SIGTERM as a flag that long loops check where their state is safe."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn, Self

from aimfair.base.errors import AimfairError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(AimfairError):
    """The work was stopped by a signal, at a point where all that is to be kept is saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Terminated(KeyboardInterrupt):
    """SIGTERM came where nothing waits for it, as a KeyboardInterrupt of Ctrl-C."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """While entered, SIGTERM raises :class:`Terminated` outside of an :class:`Interrupt`, as SIGINT does
    KeyboardInterrupt: files that are being written are removed, and locks released.

    Changes nothing in another thread than the main one, or where something else handles SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise_terminated(*_: object) -> NoReturn:
    raise Terminated


class Interrupt:
    """While entered, turns SIGINT and SIGTERM into a flag. A second SIGINT raises KeyboardInterrupt at once.

    Python delivers signals to the main thread alone: in another thread, entering changes nothing.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self._signal is not None

    @property
    def signal(self) -> int:
        """The number of the signal that has come; 0: none."""
        return self._signal or 0

    def request(self, number: int) -> None:
        """As if the signal ``number`` had come."""
        self._signal = number

    def check(self) -> None:
        """To be called where all work so far is saved.

        Raises:
            Interrupted: a signal has come.
        """
        if self._signal is not None:
            raise Interrupted(self._signal)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        with contextlib.suppress(OSError):  # not print: its buffer may be in use by the code this interrupts
            os.write(2, b"\nstopping after the current step; Ctrl-C again stops at once\n")


NEVER = Interrupt()
"""Never entered, so never raised: for work without interruption."""
