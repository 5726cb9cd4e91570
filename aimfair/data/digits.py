"""Colored digits: the 1,797 handwritten digits bundled with scikit-learn, drawn in two ink colors.

The ink is the protected attribute. Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository (CC BY 4.0).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from aimfair.base.errors import ConfigError
from aimfair.base.libraries import optional
from aimfair.base.seeds import generator
from aimfair.data.biased_subset import biased_indices, check_majority
from aimfair.data.images import ImageSet, Splits
from aimfair.data.settings import DataSettings

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

Part = Literal["generator", "train", "validation", "test"]
Integers = npt.NDArray[np.int64]

PART_SIZES: dict[Part, int] = {"generator": 720, "train": 500, "validation": 200, "test": 377}
"""Digits in each part, which are disjoint. The shipped text-to-image model was trained on the generator's part only."""

PART_SEED = 0
"""Fixed, so that the shipped model has never seen a digit of another part."""

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TARGETS: dict[str, tuple[tuple[str, ...], Callable[[Integers], Integers]]] = {
    "at_least_five": (("zero to four", "five to nine"), lambda digits: (digits >= 5).astype(np.int64)),
    "digit": (DIGIT_NAMES, lambda digits: digits),
}
"""Target -> names of its classes, and the class of each digit."""


def load(settings: DataSettings) -> Splits:
    """Biased training and validation images, and a test set with every digit in every ink.

    Styles and inks are drawn with ``settings.seed``; the parts never change.

    Raises:
        ConfigError: an unsupported image size or majority.
    """
    if settings.image_size != SIZE:
        raise ConfigError(f"data.image_size: found {settings.image_size}, digits are drawn at {SIZE}")
    names, _ = TARGETS[settings.target]
    check_majority(settings.majority, len(names), len(INKS))
    return Splits(
        train=biased(settings, "train", settings.train_images),
        validation=biased(settings, "validation"),
        test=balanced(settings, "test"),
        target_names=names,
        protected_names=tuple(INKS),
    )


def biased(settings: DataSettings, part: Part, total: int | None = None) -> ImageSet:
    """Each digit of a part in one ink: the majority's of its class, or the other for ``minority_ratio`` as many.

    Args:
        total: size of a subset with the exact group sizes of :func:`aimfair.data.biased_subset.group_sizes`; None:
            all digits.
    """
    digits, labels, numbers = handwritten(part)
    target = TARGETS[settings.target][1](labels)
    rng = generator(settings.seed, "digits", part, "inks")
    protected = np.array(settings.majority, dtype=np.int64)[target]
    for y, majority in enumerate(settings.majority):
        members = rng.permutation(np.flatnonzero(target == y))
        minority = members[: round(len(members) * settings.minority_ratio / (1 + settings.minority_ratio))]
        protected[minority] = 1 - majority
    images = _draw(settings, part, digits, target, protected, numbers)
    if total is None:
        return images
    chosen = biased_indices(target, protected, settings.majority, settings.minority_ratio, total, settings.seed)
    return images.subset(chosen)


def balanced(settings: DataSettings, part: Part) -> ImageSet:
    """Each digit of a part in every ink."""
    digits, labels, numbers = handwritten(part)
    each = len(INKS)
    protected = np.tile(np.arange(each, dtype=np.int64), len(labels))
    target = TARGETS[settings.target][1](labels)
    return _draw(settings, part, digits.repeat(each, axis=0), target.repeat(each), protected, numbers.repeat(each))


def handwritten(part: Part) -> tuple[npt.NDArray[np.float64], Integers, Integers]:
    """``(digits [N, 8, 8] of 0 to 16, labels [N] of 0 to 9, numbers [N] in scikit-learn's order)`` of one part."""
    with optional("data.kind digits", "scikit-learn"):
        from sklearn.datasets import load_digits

    bundle = load_digits()
    order = generator(PART_SEED, "digits", "parts").permutation(len(bundle.target))
    ends = np.cumsum(list(PART_SIZES.values()))
    parts = dict(zip(PART_SIZES, np.split(order, ends[:-1]), strict=True))
    numbers = np.sort(parts[part])
    return bundle.images[numbers], bundle.target[numbers].astype(np.int64), numbers


def _draw(
    settings: DataSettings,
    part: Part,
    digits: npt.NDArray[np.float64],
    target: Integers,
    protected: Integers,
    numbers: Integers,
) -> ImageSet:
    rng = generator(settings.seed, "digits", part, "styles")
    inks = list(INKS)
    styles = [random_style(inks[a], rng) for a in protected]
    return ImageSet(render(digits, styles, rng), target, protected, tuple(f"digit {number}" for number in numbers))


# -- drawing: 8x8 handwritten digits as 32x32 colour images, ink on paper ----------------------------------------------


@dataclass(frozen=True)
class Style:
    """How one digit is written: keys of the tables above."""

    ink: str
    stroke: str
    tilt: str
    paper: str

    @property
    def contexts(self) -> dict[str, str]:
        """The caption's words besides digit and ink."""
        return {"stroke": self.stroke, "tilt": self.tilt, "paper": f"on {self.paper} paper"}


def random_style(ink: str, rng: np.random.Generator) -> Style:
    """Stroke, tilt and paper drawn independently of the ink."""
    return Style(ink, *(str(rng.choice(list(table))) for table in (STROKES, TILTS, PAPERS)))


def render(
    digits: npt.NDArray[np.floating], styles: Sequence[Style], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Draws each digit in its style, with small random variations.

    Args:
        digits: [N, 8, 8], 0 (paper) to 16 (ink), as scikit-learn bundles them.
        styles: N styles.
        rng: varies placement, size, tilt, ink and paper slightly.

    Returns:
        uint8 [N, SIZE, SIZE, 3], RGB.
    """
    n = len(digits)
    scale = 1.28 + rng.uniform(-0.08, 0.08, n)  # above 1 leaves a margin around the digit
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
