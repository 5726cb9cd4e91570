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
    target, protected = np.tile([0, 0, 1, 1, 0], 20), np.tile([0, 1, 0, 1, 0], 20)
    predicted = np.tile([[0, 1, 1, 1, 0]], 20)
    ids = [f"{original}{copy}" for copy in range(20) for original in "ppqqr"]
    paired = PairedPredictions.of(target, protected, predicted, 2, 2, ids)
    assert not paired.pools
    found = {tuple(stratum.groups.tolist()): stratum for stratum in paired.strata}
    assert {groups: stratum.predicted[..., 0].tolist() for groups, stratum in found.items()} == {
        (0,): [[0]],
        (0, 2): [[0, 1]],
        (1, 3): [[1, 1]],
    }
    assert all(stratum.sizes.tolist() == [20] for stratum in paired.strata)


def test_clusters_with_few_like_them_are_pooled() -> None:
    """By the set of their groups: 30 clusters in (0, 2), 30 in (1,), of 1 to 30 images; and 3 others together."""
    sizes = [*range(1, 31), *range(1, 31), 2, 2, 2]
    ids = np.repeat(np.arange(63), sizes)
    group = np.concatenate(
        [np.tile([0, 2], 465)[np.arange(465) - np.repeat(np.cumsum(range(30)), range(1, 31))], np.full(465, 1)]
    )
    group = np.concatenate([group, [0, 1, 1, 2, 2, 3]])
    predicted = np.random.default_rng(0).integers(2, size=(2, len(ids)))
    paired = PairedPredictions.of(group % 2, group // 2, predicted, 2, 2, ids.astype(str).tolist())
    assert not paired.strata
    assert sorted(pool.count for pool in paired.pools) == [4, 29, 30]  # the cluster of one image has none of group 2
    for group_of, predicted_of in ((pool.group, pool.predicted) for pool in paired.pools):
        assert len(group_of) == len(predicted_of)
    for number in range(4):
        rows = np.concatenate([pool.predicted[pool.group == number] for pool in paired.pools])
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, predicted[:, group == number].T.tolist()))
    for pool in paired.pools:
        assert np.bincount(pool.cluster).min() > 0


def test_cells_of_many_models_and_classes_are_counted_alike() -> None:
    """14 models of 30 classes make more cells than an int64 has."""
    generator = np.random.default_rng(0)
    target, protected = generator.integers(30, size=90), generator.integers(2, size=90)
    predicted = generator.integers(30, size=(14, 90))
    paired = PairedPredictions.of(np.tile(target, 2), np.tile(protected, 2), np.tile(predicted, 2), 30, 2)
    for stratum in paired.strata:
        assert set(stratum.sizes.tolist()) == {2}
        rows = {tuple(row) for row in predicted[:, protected * 30 + target == stratum.groups[0]].T.tolist()}
        assert {tuple(row) for row in stratum.predicted[:, 0].tolist()} == rows
