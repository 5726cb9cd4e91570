"""Captions of the images of the generator's part."""

from collections.abc import Sequence

import numpy as np

from aimfair.data.digits import DIGIT_NAMES, INKS, PAPERS, STROKES, TILTS, Style


def caption(digit: int, style: Style, rng: np.random.Generator) -> str:
    """A true sentence: digit and ink always, each context in two of three captions, in any order."""
    contexts = [text for text in style.contexts.values() if rng.random() < 2 / 3]
    rng.shuffle(contexts)
    return ", ".join([f"a handwritten {DIGIT_NAMES[digit]} in {style.ink} ink", *contexts])


def every_word() -> Sequence[str]:
    """Texts that together hold every word a caption can have."""
    styles = [*STROKES, *TILTS, *(f"on {paper} paper" for paper in PAPERS)]
    return [f"a handwritten {digit} in {ink} ink, {style}" for digit in DIGIT_NAMES for ink in INKS for style in styles]
