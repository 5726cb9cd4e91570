"""What a filter is to those who ask it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Group = tuple[int, int]
"""(y, a)"""


class ImageFilter(Protocol):
    """Looks at images by themselves, a batch at a time, between one batch of the sampler and the next."""

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> Sequence[str | None]:
        """Why each image is not to be kept, in a word; None where nothing is wrong with it.

        Args:
            images: uint8 [B, H, W, 3], as they were generated, before they are reduced.
            groups: B groups that they were to show.
        """
