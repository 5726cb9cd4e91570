"""The table that every metric is computed from: how often each class was predicted in each group.

Shapes: A protected values, Y target classes, K = Y predicted classes, N images, M sets of predictions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def count_predictions(
    target: Integers, protected: Integers, predicted: Integers, targets: int, protected_values: int
) -> Integers:
    """Images of each protected value, class and predicted class.

    Args:
        target: int64 [N], the true class y, in [0, targets).
        protected: int64 [N], the protected attribute a, in [0, protected_values).
        predicted: int64 [N], the predicted class k, in [0, targets).

    Returns:
        int64 [A, Y, K].

    Raises:
        ValueError: the lengths differ, or a value is out of its range.
    """
    _check(target, protected, predicted, targets, protected_values)
    cells = (protected * targets + target) * targets + predicted
    counts = np.bincount(cells, minlength=protected_values * targets * targets)
    return counts.astype(np.int64).reshape(protected_values, targets, targets)


@dataclass(frozen=True)
class Stratum:
    """Originals whose images lie in the same groups.

    Attributes:
        groups: int64 [J], ascending: the group a * Y + y of each image of one original.
        sizes: int64 [C]: originals of each cell; in a cell all M sets say the same of all J images.
        predicted: int64 [C, J, M]: what they say.
    """

    groups: Integers
    sizes: Integers
    predicted: Integers


@dataclass(frozen=True)
class PairedPredictions:
    """What M sets of predictions say about the same images.

    It keeps what separate counts lose: on which images two models agree, and which images show one original. Originals,
    not images, are what chance has drawn.

    Attributes:
        strata: all originals, each in one.
        shape: (A, Y).
        models: M.
    """

    strata: tuple[Stratum, ...]
    shape: tuple[int, int]
    models: int

    @classmethod
    def of(
        cls,
        target: Integers,
        protected: Integers,
        predicted: Integers,
        targets: int,
        protected_values: int,
        ids: Sequence[str] | None = None,
    ) -> "PairedPredictions":
        """From int64 ``predicted`` [M, N]; the other arguments, and errors, as in :func:`count_predictions`.

        Args:
            ids: of each image the original that it shows; None: each its own.
        """
        for one in predicted:
            _check(target, protected, one, targets, protected_values)
        group = protected * targets + target
        originals: dict[str | int, list[int]] = {}
        for image in np.argsort(group, kind="stable").tolist():
            originals.setdefault(image if ids is None else ids[image], []).append(image)
        alike: dict[tuple[int, ...], list[list[int]]] = {}
        for images in originals.values():
            alike.setdefault(tuple(group[images].tolist()), []).append(images)
        strata = []
        for groups, members in sorted(alike.items()):
            said = predicted[:, np.array(members)].transpose(1, 2, 0)  # [originals, J, M]
            cells, sizes = np.unique(said, axis=0, return_counts=True)
            strata.append(Stratum(np.array(groups, dtype=np.int64), sizes.astype(np.int64), cells))
        return cls(tuple(strata), (protected_values, targets), len(predicted))


def _check(target: Integers, protected: Integers, predicted: Integers, targets: int, protected_values: int) -> None:
    if not target.shape == protected.shape == predicted.shape or target.ndim != 1:
        raise ValueError(
            f"target, protected and predicted are {target.shape}, {protected.shape} and {predicted.shape},"
            " expected one length"
        )
    limits = {
        "target": (target, targets),
        "protected": (protected, protected_values),
        "predicted": (predicted, targets),
    }
    for name, (values, limit) in limits.items():
        if len(values) and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{name} holds {values.min()} to {values.max()}, expected 0 to {limit - 1}")
