"""Metrics of probabilities against scikit-learn, loops and fairlearn's MetricFrame."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimfair.evaluation import scores
from aimfair.evaluation.scores import log_odds, probabilities


def draw(seed: int, n: int, classes: int, values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that tell something; target; protected. Every class is in every value. Two classes have ties, too."""
    generator = np.random.default_rng(seed)
    target = np.concatenate([np.repeat(np.arange(classes), values), generator.integers(classes, size=n)])
    protected = np.concatenate([np.tile(np.arange(values), classes), generator.integers(values, size=n)])
    logits = generator.normal(size=(len(target), classes)).round(1 if classes == 2 else 10)
    logits[np.arange(len(target)), target] += generator.choice([0.0, 1.0, 3.0])
    return logits.astype(np.float32), target, protected


CASES = st.tuples(st.integers(0, 10**6), st.integers(0, 150), st.sampled_from([2, 2, 3, 10]), st.integers(1, 4))


@given(CASES, st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_overall_and_by_value_agree_with_scikit_learn_and_fairlearn(case: tuple[int, int, int, int], bins: int) -> None:
    from fairlearn.metrics import MetricFrame
    from sklearn.metrics import brier_score_loss, roc_auc_score

    logits, target, protected = draw(*case)
    classes, values = case[2], case[3]
    shares = probabilities(logits)

    def auroc(y: np.ndarray, chosen: np.ndarray) -> float:
        rows = np.asarray(chosen)
        if classes == 2:
            return float(roc_auc_score(y, shares[rows, 1]))
        return float(roc_auc_score(y, shares[rows], multi_class="ovr", average="macro", labels=range(classes)))

    def brier(y: np.ndarray, chosen: np.ndarray) -> float:
        rows = np.asarray(chosen)
        return float(brier_score_loss(y, shares[rows, 1] if classes == 2 else shares[rows], labels=range(classes)))

    found = scores.measure(logits, target, protected, values, bins)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas
        frame = MetricFrame(
            metrics={"auroc": auroc, "brier": brier},
            y_true=target,
            y_pred=np.arange(len(target)),  # what the functions above know the images by
            sensitive_features=protected,
        )
    for name in ("auroc", "brier"):
        assert found.overall[name] == pytest.approx(frame.overall[name], abs=1e-9)
        assert found.by_value[name] == pytest.approx(frame.by_group[name].to_numpy(), abs=1e-9)
        assert found.gap[name] == pytest.approx(frame.difference()[name], abs=1e-9)
    for a in range(values):
        members = protected == a
        assert found.by_value["calibration_error"][a] == pytest.approx(
            calibration_error_by_loop(shares[members], target[members], bins), abs=1e-9
        )


def calibration_error_by_loop(shares: np.ndarray, target: np.ndarray, bins: int) -> float:
    error = 0.0
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == target
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@given(st.integers(0, 10**6), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_calibration_agrees_with_scikit_learns_curve(seed: int, bins: int) -> None:
    from sklearn.calibration import calibration_curve

    logits, target, _ = draw(seed, 200, 2, 1)
    shares = probabilities(logits)
    confidence, right = shares.max(axis=1), shares.argmax(axis=1) == target
    accuracy, mean_confidence = calibration_curve(right, confidence, n_bins=bins)
    sizes = np.histogram(-confidence, bins=-np.linspace(0, 1, bins + 1)[::-1])[0][
        ::-1
    ]  # the upper edge belongs to a bin
    expected = (np.abs(accuracy - mean_confidence) * sizes[sizes > 0]).sum() / len(target)
    assert scores.calibration_error(shares, target, bins) == pytest.approx(expected, abs=1e-9)


def test_an_edge_belongs_to_the_bin_below() -> None:
    """0.6 is the end of (0.4, 0.6] of five bins, with 0.59: together they are right as often as they say."""
    shares = np.array([[0.6, 0.4], [0.59, 0.41]])
    half_right = np.array([0, 1])
    assert scores.calibration_error(shares, half_right, 5) == pytest.approx(abs(0.5 - 0.595))
    assert scores.calibration_error(shares, half_right, 1) == pytest.approx(abs(0.5 - 0.595))
    certain = np.array([[1.0, 0.0]])
    assert scores.calibration_error(certain, np.array([0]), 15) == 0
    assert scores.calibration_error(certain, np.array([1]), 15) == 1


def test_confident_images_do_not_tie() -> None:
    """Float32 probabilities of all of these are 1, and an AUROC of ties would be a half."""
    logits = np.array([[0, 40], [0, 41], [0, 42], [0, 43]], dtype=np.float32)
    target = np.array([0, 0, 1, 1])
    assert (probabilities(logits).astype(np.float32)[:, 1] == 1).all()
    assert scores.auroc(log_odds(logits), target) == 1
    assert scores.auroc(np.zeros((4, 2)), target) == 0.5
    assert log_odds(logits)[:, 1] == pytest.approx([40, 41, 42, 43])


def test_log_odds_are_those_of_the_probabilities() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 5))
    shares = probabilities(logits)
    assert shares.sum(axis=1) == pytest.approx(1)
    assert log_odds(logits) == pytest.approx(np.log(shares / (1 - shares)))
    assert np.isfinite(probabilities(np.array([[1e4, -1e4]]))).all()


def test_what_no_image_tells_is_undefined() -> None:
    """Value 0 lacks class 1, value 2 has no images."""
    logits = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    target, protected = np.array([0, 0, 0, 1, 0, 1]), np.array([0, 0, 1, 1, 1, 1])
    found = scores.measure(logits, target, protected, 3, 15)
    assert np.isnan(found.by_value["auroc"]).tolist() == [True, False, True]
    for name in ("brier", "calibration_error"):
        assert np.isnan(found.by_value[name]).tolist() == [False, False, True]
    assert all(np.isnan(gap) for gap in found.gap.values()), "nothing is left out of a gap in silence"
    assert not any(np.isnan(value) for value in found.overall.values())
    three = scores.measure(np.zeros((6, 3), np.float32), target, protected, 1 + 1 + 1, 15)
    assert np.isnan(three.overall["auroc"]), "the third class has no images"
