"""Nothing is called better or worse unless every interval says so."""

import math

import pytest

from aimfair.evaluation.compare import compare
from aimfair.evaluation.results import Difference, Interval, Results
from aimfair.report import wording
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits

NONE = (math.nan, math.nan)


@pytest.fixture(scope="module")
def results() -> Results:
    config, splits = made_up_config(), made_up_splits((300, 300, 300, 300))
    return compare(config, splits, made_up_predictions(splits, config), {})


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
    ],
)
def test_verdicts(over_images: Interval, over_seeds: Interval, higher: str, lower: str) -> None:
    difference = Difference(mean=0.2, over_images=over_images, over_seeds=over_seeds)
    assert wording.judge("worst_group_accuracy", difference) == higher
    assert wording.judge("eo_mean", difference) == lower


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


def test_numbers() -> None:
    assert wording.percent(0.8567) == "85.7%"
    assert wording.percent(math.nan) == "\N{EN DASH}"
    assert wording.percents((0.819, 0.964)) == "81.9% to 96.4%"
    assert wording.percents((math.nan, math.nan)) == ""
    assert wording.points(-0.031) == "\N{MINUS SIGN}3.1"
    assert wording.between((math.nan, 0.1)) == "undefined"
    assert [wording.listing(names) for names in ([], ["a"], ["a", "b", "c"])] == ["", "a", "a, b and c"]
