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
from aimfair.generation.filters import Scorer
from aimfair.generation.summary import GenerationSummary
from aimfair.generation.worker import draw
from aimfair.report.template import environment
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

    Speeds are only compared with those of the same call: if the settings or images of one changed, or the machine, all
    are measured again.

    Args:
        runs: group -> finished run, whose images may be those of ``origin``.

    Raises:
        AimfairError: a model cannot be loaded.
        Interrupted: between two generators.
    """
    facts = {"environment": environment(), "runs": {group: _facts(run) for group, run in runs.items()}}
    file, wanted = folder / FILE, digest_of_inputs(facts)
    try:
        known = read_record(file, _Speeds, "remove it") if file.exists() else None
    except AimfairError:  # damaged: measured again
        known = None
    if known is not None and known.measured == wanted:
        return known.of
    seconds: dict[str, list[float]] = {group: [] for group in runs}
    sizes: dict[str, int] = {}
    for group in [*runs, *reversed(list(runs))]:  # twice, as other work on the machine comes and goes
        run = runs[group]
        run.progress.line(f"speed of {group}")
        run.interrupt.check()
        with prefixed(group):
            sizes[group], some = _measure(run)
            seconds[group] += some
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    found = {
        group: Speed(images=sizes[group], seconds=seconds[group], kept=_kept(run, origin))
        for group, run in runs.items()
    }
    write_text(file, _Speeds(measured=wanted, of=found).model_dump_json(indent=2) + "\n")
    return found


def _facts(run: Run) -> dict[str, object]:
    """What a speed depends on besides packages and machine: model, filters and images by their digests, settings."""
    return {
        "upstream": run.digest_of("generate"),
        "generate": run.config.generate,
        "device": run.config.device,
        "threads": torch.get_num_threads(),
    }


def _measure(run: Run) -> tuple[int, list[float]]:
    """Images of a batch, and seconds of each."""
    models = load_models(run)
    plan, size, seconds = models.plan, min(models.batch_size, len(models.plan)), list[float]()
    while len(seconds) <= _BATCHES or sum(seconds[1:]) < _SECONDS:
        start = len(seconds) * size
        batch = [plan[i % len(plan)] for i in range(start, start + size)]
        begin = time.monotonic()
        samples = draw(models.sampler, batch, [planned.seed for planned in batch])
        groups = [planned.group for planned in batch]
        for one in models.filters:
            one.scores(samples.images, groups) if isinstance(one, Scorer) else one.reasons(samples.images, groups)
        seconds.append(time.monotonic() - begin)
    return size, seconds[1:]


def _kept(run: Run, origin: Run) -> float:
    summary = summary_of(run, origin)
    return 1.0 if summary is None else summary.kept / summary.made


def summary_of(run: Run, origin: Run) -> GenerationSummary | None:
    """Of the images of a run, which may be those of ``origin``; None: its file is gone."""
    path = next((one.generation for one in (run, origin) if one.generation.exists()), None)
    return None if path is None else GenerationSummary.load(path)
