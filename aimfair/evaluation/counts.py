"""The table that every metric is computed from: how often each class was predicted in each group.

Shapes: A protected values, Y target classes, K = Y predicted classes, N images, M sets of predictions.
"""

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
class PairedPredictions:
    """What M sets of predictions say about the same images; images about which they say the same are one cell.

    It keeps what separate counts lose: on which images two models agree. With M = 1 it holds the counts themselves.

    Attributes:
        sizes: for each group, in the order of [A, Y], int64 [C]: images of each cell. C is 0 in an empty group.
        predicted: for each group int64 [C, M]: the classes predicted for the images of each cell.
        shape: (A, Y).
    """

    sizes: tuple[Integers, ...]
    predicted: tuple[Integers, ...]
    shape: tuple[int, int]

    @classmethod
    def of(
        cls, target: Integers, protected: Integers, predicted: Integers, targets: int, protected_values: int
    ) -> "PairedPredictions":
        """From int64 ``predicted`` [M, N]; the other arguments, and errors, as in :func:`count_predictions`."""
        for one in predicted:
            _check(target, protected, one, targets, protected_values)
        sizes, cells = [], []
        for a in range(protected_values):
            for y in range(targets):
                in_group = predicted[:, (protected == a) & (target == y)].T
                unique, counts = np.unique(in_group, axis=0, return_counts=True)
                sizes.append(counts.astype(np.int64))
                cells.append(unique)
        return cls(tuple(sizes), tuple(cells), (protected_values, targets))


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
