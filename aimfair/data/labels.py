"""Attributes of images and their roles in the settings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aimfair.base.errors import ConfigError
from aimfair.data.settings import DataSettings

MAX_VALUES = 100
"""Most values of a protected attribute. A column with more is a measurement or an id, with nearly empty groups."""

UNKNOWN = "(unknown)"
"""Stands for a missing value of an attribute of ``data.audit``."""


@dataclass(frozen=True)
class Attribute:
    """One attribute of N images.

    Attributes:
        values: int64 [N], indices into ``names``.
        names: of the values; some may have no image.
    """

    values: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> "Attribute":
        """Names are the distinct strings, sorted, numerically if all are integers; :data:`UNKNOWN` comes last."""
        there = set(texts)
        names = (*in_order(there - {UNKNOWN}), *there & {UNKNOWN})
        numbers = {name: number for number, name in enumerate(names)}
        return cls(np.array([numbers[text] for text in texts], dtype=np.int64), names)

    def subset(self, indices: npt.NDArray[np.int64]) -> "Attribute":
        """The images at ``indices``, in that order."""
        return Attribute(self.values[indices], self.names)


def product(attributes: Sequence[Attribute]) -> Attribute:
    """Every combination of values as one value, in row-major order: of (a, b) and (x, y, z) the names are
    "a, x", "a, y", "a, z", "b, x", "b, y", "b, z", whether or not there are images of each."""
    first, *others = attributes
    values, names = first.values, first.names
    for other in others:
        values = values * len(other.names) + other.values
        names = tuple(f"{left}, {right}" for left in names for right in other.names)
    return Attribute(values, names)


@dataclass(frozen=True)
class Labels:
    """Labels of N images.

    Attributes:
        target: the class to be predicted, y.
        protected: the protected attribute, a; with ``data.intersect_with`` the product of all.
        attributes: name -> attribute for further groups in evaluate: the factors of such a product, then
            ``data.audit``.
    """

    target: Attribute
    protected: Attribute
    attributes: Mapping[str, Attribute]

    @classmethod
    def of(cls, settings: DataSettings, known: Mapping[str, Attribute]) -> "Labels":
        """Labels by the roles in ``settings``, whose attributes are all in ``known``.

        Raises:
            ConfigError: an attribute has fewer than two values among the images, or, other than the target, more than
                :data:`MAX_VALUES`.
        """
        for name, key in settings.roles().items():
            _check_values(key, name, known[name])
        crossed = [settings.protected, *settings.intersect_with]
        protected = product([known[name] for name in crossed])
        if len(protected.names) > MAX_VALUES:
            raise ConfigError(
                f"data.intersect_with: {len(protected.names)} combinations of values of {', '.join(crossed)}, expected"
                f" at most {MAX_VALUES}"
            )
        further = [*(crossed if settings.intersect_with else []), *settings.audit]
        return cls(known[settings.target], protected, {name: known[name] for name in further})

    def subset(self, indices: npt.NDArray[np.int64]) -> "Labels":
        """The images at ``indices``, in that order."""
        return Labels(
            self.target.subset(indices),
            self.protected.subset(indices),
            {name: attribute.subset(indices) for name, attribute in self.attributes.items()},
        )


def _check_values(key: str, name: str, attribute: Attribute) -> None:
    present = [attribute.names[number] for number in np.unique(attribute.values)]
    if wrong := wrong_values(present, MAX_VALUES if key != "data.target" else None):
        raise ConfigError(f"{key}: {name!r} has {wrong}")


def wrong_values(names: Sequence[str], most: int | None = MAX_VALUES) -> str | None:
    """How many values an attribute has and should have, in words; None: their number is right."""
    if len(names) < 2:
        return f"{f'1 value, {names[0]}' if names else 'no values'}, expected two or more"
    if most is not None and len(names) > most:
        return (
            f"{len(names):,} values, such as {names[0]!r} and {names[1]!r}, expected at most {most}: groups need names"
            " or bands"
        )
    return None


def in_order(values: Iterable[str]) -> tuple[str, ...]:
    """Sorted; as numbers, if all are."""
    values = list(values)
    if not all(value.isdecimal() and value.isascii() for value in values):
        return tuple(sorted(values))
    # Numerically, without int(), which refuses thousands of digits.
    return tuple(sorted(values, key=lambda value: (len(value.lstrip("0")), value.lstrip("0"), value)))
