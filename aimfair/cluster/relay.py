"""The log and the progress of a call, told to the process that waits for it, which writes and shows them."""

import itertools
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from aimfair.base.log import Log
from aimfair.base.progress import Progress, Task
from aimfair.cluster.pool import Message, Send

_SECONDS_BETWEEN_MESSAGES = 0.5


class RelayedLog(Log):
    """Sends its events."""

    def __init__(self, send: Send):
        super().__init__(None)
        self._send = send

    def __call__(self, event: str, **fields: Any) -> None:
        self._send(("event", event, fields))

    def tell(self, message: str) -> None:
        self._send(("tell", message))

    def warn(self, message: str, **fields: Any) -> None:
        self._send(("warn", message, fields))


class RelayedProgress(Progress):
    """Sends what its tasks have done, twice a second at most."""

    def __init__(self, send: Send):
        super().__init__(quiet=True)
        self._send = send
        self._numbers = itertools.count()

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        task = _RelayedTask(self._send, next(self._numbers))
        self._send(("begin", task.number, name, total, done))
        yield task
        task.flush()
        self._send(("end", task.number))

    def say(self, text: str) -> None:
        self._send(("say", text))


class _RelayedTask:
    def __init__(self, send: Send, number: int):
        self.number = number
        self._send = send
        self._steps, self._note, self._last = 0, "", time.monotonic()

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._steps += steps
        self._note = note or self._note
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_MESSAGES:
            self.flush()

    def flush(self) -> None:
        if self._steps:
            self._send(("advance", self.number, self._steps, self._note))
        self._steps, self._last = 0, time.monotonic()


class Shown:
    """A call as the waiting process shows it. A context manager: when it is left, its tasks are no longer shown."""

    def __init__(self, log: Log, progress: Progress):
        self._log, self._progress = log, progress
        self._open: dict[int, tuple[Task, ExitStack]] = {}

    def take(self, message: Message) -> None:
        kind, *rest = message
        match kind:
            case "event":
                self._log(rest[0], **rest[1])
            case "tell":
                self._log.tell(rest[0])
            case "warn":
                self._log.warn(rest[0], **rest[1])
            case "say":
                self._progress.say(rest[0])
            case "begin":
                number, name, total, done = rest
                stack = ExitStack()
                self._open[number] = stack.enter_context(self._progress.task(name, total, done)), stack
            case "advance":
                number, steps, note = rest
                if number in self._open:  # messages may be lost
                    self._open[number][0].advance(steps, note)
            case "end":
                if rest[0] in self._open:
                    self._open.pop(rest[0])[1].close()
            case _:
                raise ValueError(f"unknown message {kind!r}")

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][1].close()
