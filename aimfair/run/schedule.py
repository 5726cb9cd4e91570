"""Steps side by side, in the processes of a pool: each begins when what it needs is finished.

The process that holds the run looks up what is left, writes the records and the log, and shows the progress. The others
open the directory for one step each and write its files.
"""

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupt
from aimfair.base.lock import locked
from aimfair.base.log import NOWHERE
from aimfair.base.progress import Progress
from aimfair.cluster.pool import Call, Ended, Pool, Send, Told
from aimfair.cluster.relay import RelayedLog, RelayedProgress, Shown
from aimfair.cluster.shared import Shared, shared
from aimfair.config import Config
from aimfair.run.directory import Run
from aimfair.run.steps import Assignment, Make, Outputs, Step, collecting, do, finish

_SECONDS_BETWEEN_LOOKS = 0.5


Prepare = Callable[[Config], None]


def side_by_side(pool: Pool, first: Run, steps: Mapping[Run, Sequence[Step]], name: str, prepare: Prepare) -> None:
    """Does the steps of these runs, which this process holds, as far as they are not finished.

    Args:
        first: the run that the user sees, and stops.
        name: of the work, for its progress.
        prepare: called in other processes before a step.

    Raises:
        AimfairError: a step failed, the others having been stopped; or its process was lost too often.
        Interrupted: SIGINT or SIGTERM came, and all steps have stopped at a point from which they continue.
    """
    _Schedule(pool, first, steps, prepare).run(name)


@dataclass
class _Item:
    """A step that is not known to be finished.

    Attributes:
        name: unlike that of any other.
        needs: those of the others that it waits for.
        shown: while the pool has it.
        lost: how often its process was.
    """

    name: str
    run: Run
    step: Step
    needs: set[str]
    assignment: Assignment | None = None
    shown: Shown | None = None
    lost: int = 0


class _Schedule:
    def __init__(self, pool: Pool, first: Run, steps_of: Mapping[Run, Sequence[Step]], prepare: Prepare):
        self._pool, self._prepare, self._first = pool, prepare, first
        self._marks: dict[Run, Shared] = {}
        self._items: dict[str, _Item] = {}
        self._waiting_for: dict[str, list[_Item]] = {}
        self._running = 0
        for run, steps in steps_of.items():
            prefix = f"{run.path.name}: " if len(steps_of) > 1 else ""
            names = {step.name: prefix + step.title for step in steps}
            for step in steps:
                needs = {names[need] for need in step.needs if need in names}
                item = self._items[names[step.name]] = _Item(names[step.name], run, step, needs)
                for need in needs:
                    self._waiting_for.setdefault(need, []).append(item)

    def run(self, name: str) -> None:
        first, self._total = self._first, len(self._items)
        with ExitStack() as stack:
            for run in {first: None} | {item.run: None for item in self._items.values()}:
                self._marks[run] = stack.enter_context(shared(Path(os.path.abspath(run.path))))
            self._pool.everywhere(self._marks[first].check)
            with first.progress.task(name, self._total) as self._task:
                try:
                    self._begin([item for item in self._items.values() if not item.needs])
                    while self._running:
                        first.interrupt.check()
                        self._take(self._pool.wait(_SECONDS_BETWEEN_LOOKS))
                except Exception:
                    self._stop()
                    raise

    def _begin(self, ready: Sequence[_Item]) -> None:
        """Begins these steps, and those that need no more than what turns out to be finished."""
        todo = deque(ready)
        while todo:
            item = todo.popleft()
            item.assignment = item.step.assign()
            if item.assignment is not None and not item.step.local:
                self._submit(item)
                continue
            if item.assignment is not None:
                do(item.run, item.assignment)
            todo += self._finished(item)
            self._first.interrupt.check()

    def _submit(self, item: _Item) -> None:
        assert item.assignment is not None
        function = partial(
            _work,
            mark=self._marks[item.run],
            name=item.step.name,
            config=item.run.config,
            prepare=self._prepare,
            make=item.assignment.make,
        )
        item.shown = Shown(item.run.log, self._first.progress)
        self._pool.submit(Call(item.name, function, item.step.uses_device))
        self._running += 1

    def _take(self, found: Sequence[Told | Ended], *, stopping: bool = False) -> None:
        """Handles what has come; while stopping, what did not end well is left for the next time."""
        for one in found:
            item = self._items.get(one.name)
            if item is None or item.shown is None:
                continue  # of a process that was thought to be lost
            if isinstance(one, Told):
                item.shown.take(one.message)
                continue
            self._running -= 1
            item.shown.close()
            item.shown = None
            lost = one.lost or _signalled(one.error)
            if lost is None and one.error is None:
                self._record(item, one.result)
                ready = self._finished(item)
                if not stopping:
                    self._begin(ready)
            elif not stopping and lost is None:
                assert one.error is not None
                raise one.error
            elif not stopping:
                self._again(item, lost or "")

    def _record(self, item: _Item, result: tuple[str, float, Outputs]) -> None:
        assert item.assignment is not None
        host, seconds, made = result
        outputs = {record: [item.run.path / path for path in paths] for record, paths in made.items()}
        finish(item.run, item.assignment, outputs)
        item.run.log("step done", step=item.step.name, host=host, seconds=round(seconds, 3))

    def _finished(self, item: _Item) -> list[_Item]:
        """Those that can begin now."""
        del self._items[item.name]
        self._task.advance(note=item.name)
        if item.assignment is not None:
            done = self._total - len(self._items)
            self._first.progress.line(f"{item.name}: finished, {done} of {self._total} steps")
        freed = []
        for other in self._waiting_for.pop(item.name, ()):
            other.needs.remove(item.name)
            if not other.needs:
                freed.append(other)
        return freed

    def _again(self, item: _Item, reason: str) -> None:
        item.lost += 1
        retries = self._pool.retries
        if item.lost > retries:
            raise AimfairError(
                f"{item.name}: {reason}, after {retries} retries (cluster.retries); the same command continues"
            )
        item.run.log.warn(f"{item.name}: {reason}; begins again, {item.lost} of {retries} times")
        self._submit(item)

    def _stop(self) -> None:
        """What ends well all the same is recorded, the rest has saved where it can continue."""
        self._pool.stop()
        while self._running:
            self._take(self._pool.wait(_SECONDS_BETWEEN_LOOKS), stopping=True)


def _signalled(error: BaseException | None) -> str | None:
    """Why a call ended that a signal has stopped in its process, as machines do that are taken away."""
    code = getattr(error, "exit_code", 0)
    return f"its process was stopped by {signal.Signals(code - 128).name}" if code > 128 else None


# -- in other processes ------------------------------------------------------------------------------------------------

_HERE = threading.local()


def _work(
    send: Send, *, mark: Shared, name: str, config: Config, prepare: Prepare, make: Make
) -> tuple[str, float, Outputs]:
    """Does a step; the machine, the seconds, and the outputs relative to the run."""
    start = time.monotonic()
    mark.check()
    prepare(config)
    run = _opened(mark, config)
    run.log, run.progress, run.interrupt = RelayedLog(send), RelayedProgress(send), Interrupt()
    # a process that was thought to be lost may have the lock
    with run.interrupt, locked(mark.lock(name), run.interrupt), collecting():
        made = make(run)
    outputs = {record: [path.relative_to(run.path) for path in paths] for record, paths in made.items()}
    return socket.gethostname(), time.monotonic() - start, outputs


def _opened(mark: Shared, config: Config) -> Run:
    """The run of the step before, with the images it has loaded, if it is the same."""
    if getattr(_HERE, "opened", None) != (mark, config):
        _HERE.run = None  # its images are freed first
        _HERE.opened, _HERE.run = (mark, config), Run.attach(mark.path, config, NOWHERE, Progress(quiet=True))
    run: Run = _HERE.run
    return run
