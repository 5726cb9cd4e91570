"""The registry of stages, and running them in order."""

import platform
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import aimfair
from aimfair.base.device import choose_device
from aimfair.base.errors import AimfairError, prefixed
from aimfair.base.progress import duration
from aimfair.base.storage import StorageError
from aimfair.run.directory import Run
from aimfair.run.schedule import side_by_side
from aimfair.run.steps import Step
from aimfair.run.upload import Upload
from aimfair.stages import evaluate, finetune, generate, preflight, prompts, report, select, sensitivity, train, tune
from aimfair.stages.context import preparation, prepare_process, processes_of

_Result = TypeVar("_Result")

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

_OF_ONE = {"prompts", "report"}
"""Stages that process 0 does alone, while the others wait."""

STEPS: dict[str, Callable[[Run], list[Step]]] = {
    "train": train.steps,
    "sensitivity": sensitivity.steps,
    "tune": tune.steps,
    "select": select.steps,
    "finetune": finetune.steps,
    "evaluate": evaluate.steps,
}
"""The steps of the stages that consist of independent ones."""


def run_stages(run: Run, names: Iterable[str] = tuple(STAGES)) -> None:
    """Does each stage, which skips the steps that are finished. With ``run.pool``, the steps of neighbouring stages are
    done side by side before the stages look at them.

    Raises:
        AimfairError: a stage lacks what an earlier one makes, or cannot do its work.
        Interrupted: SIGINT or SIGTERM came; the run continues when it is opened again.
    """
    names = list(names)
    run.log("stages", stages=names, aimfair=aimfair.__version__, python=platform.python_version())
    prepare_process(run.config)
    upload = _apart(run, lambda: _begin_upload(run)) if _uploads(run) else None
    first = "generate" if "generate" in names else f"train/{run.config.seeds[0]}"
    if {"generate", "train"} & set(names) and not run.has_record(first):
        _check(run, real_images="train" in names)
    number = 0
    for group in _groups(names, together=run.pool is not None):
        run.interrupt.check()
        start, name = time.monotonic(), ", ".join(group)
        number += len(group)
        run.log("stage started", stage=name)
        run.progress.line(f"{name}: {_place(number, len(group))} of {len(names)}")
        try:
            if run.pool is not None and group[0] in STEPS:
                steps = [step for stage in group for step in STEPS[stage](run)]
                side_by_side(run.pool, run, {run: steps}, name, preparation(run.pool.threads))
            for stage in group:
                _do(run, stage)
        except BaseException as error:
            # with the traceback of unforeseen errors: to reproduce one may take hours
            trace = None if isinstance(error, AimfairError) else traceback.format_exc()
            with suppress(OSError):  # on a full disk; the error itself says more
                run.log("stage stopped", stage=name, seconds=_seconds_since(start), error=repr(error), traceback=trace)
            raise
        run.log("stage finished", stage=name, seconds=_seconds_since(start))
        run.progress.line(f"{name}: finished in {duration(_seconds_since(start))}, {number} of {len(names)} stages")
        if _uploads(run):
            _apart(run, partial(_send, run, upload, is_last=number == len(names)))


def _check(run: Run, *, real_images: bool) -> None:
    sharded = processes_of(run).sharded
    _apart(run, lambda: preflight.check(run, real_images=real_images, sharded=sharded))
    if sharded:
        _connect(run)
        preflight.rehearse_together(run, real_images=real_images)


def _connect(run: Run) -> None:
    run.ranks.connect(choose_device(run.config.device, run.ranks), run.config.distributed.timeout)


def _uploads(run: Run) -> bool:
    """Whether its files go to a URL; those of a variant do not."""
    return run.config.run.storage is not None and run.origin is None


def _begin_upload(run: Run) -> Upload:
    with prefixed("run.storage"):
        upload = Upload(run.path, run.config.run, run.settings_digest, overwrite=run.overwrite)
    try:
        restored = upload.restore(run.progress, run.interrupt)
    except StorageError as error:
        raise StorageError(f"run.storage: {error}") from error
    if restored:
        run.log.tell(f"{restored:,} files of this run copied from {run.config.run.storage}")
    return upload


def _send(run: Run, upload: Upload | None, *, is_last: bool) -> None:
    assert upload is not None  # of process 0
    try:
        files, size = upload.send(run.progress, run.interrupt)
    except StorageError as error:
        if is_last:
            raise StorageError(f"run.storage: {error}; the results are in {run.path}") from error
        run.log.warn(f"run.storage: {error}; tried again after the next stage")
    else:
        run.log("uploaded", files=files, bytes=size)


def _do(run: Run, name: str) -> None:
    if name in _OF_ONE or (name == "select" and not processes_of(run).sharded):
        _apart(run, lambda: STAGES[name](run))
        return
    if name != "generate":  # which exchanges no tensors
        _connect(run)
    STAGES[name](run)


def _apart(run: Run, work: Callable[[], _Result]) -> _Result | None:
    """Work of process 0 alone; the others return, None, when it is done."""
    result = None
    if run.ranks.leads:
        with run.apart():
            result = work()
    run.ranks.meet()
    return result


def _groups(names: Sequence[str], *, together: bool) -> list[list[str]]:
    """The stages in order; neighbours that consist of steps in one group if these are done ``together``."""
    groups: list[list[str]] = []
    for name in names:
        if together and groups and name in STEPS and groups[-1][0] in STEPS:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _place(last: int, count: int) -> str:
    """For example "stage 3", "stages 3 to 7"."""
    return f"stage {last}" if count == 1 else f"stages {last - count + 1} to {last}"


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 3)
