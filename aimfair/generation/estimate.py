"""How long a job will take, measured on its first batches, and what would halve that."""

import time
from collections.abc import Mapping

from aimfair.base.progress import duration
from aimfair.base.settings import Record
from aimfair.diffusion.clock import DECODER, DENOISER, SCHEDULER
from aimfair.generation.settings import GenerateSettings

_SECONDS = 10.0  # of measuring, after the first batch, which also warms up
_BATCHES = 4  # or so many batches
_FEWEST_STEPS = 4  # with less, models that are not distilled draw little
_INT8 = 1.5  # times faster is a denoiser in int8 in ONNX Runtime, see docs/engines.md
LONG = 60.0
"""Seconds from which on a user wants to know how long it takes."""


class Estimate(Record):
    """Made once, after the first batches.

    Attributes:
        images_per_s: of all processes, rejected images included, without the first batch.
        batches: of one process that were measured.
        seconds_left: for the images that were missing then.
        halving: the setting that would halve it, in words.
    """

    images_per_s: float
    batches: int
    seconds_left: float
    halving: str

    def __str__(self) -> str:
        return (
            f"{self.images_per_s:,.1f} images/s, about {duration(self.seconds_left)} left; half of that with"
            f" {self.halving}"
        )


class Estimator:
    """Measures the first batches of a process.

    Args:
        processes: that share the job.
    """

    def __init__(self, settings: GenerateSettings, processes: int):
        self._settings, self._processes = settings, processes
        self._first: tuple[float, int] | None = None  # when the first batch was recorded, and its images
        self._batches = 0
        self.estimate: Estimate | None = None

    def note(
        self, images: int, left: int, seconds: Mapping[str, float], stalled: float, *, small_decoders: bool
    ) -> Estimate | None:
        """Call this after every batch.

        Args:
            images: made by this process so far.
            left: wanted, by all processes.
            seconds: part of the work -> seconds of this process so far, without the next.
            stalled: seconds of waiting for files.
            small_decoders: as :attr:`aimfair.diffusion.sampler.Sampler.small_decoders`.

        Returns:
            The estimate, once.
        """
        now = time.monotonic()
        if self._first is None:
            self._first = now, images
            return None
        self._batches += 1
        began, before = self._first
        if self.estimate is not None or not (self._batches == _BATCHES or now - began >= _SECONDS):
            return None
        rate = (images - before) * self._processes / max(now - began, 1e-9)
        self.estimate = Estimate(
            images_per_s=rate,
            batches=self._batches,
            seconds_left=left / max(rate, 1e-9),
            halving=halving(self._settings, seconds, stalled, self._processes, small_decoders=small_decoders),
        )
        return self.estimate


def halving(
    settings: GenerateSettings,
    seconds: Mapping[str, float],
    stalled: float,
    processes: int,
    *,
    small_decoders: bool = False,
) -> str:
    """What would halve the time.

    Args:
        seconds, stalled, small_decoders: as in :meth:`Estimator.note`; ``seconds`` may include filters, and a sampler
            whose parts are not known.
    """
    whole = sum(seconds.values()) + stalled
    fewest = _FEWEST_STEPS / (settings.pairs.strength or 1 if settings.pairs else 1)  # of which edits do a share
    if stalled > whole / 2:
        return "a faster disk: generation waits for files"
    stepping = (seconds.get(DENOISER, 0.0) + seconds.get(SCHEDULER, 0.0)) / max(whole, 1e-9)
    if stepping > 0.5:
        steps = settings.steps * (1 - 0.5 / stepping)
        fewer = f"in place of {settings.steps} (other images)"
        if steps >= fewest:
            return f"generate.steps {int(steps)} {fewer}"
        if settings.engine == "onnxruntime" and settings.quantization is None and steps * _INT8 >= fewest:
            return f"generate.quantization int8 and generate.steps {int(steps * _INT8)} {fewer}"
    if small_decoders and seconds.get(DECODER, 0.0) > whole / 2:
        return "a small decoder (other images): generate.decoder"
    if seconds.get("filters", 0.0) > whole / 2:
        return "fewer generate.filters"
    return f"{2 * processes} processes on as many devices (torchrun)"
