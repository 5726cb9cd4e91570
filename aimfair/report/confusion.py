"""Which classes are taken for which, where there are more than two."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aimfair.evaluation.results import Results


@dataclass(frozen=True)
class Confusion:
    """Of one protected value: a row for each true class, the shares of the predicted ones (NaN without images)."""

    protected: str
    rows: Sequence[tuple[str, int, Sequence[float]]]


def confusions(results: Results) -> list[Confusion]:
    """Of the default method, mean over its seeds; none with two classes, where the group accuracies say all."""
    if len(results.target_names) == 2:
        return []
    counts = np.mean([seed.counts for seed in results.methods[results.default_method].seeds], axis=0)
    with np.errstate(invalid="ignore"):
        shares = counts / counts.sum(axis=2, keepdims=True)
    return [
        Confusion(
            protected,
            [
                (target, results.test_images[a][y], shares[a, y].tolist())
                for y, target in enumerate(results.target_names)
            ],
        )
        for a, protected in enumerate(results.protected_names)
    ]
