"""Batches of an epoch and the learning rate of a step: functions of settings and position alone."""

import math

import numpy as np
import numpy.typing as npt

from aimfair.training.settings import OptimizerSettings


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Batches of one epoch: as few as hold every image, none of a single image unless ``batch_size`` is 1.

    BatchNorm cannot be trained on one value per channel.
    """
    steps = -(-images // batch_size)
    return min(steps, max(images // 2, 1)) if batch_size > 1 else steps


def epoch_batches(order: npt.NDArray[np.int64], batch_size: int) -> list[npt.NDArray[np.int64]]:
    """The images of an epoch cut into batches, in their order.

    Sizes differ by at most one, so that no small last batch weighs as much as the others; they are at most
    ``batch_size`` (3 for ``batch_size`` 2 and an odd number of images).
    """
    return np.array_split(order, steps_per_epoch(len(order), batch_size))


def learning_rate(settings: OptimizerSettings, epoch: int, step: int, steps: int) -> float:
    """Of step ``step`` (from 0) of ``steps`` in epoch ``epoch`` (from 1).

    ``step`` divides by 10 after every ``step_epochs`` epochs; ``cosine`` falls from lr at the first step towards 0
    after the last (arXiv 1608.03983, without restarts).
    """
    if settings.schedule == "step":
        return settings.lr * 0.1 ** ((epoch - 1) // settings.step_epochs)
    if settings.schedule == "cosine":
        done = ((epoch - 1) * steps + step) / (settings.epochs * steps)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr
