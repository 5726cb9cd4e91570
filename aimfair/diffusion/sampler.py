"""What makes images, as those who want images see it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Samples(NamedTuple):
    """B images.

    Attributes:
        images: uint8 [B, H, W, 3], RGB.
        finite: bool [B]; where False, the model gave NaN or infinite values.
    """

    images: npt.NDArray[np.uint8]
    finite: npt.NDArray[np.bool_]


class Sampler(Protocol):
    """A text-to-image model that is ready."""

    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each text and seed, in [0, 2^63); the same ones for the same texts and seeds."""
