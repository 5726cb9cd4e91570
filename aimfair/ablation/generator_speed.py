"""The speed of generators, measured one after another in one process."""

import gc
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from aimfair.base.errors import AimfairError, prefixed
from aimfair.base.files import write_text
from aimfair.base.lines import read_record
from aimfair.base.settings import Record
from aimfair.config import Config
from aimfair.generation.filters import Scorer
from aimfair.generation.manifest import Manifest
from aimfair.generation.summary import GenerationSummary
from aimfair.generation.worker import draw
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.stages.generate import load_models

FILE = "speed.json"

_BATCHES, _SECONDS = 3, 1.0
"""At least so many batches of a generator at a time, and for so long."""


class Speed(Record):
    """
    Attributes:
        images: of a batch.
        seconds: of each batch in the model and the filters, after a first that is not counted.
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
    seconds: dict[str, list[float]] = {group: [] for group in runs}
    for group in [*runs, *reversed(list(runs))]:  # twice, as other work on the machine comes and goes
        run = runs[group]
        run.progress.line(f"speed of {group}")
        run.interrupt.check()
        with prefixed(group):
            seconds[group] += _measure(run)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    found = {
        group: Speed(images=_batch_size(run), seconds=seconds[group], kept=_kept(run, origin))
        for group, run in runs.items()
    }
    write_text(file, _Speeds(measured=wanted, of=found).model_dump_json(indent=2) + "\n")
    return found


def _facts(config: Config) -> dict[str, object]:
    return {
        "generate": config.generate,
        "device": config.device,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _measure(run: Run) -> list[float]:
    """Seconds of each batch."""
    sampler, filters, plan = load_models(run)
    size, seconds = _batch_size(run), list[float]()
    while len(seconds) <= _BATCHES or sum(seconds[1:]) < _SECONDS:
        start = len(seconds) * size
        batch = [plan[i % len(plan)] for i in range(start, start + size)]
        begin = time.monotonic()
        samples = draw(sampler, batch, [planned.seed for planned in batch])
        groups = [planned.group for planned in batch]
        for one in filters:
            one.scores(samples.images, groups) if isinstance(one, Scorer) else one.reasons(samples.images, groups)
        seconds.append(time.monotonic() - begin)
    return seconds[1:]


def _batch_size(run: Run) -> int:
    return min(run.config.generate.images_at_a_time, len(Manifest(run.synthetic).records))


def _kept(run: Run, origin: Run) -> float:
    summary = summary_of(run, origin)
    return 1.0 if summary is None else summary.kept / summary.made


def summary_of(run: Run, origin: Run) -> GenerationSummary | None:
    """Of the images of a run, which may be those of ``origin``; None: its file is gone."""
    path = next((one.generation for one in (run, origin) if one.generation.exists()), None)
    return None if path is None else GenerationSummary.load(path)
