"""The table of counts, and what several models say about the same images."""

import numpy as np
import pytest

from aimfair.evaluation.counts import PairedPredictions, count_predictions


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
        counts = np.stack(
            [
                np.bincount(cells[:, model], weights=sizes, minlength=3)
                for sizes, cells in zip(paired.sizes, paired.predicted, strict=True)
            ]
        )
        assert np.array_equal(counts.reshape(2, 3, 3), count_predictions(target, protected, predicted[model], 3, 2))
    agreeing = PairedPredictions.of(target, protected, predicted[[0, 0, 0]], 3, 2)
    assert all(len(sizes) <= 3 for sizes in agreeing.sizes), "models that agree make no more cells than one"


def test_pairs_of_an_empty_group() -> None:
    target, protected = np.array([0, 1, 0]), np.array([0, 0, 1])
    paired = PairedPredictions.of(target, protected, np.array([[0, 1, 1], [1, 1, 1]]), 2, 2)
    assert [sizes.sum() for sizes in paired.sizes] == [1, 1, 1, 0]
    assert paired.predicted[3].shape == (0, 2)
