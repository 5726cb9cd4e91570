"""Coloured digits: the 1,797 handwritten digits that scikit-learn bundles, drawn in ink of two colours.

The ink is the protected attribute. Source of the digits: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
Digits, UCI Machine Learning Repository (CC BY 4.0).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.seeds import generator
from aimfair.data.biased_subset import biased_indices, check_majority
from aimfair.data.images import ImageSet, Splits
from aimfair.data.render import INKS, SIZE, random_style, render
from aimfair.data.settings import DataSettings

Part = Literal["generator", "train", "validation", "test"]
Integers = npt.NDArray[np.int64]

PART_SIZES: dict[Part, int] = {"generator": 720, "train": 500, "validation": 200, "test": 377}
"""Originals in each part; no original is in two. The generator's part is all that the shipped model was trained on."""

PART_SEED = 0
"""The parts are the same in every run: the shipped model must never have seen a digit of another part."""

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TARGETS: dict[str, tuple[tuple[str, ...], Callable[[Integers], Integers]]] = {
    "at_least_five": (("zero to four", "five to nine"), lambda digits: (digits >= 5).astype(np.int64)),
    "digit": (DIGIT_NAMES, lambda digits: digits),
}
"""Target -> names of its classes, and the class of each digit."""


def load(settings: DataSettings) -> Splits:
    """Training and validation images with the bias, and a test set with every original in every ink.

    Styles and inks are drawn with ``settings.seed``; the parts never change.

    Raises:
        ConfigError: a size or majority that there is not.
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
    """Each original of a part in one ink: in ``majority``'s of its class but for a minority of the size of the bias.

    Args:
        total: images of a subset with exactly the sizes of :func:`aimfair.data.biased_subset.group_sizes`; None: all.
    """
    digits, labels, numbers = originals(part)
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
    """Each original of a part in every ink."""
    digits, labels, numbers = originals(part)
    each = len(INKS)
    protected = np.tile(np.arange(each, dtype=np.int64), len(labels))
    target = TARGETS[settings.target][1](labels)
    return _draw(settings, part, digits.repeat(each, axis=0), target.repeat(each), protected, numbers.repeat(each))


def originals(part: Part) -> tuple[npt.NDArray[np.float64], Integers, Integers]:
    """``(digits [N, 8, 8] of 0 to 16, labels [N] of 0 to 9, numbers [N] in scikit-learn's order)`` of one part."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise AimfairError("the digits come with scikit-learn, which is missing: pip install scikit-learn") from error

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
