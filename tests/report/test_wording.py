"""Nothing is called better or worse unless every interval says so."""

import math
import re

import pytest

from aimfair.evaluation.compare import compare
from aimfair.evaluation.results import Difference, Interval, Results
from aimfair.methods import read_method
from aimfair.report import wording
from aimfair.report.tables import markdown
from aimfair.stages.evaluate import experiment
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits

NONE = (math.nan, math.nan)


@pytest.fixture(scope="module")
def results() -> Results:
    config, splits = made_up_config(), made_up_splits((300, 300, 300, 300))
    return compare(experiment(config), splits, made_up_predictions(splits, config), {})


@pytest.mark.parametrize(
    ("over_images", "over_seeds", "higher", "lower"),
    [
        ((0.1, 0.3), (0.05, 0.4), "better", "worse"),
        ((-0.3, -0.1), (-0.4, -0.05), "worse", "better"),
        ((0.1, 0.3), (-0.05, 0.4), "no clear change", "no clear change"),
        ((-0.1, 0.3), (0.05, 0.4), "no clear change", "no clear change"),
        ((0.1, 0.3), (-0.4, -0.05), "no clear change", "no clear change"),
        ((0.0, 0.3), (0.05, 0.4), "no clear change", "no clear change"),
        ((0.1, 0.3), NONE, "better", "worse"),
        (NONE, NONE, "undefined", "undefined"),
        ((0.2, 0.2), NONE, "no clear change", "no clear change"),
        ((0.1, 0.3), (0.2, 0.2), "no clear change", "no clear change"),
    ],
)
def test_verdicts(over_images: Interval, over_seeds: Interval, higher: str, lower: str) -> None:
    difference = Difference(mean=0.2, over_images=over_images, over_seeds=over_seeds)
    assert wording.judge("worst_group_accuracy", difference, 30) == higher
    assert wording.judge("eo_mean", difference, 30) == lower


def test_few_images_decide_nothing() -> None:
    clear = Difference(mean=0.2, over_images=(0.1, 0.3), over_seeds=NONE, support=29)
    assert wording.judge("eo_mean", clear, 30) == "too few images"
    assert wording.judge("eo_mean", clear, 29) == "worse"
    unclear = clear.model_copy(update={"over_images": (-0.1, 0.3)})
    assert wording.judge("eo_mean", unclear, 30) == "no clear change", "which needs no images"


def test_small_groups_reach_every_verdict() -> None:
    """The groups in which the biased model errs have 20 images each; accuracy hangs on no group."""
    config, splits = made_up_config(), made_up_splits((300, 20, 20, 300))
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    assert wording.headline(results).startswith("Too few test images to judge worst-group accuracy: from ")
    verdicts = {metric: wording.compare(results, "biased", metric).verdict for metric in ("eo_mean", "accuracy")}
    assert verdicts == {"eo_mean": "too few images", "accuracy": "worse"}
    assert wording.compare(results, "biased", "worst_group_accuracy").verdict == "too few images"
    assert wording.compare(results, "random", "eo_mean").difference.support == 20, "also turned round"


def test_the_headline_where_a_group_is_empty() -> None:
    config, splits = made_up_config(), made_up_splits((300, 300, 300, 0))
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    assert math.isnan(results.methods["aimfair"].mean["worst_group_accuracy"])
    assert re.fullmatch(
        r"The worst accuracy of a group with test images rose from 5\d\.\d% to 8\d\.\d%\. 1 of 4 groups has no test"
        r" images: worst-group accuracy of all is undefined\.",
        wording.headline(results),
    )
    text = markdown(results)
    assert "| worst of the 3 groups with images |" in text
    assert "1 of 4 groups has no test images" in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "all"}, "tunes 30.0% of the biased model's weights on 7 balanced synthetic images"),
        ({"kind": "erm"}, "trains a new model from the initial weights on the same real images"),
        ({"kind": "synthetic_only"}, "on 7 balanced synthetic images alone"),
        ({"kind": "real_and_synthetic"}, "on real images and 7 balanced synthetic images together"),
        ({"kind": "balanced_resampling"}, "sampling every group equally often"),
        ({"kind": "group_dro"}, "weighting up the groups with the largest loss"),
        ({"kind": "jtt"}, "repeating those that a first model misclassified"),
        ({"kind": "last_layer_retrain"}, "retrains the last layer of the biased model on real validation images"),
        ({"kind": "last_layer_retrain", "balanced_from": "synthetic"}, "biased model on 7 balanced synthetic images"),
    ],
)
def test_what_a_method_does(settings: dict[str, str], said: str) -> None:
    method = read_method(settings)
    text = method.summary(0.3, 7)
    assert said in text
    assert ("synthetic" in text) == method.uses_synthetic
    assert ("biased model" in text) == method.from_biased


def test_the_headline_follows_the_verdict(results: Results) -> None:
    assert wording.headline(results).startswith("Worst-group accuracy rose from 5")
    swapped = results.model_copy(
        update={
            "methods": {
                **results.methods,
                "aimfair": results.methods["biased"].model_copy(
                    update={"versus": {"biased": {"worst_group_accuracy": negated(results)}}}
                ),
                "biased": results.methods["aimfair"],
            }
        }
    )
    assert wording.headline(swapped).startswith("Worst-group accuracy fell from 8")


def negated(results: Results) -> Difference:
    it = results.methods["aimfair"].versus["biased"]["worst_group_accuracy"]
    return Difference(
        mean=-it.mean,
        over_images=(-it.over_images[1], -it.over_images[0]),
        over_seeds=(-it.over_seeds[1], -it.over_seeds[0]),
    )


def test_the_default_is_compared_the_right_way_round(results: Results) -> None:
    for name in ("linear_probe", "full", "random"):
        for metric in ("worst_group_accuracy", "eo_mean"):
            comparison = wording.compare(results, name, metric)
            own, its = (results.methods[which].mean[metric] for which in ("aimfair", name))
            assert (comparison.before, comparison.after) == (its, own)
            assert comparison.difference.mean == pytest.approx(own - its)
            low, high = comparison.difference.over_images
            assert low <= high
    worst, accuracy = wording.against_controls(results)
    assert worst.startswith("On worst-group accuracy, aimfair is clearly better than linear_probe and random")
    assert worst.endswith("not clearly different from full.")
    assert accuracy.startswith("On accuracy, aimfair is")


def test_many_methods_are_a_number() -> None:
    config, splits = made_up_config(), made_up_splits((300, 300, 300, 300))
    config = config.model_copy(
        update={"methods": {**config.methods, **{f"m{i}": config.methods["full"] for i in "abc"}}}
    )
    predicted = made_up_predictions(splits, made_up_config())
    predicted |= {f"m{i}": predicted["random"] for i in "abc"}
    worst, _ = wording.against_controls(compare(experiment(config), splits, predicted, {}))
    assert worst == (
        "On worst-group accuracy, aimfair is clearly better than 5 of 6 other methods; not clearly different from full."
    )


def test_numbers() -> None:
    assert wording.spread(0.8567, 0.0123) == "85.7% ± 1.2"
    assert wording.spread(0.8567, math.nan) == "85.7%"
    assert wording.spread(math.nan, math.nan) == "\N{EN DASH}"
    assert wording.percent(0.8567) == "85.7%"
    assert wording.percent(math.nan) == "\N{EN DASH}"
    assert wording.percents((0.819, 0.964)) == "81.9% to 96.4%"
    assert wording.percents((math.nan, math.nan)) == ""
    assert wording.points(-0.031) == "\N{MINUS SIGN}3.1"
    assert wording.between((math.nan, 0.1)) == "undefined"
    assert [wording.listing(names) for names in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a, b and c"]
