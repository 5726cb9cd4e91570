"""Compares sampling with shortcuts to the plain model: pixels and speed, on the first images of a job."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from aimfair.base.log import SILENT, Log
from aimfair.base.memory import OutOfMemory
from aimfair.diffusion.sampler import Comparison, Samples
from aimfair.diffusion.settings import TextToImageSettings
from aimfair.diffusion.text_to_image import Diffusion

IMAGES = 8
"""So many are compared, at most."""

_ENOUGH = 10.0  # seconds of a first call, from which on warming up does not matter


def compare_with_plain(
    diffusion: Diffusion,
    folder: Path,
    settings: TextToImageSettings,
    device: torch.device,
    texts: Sequence[str],
    seeds: Sequence[int],
    log: Log,
) -> Comparison | None:
    """Makes the images with both; None, with a warning, if there is no memory for a second model.

    Args:
        diffusion: with the shortcuts of ``settings``.
        folder: of the model.
        texts, seeds: of the images.
    """
    try:
        plain = Diffusion(folder, settings.plain, device, SILENT)
        expected, plain_seconds = _timed(lambda: plain.sample(texts, seeds))
    except (torch.OutOfMemoryError, OutOfMemory):  # while it is loaded, or while it samples
        log.warn("not compared with the plain model: there is no memory for both")
        return None
    finally:
        plain = None  # type: ignore[assignment]
        gc.collect()
        torch.cuda.empty_cache()
    found, seconds = _timed(lambda: diffusion.sample(texts, seeds))
    diffusion.restart_clock()
    differences = np.abs(found.images.astype(np.int16) - expected.images)
    comparison = Comparison(
        shortcuts=settings.shortcuts,
        images=len(texts),
        largest=int(differences.max()),
        mean=float(differences.mean()),
        ratio=plain_seconds / max(seconds, 1e-9),
    )
    log("comparison", **comparison.model_dump())
    log.tell(str(comparison))
    return comparison


def _timed(sample: Callable[[], Samples]) -> tuple[Samples, float]:
    """The images and the seconds of a second call; of the first, if that took long."""
    for _ in range(2):
        begin = time.perf_counter()
        samples = sample()
        seconds = time.perf_counter() - begin
        if seconds >= _ENOUGH:
            break
    return samples, seconds
