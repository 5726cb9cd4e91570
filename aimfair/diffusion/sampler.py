"""The interface of text-to-image models, as generation sees it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt


class Samples(NamedTuple):
    """B images.

    Attributes:
        images: uint8 [B, H, W, 3], RGB.
        finite: bool [B]; False where the model returned NaN or infinite values.
    """

    images: npt.NDArray[np.uint8]
    finite: npt.NDArray[np.bool_]


class Sampler(Protocol):
    """A loaded text-to-image model.

    Attributes:
        seconds: part of the work -> seconds so far; empty if nothing is measured.
    """

    @property
    def seconds(self) -> Mapping[str, float]: ...

    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        """One image for each prompt and seed, deterministically; seeds are in [0, 2^63)."""
