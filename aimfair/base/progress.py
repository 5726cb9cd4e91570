"""Progress: bars with the time left on a terminal; elsewhere a line per stage, per model and per minute."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

_SECONDS_BETWEEN_LINES = 60.0

Item = TypeVar("Item")


class Task(Protocol):
    """Work of known length."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Counts ``steps`` more as done; shows ``note`` beside the bar, for example "loss 0.31"."""


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


SILENT: Task = _Silent()
"""Shows nothing."""


class _Bar:
    """A line of a live display."""

    def __init__(self, bars: Bars, name: str, total: int, done: int):
        self._bars, self._note = bars, ""
        self._id = bars.add_task(name, total=total, completed=done, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._note = note or self._note
        self._bars.update(self._id, advance=steps, note=self._note)

    def remove(self) -> None:
        """So that the display does not grow with the number of tasks."""
        self._bars.refresh()
        self._bars.remove_task(self._id)


class _Lines:
    """A line a minute, and at the end of a task that took as long."""

    def __init__(self, line: Callable[[str], None], name: str, total: int, done: int):
        self._line, self._name, self._total = line, name, total
        self._first, self._done, self._note = done, done, ""
        self._start = self._last = time.monotonic()
        self._warm: tuple[float, int] | None = None  # when the first steps, which load models, were done; how many

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        self._note = note or self._note
        now = time.monotonic()
        if self._warm is None and self._done > self._first:
            self._warm = now, self._done
        if now - self._last >= _SECONDS_BETWEEN_LINES and self._done < self._total:
            self._last = now
            self._line(f"{self._name}: {self._done}/{self._total}{self._left(now)}{self._comment()}")

    def _left(self, now: float) -> str:
        """In words; nothing while only the first steps are done."""
        if self._warm is None or self._done <= self._warm[1]:
            return ""
        since, before = self._warm
        return f", about {duration((now - since) / (self._done - before) * (self._total - self._done))} left"

    def end(self) -> None:
        seconds = time.monotonic() - self._start
        if seconds >= _SECONDS_BETWEEN_LINES:
            self._line(f"{self._name}: {self._done}/{self._total} in {duration(seconds)}{self._comment()}")

    def _comment(self) -> str:
        return f", {self._note}" if self._note else ""


class Progress:
    """The tasks of a run on one console; standard error unless another is given, so that output can be piped.

    Args:
        quiet: show nothing but the messages of :meth:`say`.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._bars: Bars | None = None

    @contextmanager
    def task(self, name: str, total: int, done: int = 0) -> Iterator[Task]:
        """A task of ``total`` steps of which ``done`` were done before, for example by a run that was interrupted."""
        if self._quiet:
            yield SILENT
        elif not self._console.is_terminal:
            lines = _Lines(self.line, name, total, done)
            yield lines
            lines.end()
        elif self._bars is not None:  # within another task: one more line of its display
            bar = _Bar(self._bars, name, total, done)
            try:
                yield bar
            finally:
                bar.remove()
        else:
            with _bars(self._console) as self._bars:
                try:
                    yield _Bar(self._bars, name, total, done)
                finally:
                    self._bars = None

    def each(self, items: Sequence[Item], name: Callable[[Item], str]) -> Iterator[Item]:
        """The items in order; after each, without a terminal, a line with its name, how many are done, and time left.

        For steps that take seconds to hours each, such as the training of one model.
        """
        start = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            seconds = time.monotonic() - start
            left = len(items) - number
            rest = f", about {duration(seconds / number * left)} left" if left else f" in {duration(seconds)}"
            self.line(f"{name(item)}: finished, {number} of {len(items)}{rest}")

    def line(self, text: str) -> None:
        """Where no bars show the progress: a line with the time of day. On a terminal and when quiet: nothing."""
        if not self._quiet and not self._console.is_terminal:
            self.say(f"{datetime.now():%H:%M:%S} {text}")

    def say(self, text: str) -> None:
        """A line of its own, above the bars."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


def duration(seconds: float) -> str:
    """For example 3.2 s, 5 min 03 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
