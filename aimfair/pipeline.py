"""The stages, in the order in which they follow from one another."""

import os
import platform
import time
import traceback
from collections.abc import Sequence
from importlib import import_module

import aimfair
from aimfair.errors import AimfairError
from aimfair.run.directory import Run

STAGES = ("prompts", "generate", "train", "sensitivity", "select", "finetune", "evaluate", "report")


def run_stages(run: Run, stages: Sequence[str] = STAGES) -> None:
    """Does each stage; what is finished already, a stage skips by itself.

    Raises:
        AimfairError: a stage lacks what an earlier one makes, or cannot do its work.
        Interrupted: SIGINT or SIGTERM came; the run continues when it is opened again.
    """
    run.log("stages", stages=list(stages), aimfair=aimfair.__version__, python=platform.python_version())
    if not (run.config.generate.allow_download or run.config.model.allow_download):
        os.environ.setdefault(
            "HF_HUB_OFFLINE", "1"
        )  # read when the hub's client is imported: it asks the network nothing
    if run.config.threads is not None:
        import torch

        torch.set_num_threads(run.config.threads)
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


def _seconds_since(start: float) -> float:
    return round(time.monotonic() - start, 3)
