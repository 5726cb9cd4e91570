"""Filters that need the pixels alone: images that show nothing, and near-duplicates."""

import numpy as np
import numpy.typing as npt

from aimfair.generation.reasons import BLACK, CONSTANT, NOT_FINITE

_LEAST_RANGE = 8  # grey levels between the darkest and the brightest value of a channel; below, nothing is visible
_BLOCK = 512  # rows and columns of distances at a time: 2 MB, which caches hold


def blank(pixels: npt.NDArray[np.uint8], finite: bool) -> str | None:
    """Why an image shows nothing; None if it shows something.

    Args:
        pixels: uint8 [H, W, 3].
        finite: False if the model gave NaN or infinite values.

    Returns:
        One of :data:`aimfair.generation.reasons.BLANK`: not finite; black, as left by overflow; constant, a single
        colour. Or None.
    """
    if not finite:
        return NOT_FINITE
    darkest, brightest = pixels.min((0, 1)).astype(int), pixels.max((0, 1)).astype(int)  # of each channel
    if (brightest - darkest).max() < _LEAST_RANGE:
        return BLACK if brightest.max() < _LEAST_RANGE else CONSTANT
    return None


class NearDuplicates:
    """A set of perceptual hashes (:func:`aimfair.data.decode.dhash`), any two of which differ in more than ``bits``
    bits.

    Adding 50,000 takes 1.3 seconds on a core, 250,000 half a minute: the time grows with the square of their number,
    the memory does not.
    """

    def __init__(self, bits: int):
        self._bits = bits
        self._kept = np.empty(0, dtype=np.uint64)

    def add(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Adds hashes one after the other, except those too close to one already in the set.

        Args:
            hashes: [N].

        Returns:
            [N], True where the hash was added.
        """
        added = np.zeros(len(hashes), dtype=np.bool_)
        for start in range(0, len(hashes), _BLOCK):
            block = hashes[start : start + _BLOCK]
            free = np.ones(len(block), dtype=np.bool_)
            for first in range(0, len(self._kept), _BLOCK):
                free &= ~self._near(block, self._kept[first : first + _BLOCK]).any(axis=1)
            among = self._near(block, block)
            for row in np.flatnonzero(free):
                free[row + 1 :] &= ~among[row, row + 1 :] | ~free[row]
            added[start : start + len(block)] = free
            self._kept = np.concatenate([self._kept, block[free]])
        return added

    def _near(self, first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """[len(first), len(second)]"""
        return np.asarray(np.bitwise_count(first[:, None] ^ second[None, :]) <= self._bits)
