"""The registry of stages, and running them in order."""

import platform
import time
import traceback
from collections.abc import Callable, Iterable

import aimfair
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.progress import duration
from aimfair.config import Config
from aimfair.run.directory import Run
from aimfair.stages import evaluate, finetune, generate, prompts, report, select, sensitivity, train
from aimfair.stages.context import prepare_process, splits_of

STAGES: dict[str, Callable[[Run], None]] = {
    "prompts": prompts.run,
    "generate": generate.run,
    "train": train.run,
    "sensitivity": sensitivity.run,
    "select": select.run,
    "finetune": finetune.run,
    "evaluate": evaluate.run,
    "report": report.run,
}
"""Every stage by its name, each after those whose results it reads."""


def run_stages(run: Run, names: Iterable[str] = tuple(STAGES)) -> None:
    """Does each stage, which skips the steps that are finished.

    Raises:
        AimfairError: a stage lacks what an earlier one makes, or cannot do its work.
        Interrupted: SIGINT or SIGTERM came; the run continues when it is opened again.
    """
    names = list(names)
    run.log("stages", stages=names, aimfair=aimfair.__version__, python=platform.python_version())
    prepare_process(run.config)
    if {"generate", "train"} <= set(names) and not run.has_record("generate"):
        _refuse_early(run)
    for number, name in enumerate(names, 1):
        run.interrupt.check()
        start = time.monotonic()
        run.log("stage started", stage=name)
        run.progress.line(f"{name}: stage {number} of {len(names)}")
        try:
            STAGES[name](run)
        except BaseException as error:
            # with the traceback of unforeseen errors: to reproduce one may take hours
            trace = None if isinstance(error, AimfairError) else traceback.format_exc()
            run.log("stage stopped", stage=name, seconds=_seconds_since(start), error=repr(error), traceback=trace)
            raise
        run.log("stage finished", stage=name, seconds=_seconds_since(start))
        run.progress.line(f"{name}: finished in {duration(_seconds_since(start))}, {number} of {len(names)} stages")


def _refuse_early(run: Run) -> None:
    """Checks devices, data and the classifier, so that their errors come before hours of generation."""
    from aimfair.base.device import choose_device, tuning_device
    from aimfair.training.models import build_model

    device = run.config.device
    if tuning_device(device) != choose_device(device):
        run.log.warn("training and tuning run on the CPU: this aimfair was built without CUDA kernels")
    _refuse_small_sources(run.config)
    splits = splits_of(run)
    for contradiction in splits.contradictions(run.config.data.majority):
        run.log.warn(contradiction)
    build_model(run.config.model, len(splits.target_names), run.config.seeds[0])


def _refuse_small_sources(config: Config) -> None:
    """Every source of sensitivity must fill a batch."""
    groups = len(config.prompts.targets) * len(config.prompts.protected)
    for key, images in (
        ("generate.biased_total", config.generate.biased_total),
        ("generate.balanced_per_group", config.generate.balanced_per_group * groups),
        ("data.train_images", config.data.train_images),
    ):
        if images is not None and images < config.sensitivity.batch_size:
            raise ConfigError(
                f"sensitivity.batch_size: found {config.sensitivity.batch_size}, expected at most {images}, the images"
                f" of {key}"
            )


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 3)
