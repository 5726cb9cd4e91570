"""What work in other processes looks like from here: calls go out, messages and ends come back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from aimfair.base.errors import AimfairError

Message = tuple[Any, ...]
"""What a call tells while it runs: see :mod:`aimfair.cluster.relay`."""

Send = Callable[[Message], None]


@dataclass(frozen=True)
class Call:
    """
    Attributes:
        name: of no other call that runs at the same time.
        function: called with a function that sends messages; it and what it returns can be pickled. It runs in the main
            thread of its process, which gets SIGINT when the call is to stop at the next point that is safe.
        uses_device: whether it needs what a model runs on.
    """

    name: str
    function: Callable[[Send], Any]
    uses_device: bool = True


@dataclass(frozen=True)
class Told:
    """A message of a call."""

    name: str
    message: Message


@dataclass(frozen=True)
class Ended:
    """The end of a call: with a result, with an error that it raised, or with its process.

    Attributes:
        lost: how the process or its machine was lost; None: it was not.
    """

    name: str
    result: Any = None
    error: BaseException | None = None
    lost: str | None = None


class Pool(Protocol):
    """Processes that take calls."""

    retries: int
    """How often a call is made again whose process was lost."""

    threads: int
    """Of every process."""

    slots: int
    """How many calls that use a device run at a time, at least 1."""

    def submit(self, call: Call) -> None:
        """Starts a call as soon as there is room for it."""

    def wait(self, seconds: float) -> Sequence[Told | Ended]:
        """What has come since the last time, in the order of each call; returns early when a call ends."""

    def everywhere(self, function: Callable[[], None]) -> None:
        """Calls a function on every machine; raises the first AimfairError that it raises there."""

    def stop(self) -> None:
        """Asks all calls to end at the next point that is safe; each still ends for :meth:`wait`."""


class RemoteError(AimfairError):
    """An error of another process that this one does not know; ``trace`` is its traceback."""

    def __init__(self, message: str, trace: str = "", exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code
        if trace:
            self.add_note(trace)
