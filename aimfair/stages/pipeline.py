"""The registry of stages, and running them in order."""

import platform
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress

import aimfair
from aimfair.base.device import choose_device
from aimfair.base.errors import AimfairError
from aimfair.base.progress import duration
from aimfair.run.directory import Run
from aimfair.stages import evaluate, finetune, generate, preflight, prompts, report, select, sensitivity, train, tune
from aimfair.stages.context import prepare_process

STAGES: dict[str, Callable[[Run], None]] = {
    "prompts": prompts.run,
    "generate": generate.run,
    "train": train.run,
    "sensitivity": sensitivity.run,
    "tune": tune.run,
    "select": select.run,
    "finetune": finetune.run,
    "evaluate": evaluate.run,
    "report": report.run,
}
"""Every stage by its name, each after those whose results it reads."""


_OF_ONE = {"prompts", "select", "report"}
"""Stages that process 0 does alone, while others wait."""


def run_stages(run: Run, names: Iterable[str] = tuple(STAGES)) -> None:
    """Does each stage, which skips the steps that are finished.

    Raises:
        AimfairError: a stage lacks what an earlier one makes, or cannot do its work.
        Interrupted: SIGINT or SIGTERM came; the run continues when it is opened again.
    """
    names = list(names)
    run.log("stages", stages=names, aimfair=aimfair.__version__, python=platform.python_version())
    prepare_process(run.config)
    first = "generate" if "generate" in names else f"train/{run.config.seeds[0]}"
    if {"generate", "train"} & set(names) and not run.has_record(first):
        _apart(run, lambda: preflight.check(run, real_images="train" in names))
    for number, name in enumerate(names, 1):
        run.interrupt.check()
        start = time.monotonic()
        run.log("stage started", stage=name)
        run.progress.line(f"{name}: stage {number} of {len(names)}")
        try:
            _do(run, name)
        except BaseException as error:
            # with the traceback of unforeseen errors: to reproduce one may take hours
            trace = None if isinstance(error, AimfairError) else traceback.format_exc()
            with suppress(OSError):  # on a full disk; the error itself says more
                run.log("stage stopped", stage=name, seconds=_seconds_since(start), error=repr(error), traceback=trace)
            raise
        run.log("stage finished", stage=name, seconds=_seconds_since(start))
        run.progress.line(f"{name}: finished in {duration(_seconds_since(start))}, {number} of {len(names)} stages")


def _do(run: Run, name: str) -> None:
    if name in _OF_ONE:
        _apart(run, lambda: STAGES[name](run))
        return
    if name != "generate":  # which exchanges no tensors
        run.ranks.connect(choose_device(run.config.device, run.ranks), run.config.distributed.timeout)
    STAGES[name](run)


def _apart(run: Run, work: Callable[[], None]) -> None:
    """Work of process 0 alone; the others return when it is done."""
    if run.ranks.leads:
        with run.apart():
            work()
    run.ranks.meet()


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 3)
