"""Pairs of 64-bit hashes that differ in few bits, among hundreds of thousands, without comparing each with each."""

from itertools import combinations

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

_BANDS = (11, 11, 11, 11, 10, 10)  # bits of each
_WINDOW, _MOST_PAIRS = 200, 1_000_000


def near_pairs(hashes: Hashes, part: Integers, bits: int = 3) -> tuple[Integers, bool]:
    """All pairs of hashes of different parts that differ in at most ``bits`` bits.

    So many changed bits lie in as many of six bands at most, so two such hashes agree in all bits of some 6 - ``bits``
    bands: for every choice of these, the hashes are sorted by them, and only those that agree are compared (Manku, Jain
    and Das Sarma 2007, "Detecting near-duplicates for web crawling"). The time grows with N, if the hashes are spread.

    Args:
        hashes, part: [N].
        bits: 0 to 3.

    Returns:
        int64 [P, 2], each pair with its smaller number first, sorted; and whether they are all: among hashes that agree
        in a choice of bands each is compared with the next 200 alone, and after a million pairs the search ends.
    """
    n = len(hashes)
    found = np.empty(0, dtype=np.int64)  # smaller number times N plus the larger one
    complete = True
    for mask in _masks(len(_BANDS) - bits):
        key = hashes & mask
        order = np.lexsort((hashes, key)).astype(np.int64)
        key = key[order]
        here = np.arange(n, dtype=np.int64)
        new = [found]
        for step in range(1, _WINDOW + 2):
            here = here[here + step < n]
            here = here[key[here] == key[here + step]]
            if len(here) == 0:
                break
            if step > _WINDOW:
                complete = False
                break
            first, second = order[here], order[here + step]
            near = np.bitwise_count(hashes[first] ^ hashes[second]) <= bits
            near &= part[first] != part[second]
            first, second = first[near], second[near]
            new.append(np.minimum(first, second) * n + np.maximum(first, second))
        found = np.unique(np.concatenate(new))
        if len(found) > _MOST_PAIRS:
            complete = False
            break
    return np.stack(np.divmod(found, max(n, 1)), axis=1), complete


def _masks(kept: int) -> list[np.uint64]:
    """For every choice of so many bands, the bits of these bands."""
    ends = np.cumsum(_BANDS)
    bands = [((1 << width) - 1) << (int(end) - width) for width, end in zip(_BANDS, ends, strict=True)]
    return [np.uint64(sum(chosen)) for chosen in combinations(bands, kept)]
