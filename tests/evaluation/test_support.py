"""Whose images a metric hangs on, in tables that a reader can check."""

import numpy as np
import pytest

from aimfair.evaluation.metrics import METRICS, support


def table(groups: list[list[tuple[int, int]]]) -> np.ndarray:
    """Counts [A, 2, 2] from (images, right ones) of [a][y]."""
    counts = np.zeros((len(groups), 2, 2), dtype=np.int64)
    for a, of_value in enumerate(groups):
        for y, (images, right) in enumerate(of_value):
            counts[a, y, y], counts[a, y, 1 - y] = right, images - right
    return counts


MIDDLE = table([[(100, 90), (100, 60)], [(8, 6), (100, 80)], [(100, 70), (100, 95)]])
"""The small group (y=0, a=1) has neither the largest nor the smallest rate of its class, nor the worst of all."""


@pytest.mark.parametrize(
    ("metric", "images"),
    [
        ("accuracy", None),
        ("balanced_accuracy", None),
        ("worst_group_accuracy", 100),
        ("worst_present_group_accuracy", 100),
        ("group_std", 8),
        ("eo_mean", 100),
        ("eo_max", 100),
        ("eo_ratio", 100),
        ("equal_opportunity", 100),
        ("demographic_parity", 108),
    ],
)
def test_a_small_group_that_decides_nothing(metric: str, images: int | None) -> None:
    assert support(metric, MIDDLE) == images


def test_a_small_group_at_the_end_decides() -> None:
    """It alone has the most false positives; only the recall of class 1 and what hangs on it are others' matter."""
    end = table([[(100, 90), (100, 60)], [(8, 4), (100, 80)], [(100, 70), (100, 95)]])
    found = {metric: support(metric, end) for metric in METRICS}
    assert found["worst_group_accuracy"] == found["eo_mean"] == found["eo_max"] == found["eo_ratio"] == 8
    assert found["equal_opportunity"] == 100
    both = np.stack([MIDDLE, end], axis=-1)
    assert support("worst_group_accuracy", both) == 8, "one of several models is enough"


def test_of_equal_groups_the_largest_speaks() -> None:
    equal = table([[(100, 50), (100, 100)], [(4, 2), (4, 4)]])
    assert support("worst_group_accuracy", equal) == 100
    assert support("eo_max", equal) == 100


def test_what_is_undefined_is_decided_by_none() -> None:
    empty = table([[(100, 50), (0, 0)], [(40, 30), (40, 20)]])
    assert support("worst_group_accuracy", empty) is None
    assert support("worst_present_group_accuracy", empty) == 100
    assert support("equal_opportunity", empty) is None
    assert support("demographic_parity", empty) == 80
