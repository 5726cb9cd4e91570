"""What is rejected, and why."""

import numpy as np
import pytest

from aimfair.generation.filters.pixels import blank

NOISE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)


def flat(*colour: int, change: int = 0) -> np.ndarray:
    pixels = np.full((4, 4, 3), colour, dtype=np.uint8)
    pixels[0, 0, 1] += change
    return pixels


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (NOISE, None),
        (flat(0, 0, 0), "black"),
        (flat(0, 0, 0, change=7), "black"),
        (flat(0, 0, 0, change=8), None),
        (flat(255, 255, 255), "constant"),
        (flat(10, 200, 90), "constant"),  # one colour, though its channels differ
        (flat(10, 200, 90, change=7), "constant"),
        (flat(10, 200, 90, change=8), None),
    ],
)
def test_pixels(pixels: np.ndarray, reason: str | None) -> None:
    assert blank(pixels, True) == reason


def test_not_finite_comes_first() -> None:
    assert blank(flat(0, 0, 0), False) == "not_finite"
    assert blank(NOISE, False) == "not_finite"
