"""The speed of generators, measured one after another in one process."""

import gc
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch

from aimfair.base.errors import AimfairError, prefixed
from aimfair.base.files import write_text
from aimfair.base.lines import read_record
from aimfair.base.settings import Record
from aimfair.config import Config
from aimfair.generation.summary import GenerationSummary
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.stages.generate import load_models

FILE = "speed.json"

_BATCHES = 3


class Speed(Record):
    """
    Attributes:
        images: of a batch.
        seconds: of each batch in the model and the filters, after one that is not counted.
        kept: share of the images that were kept.
    """

    images: int
    seconds: list[float]
    kept: float

    @property
    def images_per_second(self) -> float:
        """Kept images, by the fastest batch: other work on the machine only slows a batch down."""
        return self.kept * self.images / min(self.seconds)


class _Speeds(Record):
    measured: str
    of: dict[str, Speed]


def measure(runs: Mapping[str, Run], origin: Run, folder: Path) -> dict[str, Speed]:
    """Group -> speed of the generator of its run, kept in ``folder``.

    Speeds are only compared with those of the same call: if the settings of one changed, all are measured again.

    Args:
        runs: group -> finished run, whose images may be those of ``origin``.

    Raises:
        AimfairError: a model cannot be loaded.
        Interrupted: between two generators.
    """
    file, wanted = folder / FILE, digest_of_inputs({group: _facts(run.config) for group, run in runs.items()})
    try:
        known = read_record(file, _Speeds, "remove it") if file.exists() else None
    except AimfairError:  # damaged: measured again
        known = None
    if known is not None and known.measured == wanted:
        return known.of
    found = {}
    for group, run in runs.items():
        run.progress.line(f"speed of {group}")
        run.interrupt.check()
        with prefixed(group):
            found[group] = _measure(run, origin)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    write_text(file, _Speeds(measured=wanted, of=found).model_dump_json(indent=2) + "\n")
    return found


def _facts(config: Config) -> dict[str, object]:
    return {
        "generate": config.generate,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _measure(run: Run, origin: Run) -> Speed:
    sampler, filters, plan = load_models(run)
    size = min(run.config.generate.batch_size, len(plan))
    seconds = []
    for number in range(1 + _BATCHES):
        batch = [plan[i % len(plan)] for i in range(number * size, (number + 1) * size)]
        begin = time.monotonic()
        samples = sampler.sample([planned.text for planned in batch], [planned.seed for planned in batch])
        for one in filters:
            one.reasons(samples.images, [planned.group for planned in batch])
        seconds.append(time.monotonic() - begin)
    summary = summary_of(run, origin)
    kept = 1.0 if summary is None else summary.kept / summary.made
    return Speed(images=size, seconds=list(islice(seconds, 1, None)), kept=kept)


def summary_of(run: Run, origin: Run) -> GenerationSummary | None:
    """Of the images of a run, which may be those of ``origin``; None: its file is gone."""
    path = next((one.generation for one in (run, origin) if one.generation.exists()), None)
    return None if path is None else GenerationSummary.load(path)
