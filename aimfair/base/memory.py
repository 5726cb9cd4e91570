"""Batch sizes that fit in memory."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from aimfair.base.errors import AimfairError

T = TypeVar("T")


class OutOfMemory(AimfairError):
    """The device has no memory for a single image."""


class MicroBatch:
    """The number of images in one forward pass: halved whenever the device runs out of memory, and kept.

    Args:
        size: images at first.
    """

    def __init__(self, size: int):
        self.size = size

    def attempt(self, work: Callable[[int], T]) -> T:
        """``work(size)``, retried with half the size while it runs out of memory.

        Raises:
            OutOfMemory: a single image does not fit.
        """
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise OutOfMemory(
                        "out of memory with a single image; choose smaller images, a smaller model or another device"
                    ) from error
            # Outside the except clause: inside, the error keeps the frames alive, and they the tensors.
            self.size = (self.size + 1) // 2
            torch.cuda.empty_cache()


def pieces(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total`` in order, as few as possible and as even as possible."""
    count = -(-total // size)
    return (slice(total * number // count, total * (number + 1) // count) for number in range(count))
