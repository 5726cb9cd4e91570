"""Drawing 8x8 handwritten digits as 32x32 colour images: ink on paper, in a writing style."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

SIZE = 32
"""Pixels along each side."""

INKS = {"green": (38, 128, 62), "red": (178, 48, 52)}
"""Ink -> RGB."""

STROKES = {"thin strokes": 0.62, "medium strokes": 0.45, "thick strokes": 0.32}
"""Stroke -> share of full ink at which a pen line ends: the lower, the thicker."""

TILTS = {"tilted right": 0.38, "upright": 0.0, "tilted left": -0.38}
"""Tilt -> shear of the digit's axis."""

PAPERS = {"white": (244, 244, 240), "cream": (238, 222, 178), "grey": (172, 174, 178)}
"""Paper -> RGB."""


@dataclass(frozen=True)
class Style:
    """How one digit is written: keys of the tables above."""

    ink: str
    stroke: str
    tilt: str
    paper: str

    @property
    def contexts(self) -> dict[str, str]:
        """What a caption says besides digit and ink."""
        return {"stroke": self.stroke, "tilt": self.tilt, "paper": f"on {self.paper} paper"}


def random_style(ink: str, rng: np.random.Generator) -> Style:
    """Stroke, tilt and paper drawn independently of the ink."""
    return Style(ink, *(str(rng.choice(list(table))) for table in (STROKES, TILTS, PAPERS)))


def render(
    digits: npt.NDArray[np.floating], styles: Sequence[Style], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draws each digit in its style, with the small variations of a hand, a pen and a sheet of paper.

    Args:
        digits: [N, 8, 8], 0 (paper) to 16 (ink), as scikit-learn bundles them.
        styles: N styles.
        rng: placement, size, tilt, shade of ink and grain of the paper vary a little with it.

    Returns:
        uint8 [N, SIZE, SIZE, 3], RGB.
    """
    n = len(digits)
    scale = 1.28 + rng.uniform(-0.08, 0.08, n)  # over 1 leaves a margin around the digit
    shear = np.array([TILTS[style.tilt] for style in styles]) + rng.normal(0, 0.05, n)
    shift = rng.uniform(-0.12, 0.12, (n, 2))
    zero = np.zeros(n)
    rows = [[scale, shear * scale, shift[:, 0]], [zero, scale, shift[:, 1]]]
    affine = torch.from_numpy(np.stack([np.stack(row, -1) for row in rows], 1)).float()
    grid = F.affine_grid(affine, [n, 1, SIZE, SIZE], align_corners=False)
    pen = torch.from_numpy(np.asarray(digits, np.float32) / 16)[:, None]
    coverage = F.grid_sample(pen, grid, mode="bicubic", align_corners=False)[:, 0].numpy()

    edge = np.array([STROKES[style.stroke] for style in styles]) + rng.normal(0, 0.02, n)
    ink_share = 1 / (1 + np.exp(-(coverage - edge[:, None, None]) / 0.06))
    ink = np.array([INKS[style.ink] for style in styles]) + rng.normal(0, 9, (n, 3))
    paper = np.array([PAPERS[style.paper] for style in styles]) + rng.normal(0, 4, (n, 1))
    grain = rng.normal(0, 5, (n, SIZE, SIZE, 1))
    ink_share, ink, paper = ink_share[..., None], ink[:, None, None], paper[:, None, None]
    return np.clip(np.rint(paper + (ink - paper) * ink_share + grain), 0, 255).astype(np.uint8)
