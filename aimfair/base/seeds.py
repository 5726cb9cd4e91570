"""Every random choice is a function of a seed and of what the choice is for, so that nothing depends on order."""

import hashlib

import numpy as np


def derive_seed(*purpose: int | str) -> int:
    """A seed in [0, 2^63) for ``purpose``, for example ``derive_seed(100, "augment", epoch, step)``."""
    text = "\0".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*purpose: int | str) -> np.random.Generator:
    """The NumPy generator of ``purpose``."""
    return np.random.default_rng(derive_seed(*purpose))
