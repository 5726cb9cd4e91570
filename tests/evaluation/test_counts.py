"""The table of counts, and what several models say about the same images."""

import numpy as np
import pytest

from aimfair.evaluation.intervals import PairedPredictions
from aimfair.evaluation.metrics import count_predictions


def draw(generator: np.random.Generator, n: int, targets: int, protected_values: int) -> tuple[np.ndarray, ...]:
    return (
        generator.integers(targets, size=n),
        generator.integers(protected_values, size=n),
        generator.integers(targets, size=n),
    )


@pytest.mark.parametrize(("n", "targets", "protected_values"), [(0, 2, 2), (1, 2, 2), (500, 2, 3), (500, 10, 2)])
def test_counts_are_those_of_a_loop(n: int, targets: int, protected_values: int) -> None:
    target, protected, predicted = draw(np.random.default_rng(n), n, targets, protected_values)
    expected = np.zeros((protected_values, targets, targets), dtype=np.int64)
    for y, a, k in zip(target, protected, predicted, strict=True):
        expected[a, y, k] += 1
    counts = count_predictions(target, protected, predicted, targets, protected_values)
    assert counts.dtype == np.int64
    assert np.array_equal(counts, expected)


def test_a_prediction_outside_the_classes_is_refused() -> None:
    good, bad = np.array([0, 1]), np.array([0, 2])
    with pytest.raises(ValueError, match="predicted holds 0 to 2, expected 0 to 1"):
        count_predictions(good, good, bad, 2, 2)
    with pytest.raises(ValueError, match=r"target holds -1 to 0"):
        count_predictions(-good, good, good, 2, 2)
    with pytest.raises(ValueError, match="expected one length"):
        count_predictions(good, good, good[:1], 2, 2)


def test_pairs_keep_every_image_and_who_said_what() -> None:
    generator = np.random.default_rng(1)
    target, protected, _ = draw(generator, 300, 3, 2)
    predicted = generator.integers(3, size=(4, 300))
    paired = PairedPredictions.of(target, protected, predicted, 3, 2)
    for model in range(4):
        counts = np.zeros((6, 3))
        for stratum in paired.strata:
            counts[stratum.groups[0]] = np.bincount(stratum.predicted[:, 0, model], stratum.sizes, minlength=3)
        assert np.array_equal(counts.reshape(2, 3, 3), count_predictions(target, protected, predicted[model], 3, 2))
    agreeing = PairedPredictions.of(target, protected, predicted[[0, 0, 0]], 3, 2)
    assert all(len(stratum.sizes) <= 3 for stratum in agreeing.strata), "models that agree make no more cells than one"


def test_pairs_of_an_empty_group() -> None:
    target, protected = np.array([0, 1, 0]), np.array([0, 0, 1])
    paired = PairedPredictions.of(target, protected, np.array([[0, 1, 1], [1, 1, 1]]), 2, 2)
    assert [stratum.groups.tolist() for stratum in paired.strata] == [[0], [1], [2]]
    assert [stratum.sizes.tolist() for stratum in paired.strata] == [[1], [1], [1]]


def test_images_of_one_original_stay_together() -> None:
    target, protected = np.array([0, 0, 1, 1, 0]), np.array([0, 1, 0, 1, 0])
    predicted = np.array([[0, 1, 1, 1, 0]])
    paired = PairedPredictions.of(target, protected, predicted, 2, 2, ["p", "p", "q", "q", "r"])
    found = {tuple(stratum.groups.tolist()): stratum.predicted[..., 0].tolist() for stratum in paired.strata}
    assert found == {(0,): [[0]], (0, 2): [[0, 1]], (1, 3): [[1, 1]]}
