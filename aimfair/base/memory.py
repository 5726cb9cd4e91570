"""Working within the memory there is."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from aimfair.base.errors import AimfairError

T = TypeVar("T")


class MicroBatch:
    """How many images go through a model at once: halved whenever the device runs out of memory, never raised again.

    Args:
        size: images at first.
    """

    def __init__(self, size: int):
        self.size = size

    def attempt(self, work: Callable[[int], T]) -> T:
        """``work(size)``, begun again with half the size for as long as it runs out of memory.

        Raises:
            AimfairError: one image is too much.
        """
        while True:
            try:
                return work(self.size)
            except torch.OutOfMemoryError as error:
                if self.size == 1:
                    raise AimfairError(
                        "out of memory with a single image; choose smaller images, a smaller model or another device"
                    ) from error
            # Not in the except clause: there the error holds the frames, and they the tensors that fill the memory.
            self.size = (self.size + 1) // 2
            torch.cuda.empty_cache()


def pieces(total: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``total`` in order, as few as possible and as even as possible."""
    count = -(-total // size)
    return (slice(total * number // count, total * (number + 1) // count) for number in range(count))
