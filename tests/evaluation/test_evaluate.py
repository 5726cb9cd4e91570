"""aimfair.evaluate: fairlearn's numbers under its names, on values of any kind, and errors that name the row."""

import json
import math
import warnings

import numpy as np
import pytest

import aimfair
from aimfair.base.errors import AimfairError
from aimfair.evaluation.evaluate import NAMES, Evaluation

Y = np.array([0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0] * 20)
K = np.array([0, 1, 0, 1, 1, 0, 0, 0, 1, 0, 1, 1] * 20)
SEX = np.array(["f", "f", "f", "f", "f", "f", "m", "m", "m", "m", "m", "m"] * 20)


def of(found: Evaluation, attribute: str = "group", model: str = "model") -> dict[str, float]:
    return {name: one.value for name, one in found.attributes[attribute].models[model].metrics.items()}


def test_fairlearns_numbers_under_its_names() -> None:
    from fairlearn import metrics as fl

    generator = np.random.default_rng(0)
    y, k, a = (generator.integers(0, high, 400) for high in (2, 2, 3))
    found = aimfair.evaluate(k, y, a, replicates=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas
        for name in (
            "demographic_parity_difference",
            "demographic_parity_ratio",
            "equal_opportunity_difference",
            "equalized_odds_difference",
            "equalized_odds_ratio",
        ):
            assert of(found)[name] == pytest.approx(getattr(fl, name)(y, k, sensitive_features=a)), name
        mean = fl.equalized_odds_difference(y, k, sensitive_features=a, agg="mean")
        rates = ("selection_rate", "true_positive_rate", "false_positive_rate", "count")
        frame = fl.MetricFrame(
            metrics={name: getattr(fl, name) for name in rates}, y_true=y, y_pred=k, sensitive_features=a
        )
    assert of(found)["equalized_odds_mean_difference"] == pytest.approx(mean)
    by_group = found.attributes["group"].models["model"].by_group
    for value, expected in frame.by_group.iterrows():
        one = by_group[str(value)]
        assert one["accuracy"].rows == expected["count"]
        for name in rates[:3]:
            assert one[name].value == pytest.approx(expected[name])


def test_a_class_that_is_never_predicted() -> None:
    """Nobody is selected, so nobody is selected less often: the ratio of two rates of zero is 1."""
    one = of(aimfair.evaluate(Y * 0, Y, SEX, replicates=100))
    assert (one["demographic_parity_ratio"], one["equalized_odds_ratio"]) == (1, 1)
    assert (one["demographic_parity_difference"], one["equalized_odds_difference"]) == (0, 0)


def test_values_of_any_kind() -> None:
    import torch

    words = np.array(["no", "yes"])
    expected = aimfair.evaluate(K, Y, SEX, replicates=100)
    for predictions, labels in (
        (K.tolist(), Y.tolist()),
        (torch.tensor(K), torch.tensor(Y)),
        (K.astype(bool), Y.astype(bool)),
        (words[K], words[Y]),
        (K.astype(float), Y),
        (K == 1, Y),
    ):
        found = aimfair.evaluate(predictions, labels, {"group": SEX}, replicates=100)
        one, same = (of.attributes["group"].models["model"] for of in (found, expected))
        assert (one.confusion, one.metrics) == (same.confusion, same.metrics)


def test_what_is_missing_is_no_value() -> None:
    """numpy would make strings of a NaN among strings, and drop the mask of a masked array."""
    import pandas as pd

    missing = np.arange(240) % 12 == 0
    for values in (
        [float("nan") if gone else sex for sex, gone in zip(SEX, missing, strict=True)],
        pd.array([pd.NA if gone else sex for sex, gone in zip(SEX, missing, strict=True)], dtype="string"),
        np.ma.array(SEX, mask=missing),
        [np.nan if gone else np.str_(sex) for sex, gone in zip(SEX, missing, strict=True)],
    ):
        one = aimfair.evaluate(K, Y, values, replicates=100).attributes["group"]
        assert one.values == ["f", "m"]
        assert np.sum(one.rows) == 220
    with pytest.raises(AimfairError, match=r"predictions\[0\] is missing"):
        aimfair.evaluate(np.ma.array(K, mask=missing), Y, SEX)
    with pytest.raises(AimfairError, match="found masked values"):
        aimfair.evaluate(K, Y, SEX, probabilities=np.ma.array(K, mask=missing))


def test_tensors_of_any_kind_and_data_frames() -> None:
    import pandas as pd
    import torch

    expected = aimfair.evaluate(K, Y, {"sex": SEX}, replicates=100)
    frame = pd.DataFrame({"sex": SEX, "model": K, "y": Y})
    assert aimfair.evaluate(frame[["model"]], frame["y"], frame[["sex"]], replicates=100) == expected
    assert aimfair.evaluate(torch.tensor(K).bfloat16(), list(torch.tensor(Y)), {"sex": SEX}, replicates=100) == expected
    logits = torch.stack([torch.zeros(240), torch.tensor(K) - 0.4], dim=1).requires_grad_()
    for shares in (logits.softmax(1), logits.softmax(1).bfloat16(), logits.softmax(1).detach().numpy().round(2)):
        found = aimfair.evaluate(None, Y, {"sex": SEX}, probabilities=shares, replicates=100)
        assert found.attributes["sex"].models["model"].confusion == expected.attributes["sex"].models["model"].confusion
    with pytest.raises(AimfairError, match=r"labels: cannot be used as an array: .*meta"):
        aimfair.evaluate(K, torch.tensor(Y, device="meta"), SEX)


def test_the_positive_class_is_the_last_or_the_one_named() -> None:
    words = np.array(["bad", "good"])
    last = aimfair.evaluate(words[K], words[Y], SEX, replicates=100)
    named = aimfair.evaluate(words[K], words[Y], SEX, positive="bad", replicates=100)
    assert aimfair.evaluate(K, Y, SEX, positive=np.bool_(False), replicates=100).positive == "0"
    assert (last.positive, named.positive, named.classes) == ("good", "bad", ["good", "bad"])
    rates = [one.attributes["group"].models["model"].by_group["f"]["selection_rate"].value for one in (last, named)]
    assert sum(rates) == pytest.approx(1)


def test_intervals_hold_the_estimates_and_repeat() -> None:
    found, again = (aimfair.evaluate(K, Y, SEX, replicates=500) for _ in range(2))
    assert found == again
    for one in found.attributes["group"].models["model"].metrics.values():
        assert one.interval[0] <= one.value <= one.interval[1]
    narrow = aimfair.evaluate(K, Y, SEX, replicates=500, confidence=0.6)
    width, less = (
        np.ptp(one.attributes["group"].models["model"].metrics["accuracy"].interval) for one in (found, narrow)
    )
    assert 0 < less < width


def test_rows_of_one_cluster_are_drawn_together() -> None:
    """Twenty copies of twelve rows say as much as twelve rows."""
    alone = aimfair.evaluate(K, Y, SEX, replicates=500)
    together = aimfair.evaluate(K, Y, SEX, clusters=np.arange(240) % 12, replicates=500)
    width, wider = (
        np.ptp(one.attributes["group"].models["model"].metrics["accuracy"].interval) for one in (alone, together)
    )
    assert wider > 3 * width


def test_several_models_are_compared_on_the_same_rows() -> None:
    better = np.where(np.arange(240) % 12 == 1, Y, K)
    found = aimfair.evaluate({"old": K, "new": better, "same": K}, Y, SEX, replicates=500)
    models = found.attributes["group"].models
    assert models["old"].versus == {}
    difference = models["new"].versus["old"]["accuracy"]
    assert difference.mean == pytest.approx(1 / 12)
    assert 0 < difference.over_images[0] < difference.mean < difference.over_images[1]
    same = models["same"].versus["old"]["equalized_odds_difference"]
    assert (same.mean, same.over_images) == (0, (0, 0))


def test_a_difference_rests_on_the_rows_of_both_models() -> None:
    """The worst group of the first model has 90 rows, that of the second has 10."""
    y, a = np.repeat([0, 1, 0, 1], [100, 100, 90, 10]), np.repeat(["f", "m"], [200, 100])
    first, second = y.copy(), y.copy()
    first[200:250], second[-5:] = 1, 0
    found = aimfair.evaluate({"first": first, "second": second}, y, a, replicates=100).attributes["group"]
    rows = [one.metrics["worst_group_accuracy"].rows for one in found.models.values()]
    assert rows == [90, 10]
    assert found.models["second"].versus["first"]["worst_group_accuracy"].support == 10
    assert found.models["second"].worst_group == ("1", "m")
    assert found.models["first"].worst_group == ("0", "m")


def test_attributes_are_crossed_and_rows_without_a_value_left_out() -> None:
    age = np.array([None, "old", "young", "old", "young", "old"] * 40, dtype=object)
    found = aimfair.evaluate(K, Y, {"sex": SEX, "age": age}, replicates=100)
    assert list(found.attributes) == ["sex", "age", "sex × age"]  # noqa: RUF001
    assert [np.sum(one.rows) for one in found.attributes.values()] == [240, 200, 200]
    assert found.attributes["sex"].cautions == []
    assert found.attributes["age"].cautions[0] == "40 of 240 rows have no value of age and are left out here."
    assert list(aimfair.evaluate(K, Y, {"sex": SEX, "age": age}, intersections=False, replicates=100).attributes) == [
        "sex",
        "age",
    ]


def test_empty_and_small_groups_get_cautions(tmp_path) -> None:
    found = aimfair.evaluate([0, 1, 0, 1, 1], [0, 1, 0, 0, 1], ["f", "f", "f", "f", "m"], replicates=100)
    one = found.attributes["group"]
    assert one.empty == 1
    assert any("No rows in group 0 · m" in caution for caution in one.cautions)
    assert any("Only 1 row in group 1 · m" in caution for caution in one.cautions)
    assert math.isnan(of(found)["equalized_odds_difference"])
    assert of(found)["worst_present_group_accuracy"] == pytest.approx(2 / 3)
    found.save(tmp_path / "found.json")
    text = (tmp_path / "found.json").read_text()
    assert (
        json.loads(text)["attributes"]["group"]["models"]["model"]["metrics"]["worst_group_accuracy"]["value"] is None
    )
    assert Evaluation.model_validate_json(text).attributes["group"].rows == one.rows


def test_small_is_what_the_caller_says() -> None:
    for least, expected in ((60, []), (61, ["Only 60 rows in group 0 · f: its results are uncertain."])):
        found = aimfair.evaluate(K, Y, SEX, small_group=least, replicates=100).attributes["group"]
        assert found.cautions[:1] == expected


def test_tiny_probabilities_keep_their_order() -> None:
    chances = np.where(Y == 1, 1e-200, 1e-250)
    scores = aimfair.evaluate(None, Y, SEX, probabilities=chances, replicates=100).attributes["group"].models["model"]
    assert scores.scores is not None
    assert scores.scores.overall["auroc"] == 1


def test_bins_of_the_calibration_error() -> None:
    """In one bin confidence 0.6 and 0.9 average to the accuracy of 0.75; apart each is off by 0.15."""
    y = np.array([1, 1, 1, 0] * 20)
    chances = np.array([0.6] * 40 + [0.9] * 40)
    for bins, expected in ((1, 0), (10, 0.15)):
        one = aimfair.evaluate(None, y, ["f", "m"] * 40, probabilities=chances, bins=bins, replicates=100)
        scores = one.attributes["group"].models["model"].scores
        assert scores is not None
        assert scores.overall["calibration_error"] == pytest.approx(expected)


def test_probabilities() -> None:
    from sklearn.metrics import brier_score_loss, roc_auc_score

    chances = np.clip(0.6 * K + 0.3 * np.random.default_rng(0).random(240), 0, 1)
    found = aimfair.evaluate(None, Y, SEX, probabilities=chances, replicates=100)
    one = found.attributes["group"].models["model"]
    assert one.scores is not None
    assert one.scores.overall["auroc"] == pytest.approx(roc_auc_score(Y, chances))
    assert one.scores.by_value["brier"][1] == pytest.approx(brier_score_loss(Y[SEX == "m"], chances[SEX == "m"]))
    assert one.confusion == aimfair.evaluate(chances > 0.5, Y == 1, SEX).attributes["group"].models["model"].confusion
    three = np.eye(3)[np.arange(240) % 3]
    certain = aimfair.evaluate(None, np.arange(240) % 3, SEX, probabilities=three, replicates=100)
    assert of(certain)["accuracy"] == 1
    assert set(certain.attributes["group"].models["model"].by_group["f"]) == {
        "accuracy",
        *(f"{rate} of {name}" for rate in ("recall", "selection_rate") for name in "012"),
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predictions": K[1:]}, r"predictions: found shape \(239,\), expected \(240,\) as labels"),
        ({"predictions": np.where(K == 1, 2, K)}, r"predictions\[1\] is '2', expected one of the classes 0, 1"),
        ({"predictions": {"new": K * 0.5}}, r"predictions\['new'\]\[1\] is '0.5', expected one of the classes"),
        ({"labels": [None, *Y[1:]]}, r"labels\[0\] is missing"),
        ({"labels": Y * 0}, "classes: found 0, expected two or more"),
        ({"labels": np.arange(240)}, "labels hold 240 classes, such as '0' and '1', expected at most 100"),
        ({"labels": []}, "labels is empty"),
        ({"groups": np.arange(240)}, r"groups\['group'\]: found 240 values, .* names or bands"),
        ({"groups": {"sex": ["f"] * 240}}, r"groups\['sex'\]: found 1 value, f, expected two or more"),
        ({"groups": {}}, "groups is empty"),
        ({"predictions": None}, "give predictions or probabilities"),
        ({"probabilities": 3 * K - 1}, r"probabilities\[0\] is \[2.0, -1.0\], .* logits need a softmax"),
        ({"probabilities": ["x"] * 240}, r"probabilities: cannot be used .* could not convert string"),
        ({"probabilities": np.ones((240, 3)) / 3}, r"found shape \(240, 3\), expected \(240, 2\) or \(240,\) of the"),
        ({"probabilities": {"other": K}}, "probabilities of 'other', but predictions of model"),
        ({"positive": 2}, "positive=2: expected one of two classes, found the classes 0, 1"),
        ({"classes": [0, 0]}, "classes: found 0, 0, expected two or more, each once"),
        ({"clusters": [1]}, r"clusters: found shape \(1,\)"),
        ({"confidence": 95}, "confidence=95"),
        ({"confidence": float("nan")}, "confidence=nan"),
        ({"replicates": 99}, "replicates=99: expected greater than or equal to 100"),
        ({"replicates": 10**7}, "replicates=10000000: expected less than or equal to 1000000"),
        ({"replicates": True}, "replicates=True: expected a valid integer"),
        ({"replicates": 100.5}, "replicates=100.5"),
        ({"small_group": -1}, "small_group=-1: expected greater than or equal to 0"),
        ({"probabilities": K, "bins": 0}, "bins=0"),
        ({"classes": 2}, "classes=2: expected the names of all classes"),
        ({"labels": [[0, 1], *Y[1:]]}, r"labels\[0\] is \[0, 1\]"),
        ({"predictions": {1: K, "1": K}}, "predictions: found names 1, '1'"),
        ({"groups": {"sex": [None] * 240}}, "found no values, expected two or more"),
        ({"groups": {"a": SEX, "b": SEX, "a × b": SEX}}, "'a × b' is also the name of a crossing"),  # noqa: RUF001
        (
            {"groups": {"a": np.where(np.arange(240) < 120, SEX, ""), "b": np.where(np.arange(240) < 120, "", SEX)}},
            r"no row has a value of a × b: .*intersections=False",  # noqa: RUF001
        ),
        ({"probabilities": np.full((240, 2), 0.48)}, r"probabilities\[0\] is \[0.48, 0.48\]"),
    ],
)
def test_what_cannot_be_used(arguments: dict, message: str) -> None:
    given = {"predictions": K, "labels": Y, "groups": SEX} | arguments
    with pytest.raises(AimfairError, match=message):
        aimfair.evaluate(given.pop("predictions"), given.pop("labels"), given.pop("groups"), **given)


def test_rates_of_three_classes() -> None:
    """f: of two rows of class 0 one is taken for 1; the others are right."""
    y, k = np.array([0, 0, 1, 2, 0, 1, 2]), np.array([0, 1, 1, 2, 0, 1, 2])
    found = aimfair.evaluate(k, y, ["f"] * 4 + ["m"] * 3, replicates=100).attributes["group"].models["model"]
    rates = {name: (one.value, one.rows) for name, one in found.by_group["f"].items()}
    assert rates == {
        "accuracy": (0.75, 4),
        "recall of 0": (0.5, 2),
        "recall of 1": (1, 1),
        "recall of 2": (1, 1),
        "selection_rate of 0": (0.25, 4),
        "selection_rate of 1": (0.5, 4),
        "selection_rate of 2": (0.25, 4),
    }


def test_clusters_of_rows_without_a_value_are_left_out() -> None:
    some = np.arange(240) % 2 == 0
    whole = aimfair.evaluate(K[some], Y[some], SEX[some], clusters=np.arange(240)[some] % 24, replicates=100)
    found = aimfair.evaluate(K, Y, np.where(some, SEX, ""), clusters=np.arange(240) % 24, replicates=100)
    assert of(whole) == of(found)
    ours, theirs = (one.attributes["group"].models["model"].metrics["accuracy"].interval for one in (whole, found))
    assert ours == theirs


def test_every_metric_has_a_function() -> None:
    from aimfair.evaluation.metrics import FUNCTIONS

    assert set(NAMES.values()) == set(FUNCTIONS)
