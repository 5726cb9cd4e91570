"""Metrics against fairlearn, where both are defined, and against the definitions, where it has none."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aimfair.evaluation import metrics
from aimfair.evaluation.metrics import count_predictions

COUNTS = arrays(np.int64, st.tuples(st.integers(2, 4), st.just(2), st.just(2)), elements=st.integers(0, 9)).filter(
    lambda counts: (counts.sum(axis=2) > 0).all()
)
"""Two classes, two to four protected values, no empty group."""

MULTI_CLASS = arrays(np.int64, st.tuples(st.integers(2, 3), st.just(4), st.just(4)), elements=st.integers(0, 5)).filter(
    lambda counts: (counts.sum(axis=2) > 0).all()
)


def images(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Target, protected and predicted of images that give these counts."""
    a, y, k = (index.repeat(counts.ravel()) for index in map(np.ravel, np.indices(counts.shape)))
    return y, a, k


@given(COUNTS)
@settings(max_examples=20, deadline=None)
def test_two_classes_agree_with_fairlearn(counts: np.ndarray) -> None:
    from fairlearn import metrics as fl
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    y, a, k = images(counts)
    ours = metrics.overall(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas and sklearn about single-class groups
        oracle = {
            "accuracy": accuracy_score(y, k),
            "balanced_accuracy": balanced_accuracy_score(y, k),
            "eo_mean": fl.equalized_odds_difference(y, k, sensitive_features=a, agg="mean"),
            "eo_max": fl.equalized_odds_difference(y, k, sensitive_features=a),
            "equal_opportunity": fl.equal_opportunity_difference(y, k, sensitive_features=a),
            "demographic_parity": fl.demographic_parity_difference(y, k, sensitive_features=a),
        }
        ratio = fl.equalized_odds_ratio(y, k, sensitive_features=a)
        by_group = fl.MetricFrame(
            metrics=accuracy_score, y_true=y, y_pred=k, sensitive_features=a, control_features=y
        ).by_group
    for name, value in oracle.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    if (counts[:, :, 1].sum(axis=0) > 0).all():  # otherwise both rates are zero, which fairlearn leaves out
        assert ours["eo_ratio"] == pytest.approx(ratio, abs=1e-12)
    expected = by_group.to_numpy().reshape(2, -1).T  # its order is y, then a
    assert metrics.by_group(counts) == pytest.approx(expected, abs=1e-12)
    assert ours["worst_group_accuracy"] == pytest.approx(expected.min(), abs=1e-12)
    assert ours["group_std"] == pytest.approx(np.std(expected), abs=1e-12)


@given(MULTI_CLASS)
@settings(max_examples=40, deadline=None)
def test_many_classes_follow_the_definitions(counts: np.ndarray) -> None:
    rate = counts / counts.sum(axis=2, keepdims=True)
    values, classes = counts.shape[0], range(counts.shape[1])
    gaps = [[max(rate[:, y, k]) - min(rate[:, y, k]) for k in classes] for y in classes]
    ratios = [
        min(rate[:, y, k]) / max(rate[:, y, k]) if max(rate[:, y, k]) > 0 else 1.0 for y in classes for k in classes
    ]
    selected = counts.sum(axis=1) / counts.sum(axis=(1, 2))[:, None]
    ours = metrics.overall(counts)
    assert ours["eo_mean"] == pytest.approx(np.mean(gaps))
    assert ours["eo_max"] == pytest.approx(np.max(gaps))
    assert ours["eo_ratio"] == pytest.approx(min(ratios))
    assert ours["equal_opportunity"] == pytest.approx(max(gaps[y][y] for y in classes))
    assert ours["demographic_parity"] == pytest.approx(max(np.ptp(selected[:, k]) for k in classes))
    assert metrics.by_group(counts) == pytest.approx(
        np.array([[rate[a, y, y] for y in classes] for a in range(values)])
    )


@given(COUNTS)
@settings(max_examples=40, deadline=None)
def test_properties(counts: np.ndarray) -> None:
    ours = metrics.overall(counts)
    assert all(0 <= value <= 1 for value in ours.values())
    assert ours["eo_mean"] <= ours["eo_max"] + 1e-12
    assert ours["worst_group_accuracy"] <= ours["accuracy"] + 1e-12
    y, a = metrics.worst_group(counts) or pytest.fail("no group is empty")
    assert metrics.by_group(counts)[a, y] == ours["worst_group_accuracy"]
    swapped = metrics.overall(counts[::-1])  # which protected value is which has no meaning
    assert all(swapped[name] == pytest.approx(value) for name, value in ours.items())
    same = np.repeat(counts[:1], counts.shape[0], axis=0)  # all protected values treated alike
    assert all(
        metrics.overall(same)[name] == 0 for name in ("eo_mean", "eo_max", "equal_opportunity", "demographic_parity")
    )
    assert metrics.overall(same)["eo_ratio"] == 1


def test_a_batch_of_tables_is_each_of_them() -> None:
    tables = np.random.default_rng(0).integers(1, 20, size=(2, 3, 3, 5, 4))
    batch = metrics.overall(tables)
    for i, j in np.ndindex(5, 4):
        one = metrics.overall(tables[..., i, j])
        assert all(batch[name][i, j] == pytest.approx(value) for name, value in one.items())


def test_the_papers_example() -> None:
    """Two rates told apart: TPR differs by 0.4, FPR by 0.1."""
    counts = np.array([[[90, 10], [50, 50]], [[80, 20], [10, 90]]])
    ours = metrics.overall(counts)
    assert ours["eo_mean"] == pytest.approx(0.25)
    assert ours["eo_max"] == pytest.approx(0.4)
    assert ours["equal_opportunity"] == pytest.approx(0.4)
    assert ours["eo_ratio"] == pytest.approx(0.5)
    assert metrics.worst_group(counts) == (1, 0)


def test_an_empty_group_is_undefined() -> None:
    counts = count_predictions(np.array([0, 0, 1]), np.array([0, 1, 1]), np.array([0, 0, 1]), 2, 2)
    ours = metrics.overall(counts)
    assert ours["accuracy"] == 1
    assert ours["balanced_accuracy"] == 1
    assert ours["demographic_parity"] == pytest.approx(0.5), "it needs no group but the protected values"
    undefined = {"worst_group_accuracy", "group_std", "eo_mean", "eo_max", "eo_ratio", "equal_opportunity"}
    assert {name for name, value in ours.items() if np.isnan(value)} == undefined
    assert metrics.worst_group(counts) is None
    assert np.isnan(metrics.by_group(counts)).tolist() == [[False, True], [False, False]]


def test_no_positives_leave_the_false_positive_rate_alone() -> None:
    counts = np.array([[[5, 5], [0, 0]], [[5, 5], [1, 1]]])
    ours = metrics.overall(counts)
    assert np.isnan(ours["equal_opportunity"])
    assert metrics.by_group(counts)[0, 0] == 0.5
