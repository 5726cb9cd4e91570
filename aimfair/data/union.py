"""Two sets of images as one."""

import tempfile
from pathlib import Path

import numpy as np

from aimfair.data.images import ImageSet
from aimfair.errors import AimfairError

_AT_ONCE = 256  # images copied at a time


def union(first: ImageSet, second: ImageSet, folder: Path) -> ImageSet:
    """The images of ``first`` and then those of ``second``, in a map of a nameless file that ends with the process.

    As large as both together, it would often not fit into memory.

    Args:
        folder: on the disk to use; made if absent.

    Raises:
        AimfairError: images of different sizes.
    """
    shapes = [images.images.shape[1:] for images in (first, second)]
    if shapes[0] != shapes[1]:
        raise AimfairError(f"images of {shapes[0]} and {shapes[1]} cannot be one set; expected one data.image_size")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        for images in (first, second):
            for start in range(0, len(images), _AT_ONCE):
                file.write(np.ascontiguousarray(images.images[start : start + _AT_ONCE]).data)
        file.flush()
        pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(len(first) + len(second), *shapes[0]))
    return ImageSet(
        pixels,
        np.concatenate([first.target, second.target]),
        np.concatenate([first.protected, second.protected]),
        first.ids + second.ids,
    )
