"""The stages, in the order in which they follow from one another."""

import os
import platform
import time
import traceback
from collections.abc import Sequence
from importlib import import_module

import aimfair
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.run.directory import Run

STAGES = ("prompts", "generate", "train", "sensitivity", "select", "finetune", "evaluate", "report")


def run_stages(run: Run, stages: Sequence[str] = STAGES) -> None:
    """Does each stage; what is finished already, a stage skips by itself.

    Raises:
        AimfairError: a stage lacks what an earlier one makes, or cannot do its work.
        Interrupted: SIGINT or SIGTERM came; the run continues when it is opened again.
    """
    run.log("stages", stages=list(stages), aimfair=aimfair.__version__, python=platform.python_version())
    prepare_process(run.config)
    if {"generate", "train"} <= set(stages) and not run.has_record("generate"):
        _refuse_early(run)
    for name in stages:
        run.interrupt.check()
        start = time.monotonic()
        run.log("stage started", stage=name)
        try:
            import_module(f"aimfair.stages.{name}").run(run)
        except BaseException as error:
            # the traceback, too, of what nobody foresaw: to see it a second time may take hours
            trace = None if isinstance(error, AimfairError) else traceback.format_exc()
            run.log("stage stopped", stage=name, seconds=_seconds_since(start), error=repr(error), traceback=trace)
            raise
        run.log("stage finished", stage=name, seconds=_seconds_since(start))


def prepare_process(config: Config) -> None:
    """What the settings ask of the whole process: its threads, and to stay offline."""
    if not (config.generate.allow_download or config.model.allow_download):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # its client reads this when imported, and then asks no network
    if config.threads is not None:
        import torch

        torch.set_num_threads(config.threads)


def _refuse_early(run: Run) -> None:
    """Looks at devices, data and the classifier, so that what is wrong with them does not come out after hours of
    generation."""
    from aimfair.base.device import choose_device, tuning_device
    from aimfair.training.models import build_model

    device = run.config.device
    if tuning_device(device) != choose_device(device):
        run.log.warn("training and tuning run on the CPU: this aimfair was built without CUDA kernels")
    _refuse_small_sources(run.config)
    splits = run.splits()
    for contradiction in contradictions(splits, run.config.data.majority):
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


def contradictions(splits: Splits, majority: Sequence[int]) -> list[str]:
    """A line for each class whose training images are mostly of another protected value than ``data.majority`` says."""
    counts = splits.train.group_counts(len(splits.target_names), len(splits.protected_names))
    return [
        f"data.majority: {splits.protected_names[a]!r} for class {splits.target_names[y]!r}, but most of its training"
        f" images are {splits.protected_names[counts[y].argmax()]!r}: the biased synthetic set has another bias than"
        " the real one"
        for y, a in enumerate(majority)
        if counts[y].max() > counts[y, a]
    ]


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 3)
