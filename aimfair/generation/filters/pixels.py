"""Images that show nothing, whatever they were to show."""

import numpy as np
import numpy.typing as npt

REASONS = frozenset({"not_finite", "black", "constant"})

_LEAST_RANGE = 8  # grey levels between the darkest and the brightest value of a channel; below, nothing can be seen


def rejection(pixels: npt.NDArray[np.uint8], finite: bool) -> str | None:
    """Why an image cannot be kept; None if it can.

    Args:
        pixels: uint8 [H, W, 3].
        finite: False if the model gave NaN or infinite values.

    Returns:
        "not_finite"; "black", as overflow leaves it; "constant", of one colour; or None.
    """
    if not finite:
        return "not_finite"
    darkest, brightest = pixels.min((0, 1)).astype(int), pixels.max((0, 1)).astype(int)  # of each channel
    if (brightest - darkest).max() < _LEAST_RANGE:
        return "black" if brightest.max() < _LEAST_RANGE else "constant"
    return None
