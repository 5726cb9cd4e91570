"""Two sets of images as one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError
from aimfair.data.images import ImageSet, Pixels


def union(first: ImageSet, second: ImageSet) -> ImageSet:
    """The images of ``first`` and then those of ``second``, which are read where they are.

    Raises:
        AimfairError: images of different sizes.
    """
    shapes = [images.images.shape[1:] for images in (first, second)]
    if shapes[0] != shapes[1]:
        raise AimfairError(f"images of {shapes[0]} and {shapes[1]} cannot be one set; expected one data.image_size")
    return ImageSet(
        _Joined(first.images, second.images),
        np.concatenate([first.target, second.target]),
        np.concatenate([first.protected, second.protected]),
        first.ids + second.ids,
    )


class _Joined:
    """Pixels of two sets, one after the other, without a copy: both together often do not fit into memory."""

    dtype = np.dtype(np.uint8)

    def __init__(self, first: Pixels, second: Pixels):
        self._first, self._second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> npt.NDArray[np.uint8]:
        if isinstance(index, int | np.integer):
            number = range(len(self))[index]  # from the end if negative; IndexError past it
            ahead = len(self._first)
            return self._first[number] if number < ahead else self._second[number - ahead]
        numbers = np.arange(len(self))[index]
        out = np.empty((len(numbers), *self.shape[1:]), np.uint8)
        for place, number in enumerate(numbers):
            out[place] = self[number]
        return out
