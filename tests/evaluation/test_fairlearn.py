"""Agreement with fairlearn on random small tables, and where we do not agree on purpose: undefined rates."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aimfair.evaluation import metrics
from tests.evaluation.test_metrics import COUNTS, images

ANY = arrays(np.int64, st.tuples(st.integers(2, 4), st.just(2), st.just(2)), elements=st.integers(0, 3)).filter(
    lambda counts: counts.sum() > 1
)
"""Groups, classes and protected values may be empty; fairlearn cannot take a single image."""


@given(COUNTS)
@settings(max_examples=12, deadline=None)
def test_where_every_rate_is_defined(counts: np.ndarray) -> None:
    from fairlearn import metrics as fl

    y, a, k = images(counts)
    ours = metrics.overall(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas
        worst = fl.equalized_odds_difference(y, k, sensitive_features=a, agg="worst_case")
        mean = fl.equalized_odds_difference(y, k, sensitive_features=a, agg="mean")
        ratio = fl.equalized_odds_ratio(y, k, sensitive_features=a, agg="worst_case")
        parity = fl.demographic_parity_difference(y, k, sensitive_features=a)
        rates = {"tpr": fl.true_positive_rate, "fpr": fl.false_positive_rate, "selected": fl.selection_rate}
        frame = fl.MetricFrame(metrics=rates, y_true=y, y_pred=k, sensitive_features=a)
        group = fl.MetricFrame(
            metrics=lambda y, k: float((y == k).mean()), y_true=y, y_pred=k, sensitive_features={"y": y, "a": a}
        )
    assert ours["eo_max"] == pytest.approx(worst, abs=1e-12)
    assert ours["eo_mean"] == pytest.approx(mean, abs=1e-12)
    assert ours["demographic_parity"] == pytest.approx(parity, abs=1e-12)
    if (counts[:, :, 1].sum(axis=0) > 0).all():  # of two rates of zero fairlearn has no ratio
        assert ours["eo_ratio"] == pytest.approx(ratio, abs=1e-12)
    by_value, difference = frame.by_group.to_numpy(), frame.difference()
    sizes = counts.sum(axis=2)
    assert counts[:, 1, 1] / sizes[:, 1] == pytest.approx(by_value[:, 0])
    assert counts[:, 0, 1] / sizes[:, 0] == pytest.approx(by_value[:, 1])
    assert counts[:, :, 1].sum(axis=1) / sizes.sum(axis=1) == pytest.approx(by_value[:, 2])
    assert ours["equal_opportunity"] == pytest.approx(difference["tpr"], abs=1e-12)
    assert ours["eo_mean"] == pytest.approx((difference["tpr"] + difference["fpr"]) / 2, abs=1e-12)
    assert ours["worst_group_accuracy"] == pytest.approx(group.group_min(), abs=1e-12)


@given(ANY)
@settings(max_examples=12, deadline=None)
def test_any_table_is_undefined_or_fairlearns(counts: np.ndarray) -> None:
    """Undefined exactly if a rate is over no images; of the groups with images the worst is fairlearn's."""
    from fairlearn import metrics as fl

    y, a, k = images(counts)
    sizes = counts.sum(axis=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = metrics.overall(counts)
        odds = fl.equalized_odds_difference(y, k, sensitive_features=a)
        group = fl.MetricFrame(
            metrics=lambda y, k: float((y == k).mean()), y_true=y, y_pred=k, sensitive_features={"y": y, "a": a}
        )
    empty = (sizes == 0).any()
    assert np.isnan(ours["eo_max"]) == np.isnan(ours["eo_mean"]) == np.isnan(ours["worst_group_accuracy"]) == empty
    assert np.isnan(ours["demographic_parity"]) == (sizes.sum(axis=1) == 0).any()
    if not empty:
        assert ours["eo_max"] == pytest.approx(odds, abs=1e-12)
    present = metrics.worst_present_group_accuracy(counts)
    assert present == pytest.approx(np.nanmin(group.by_group.to_numpy(dtype=float)), abs=1e-12)
    y_worst, a_worst = metrics.worst_present_group(counts) or pytest.fail("there are images")
    assert metrics.by_group(counts)[a_worst, y_worst] == present


def test_undefined_rates_are_not_zero_as_in_fairlearn() -> None:
    """Value 0 has no positives: its true positive rate is 0.0 for fairlearn, and unfairness the largest there is."""
    from fairlearn import metrics as fl

    counts = np.array([[[8, 2], [0, 0]], [[8, 2], [0, 10]]])
    y, a, k = images(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fl.true_positive_rate(y[a == 0], k[a == 0]) == 0.0
        assert fl.equalized_odds_difference(y, k, sensitive_features=a) == 1.0
        assert fl.equal_opportunity_difference(y, k, sensitive_features=a) == 1.0
    ours = metrics.overall(counts)
    assert np.isnan([ours["eo_max"], ours["eo_mean"], ours["eo_ratio"], ours["equal_opportunity"]]).all()
    assert ours["demographic_parity"] == pytest.approx(0.4)


def test_no_images_at_all_have_no_worst_group() -> None:
    nothing = np.zeros((2, 2, 2), dtype=np.int64)
    assert np.isnan(metrics.worst_present_group_accuracy(nothing))
    assert metrics.worst_present_group(nothing) is None
