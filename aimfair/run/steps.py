"""Steps: the units of work of a run, each done by one process, and doing them one after another.

A stage lists its steps; whether one is finished is looked up when what it needs is. The same list is walked here, in
order, and by :mod:`aimfair.run.schedule`, side by side.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aimfair.run.directory import Run

Outputs = Mapping[str, Sequence[Path]]
"""Record -> the files and folders of its step."""

Make = Callable[[Run], Outputs]


@dataclass(frozen=True)
class Assignment:
    """What is left to do of a step.

    Attributes:
        inputs: record -> everything its result depends on, as for :meth:`Run.is_done`.
        make: writes the files of these records. A partial of a module's function, so that it can be sent to another
            process, which opens the same directory.
    """

    inputs: Mapping[str, object]
    make: Make


@dataclass(frozen=True)
class Step:
    """
    Attributes:
        name: that of its record, or of what its records have in common.
        needs: the steps whose results it reads, those of other stages included.
        assign: what is left to do once ``needs`` are finished; None: nothing.
        uses_device: whether it runs a model.
        local: whether the process that holds the run does it, because it takes no time.
    """

    name: str
    needs: Sequence[str]
    assign: Callable[[], Assignment | None]
    uses_device: bool = True
    local: bool = False

    @property
    def title(self) -> str:
        """For progress: "finetune 100 jtt"."""
        return self.name.replace("/", " ")


def undone(steps: Iterable[Step]) -> Iterator[tuple[Step, Assignment]]:
    """The steps that are not finished, in order; the next is looked up when the caller is done with the one before."""
    for step in steps:
        if (assignment := step.assign()) is not None:
            yield step, assignment


def do(run: Run, assignment: Assignment) -> None:
    with collecting():
        finish(run, assignment, assignment.make(run))


@contextmanager
def collecting() -> Iterator[None]:
    """Frees what was made inside: models can have reference cycles, for example with checkpointing.

    What was there before is not looked at. With torch and transformers imported, that takes a quarter of a second.
    """
    frozen = gc.get_freeze_count() > 0  # by the caller, which is not undone
    if not frozen:
        gc.freeze()
    try:
        yield
        gc.collect()
    finally:
        if not frozen:
            gc.unfreeze()


def finish(run: Run, assignment: Assignment, outputs: Outputs) -> None:
    """Records what was made."""
    for record, inputs in assignment.inputs.items():
        run.finish(record, inputs, outputs[record])


def one_by_one(run: Run, steps: Sequence[Step]) -> None:
    """Steps of seconds to hours each, which show their own progress."""
    todo = list(undone(steps))
    for _, assignment in run.progress.each(todo, lambda item: item[0].title):
        do(run, assignment)
        run.interrupt.check()


def in_one_task(run: Run, name: str, steps: Sequence[Step]) -> None:
    """Steps that are many or quick; ``name``: for the progress of all."""
    with run.progress.task(name, len(steps)) as task:
        for step in steps:
            if (assignment := step.assign()) is not None:
                do(run, assignment)
            task.advance(note=step.title)
            run.interrupt.check()
