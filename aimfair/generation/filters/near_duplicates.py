"""Images that look alike though their pixels differ: by the Hamming distance of their dHashes
(``aimfair/data/dhash.py``)."""

import numpy as np
import numpy.typing as npt

_BLOCK = 512  # rows of distances at a time: 80 MB against 20,000 hashes


class NearDuplicates:
    """Hashes, any two of which differ in more than ``bits`` bits.

    20,000 of them take a second, and the time grows with the square of their number.
    """

    def __init__(self, bits: int):
        self._bits = bits
        self._kept = np.empty(0, dtype=np.uint64)

    def add(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Adds one hash after the other, but for those that are too near to one that is there.

        Args:
            hashes: [N].

        Returns:
            [N], where a hash was added.
        """
        added = np.zeros(len(hashes), dtype=np.bool_)
        for start in range(0, len(hashes), _BLOCK):
            block = hashes[start : start + _BLOCK]
            free: npt.NDArray[np.bool_] = np.logical_not(self._near(block, self._kept).any(axis=1))
            among = self._near(block, block)
            for row in np.flatnonzero(free):
                free[row + 1 :] &= ~among[row, row + 1 :] | ~free[row]
            added[start : start + len(block)] = free
            self._kept = np.concatenate([self._kept, block[free]])
        return added

    def _near(self, first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """[len(first), len(second)]"""
        return np.asarray(np.bitwise_count(first[:, None] ^ second[None, :]) <= self._bits)
