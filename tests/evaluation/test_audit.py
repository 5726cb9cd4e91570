"""Further attributes and intersections: every number from its definition, and no group dropped in silence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aimfair.config import Config
from aimfair.data.images import Splits
from aimfair.evaluation import intervals, metrics
from aimfair.evaluation.compare import cautions, compare, partitions
from aimfair.evaluation.metrics import count_predictions
from aimfair.evaluation.results import Results
from aimfair.stages.evaluate import experiment
from tests.report.made_up import made_up_config, made_up_logits, made_up_splits, with_attributes

AGES = ("young", "middle", "old")


@pytest.fixture(scope="module")
def config() -> Config:
    return made_up_config(replicates=300)


@pytest.fixture(scope="module")
def splits() -> Splits:
    """Three ages, no red image of the old."""
    splits = made_up_splits(test_per_group=(90, 100, 120, 80))
    age = np.random.default_rng(0).integers(3, size=len(splits.test))
    age[(splits.test.protected == 1) & (age == 2)] = 1
    age[np.flatnonzero((splits.test.protected == 1) & (age == 1))[:1]] = 0
    return with_attributes(splits, {"age": (AGES, age)})


@pytest.fixture(scope="module")
def results(config: Config, splits: Splits) -> Results:
    logits = made_up_logits(splits, config)
    return compare(experiment(config), splits, predictions(logits), {}, logits)


def predictions(logits: dict[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    return {name: [one.argmax(axis=1) for one in of] for name, of in logits.items()}


@pytest.mark.parametrize("kind", ["attributes", "intersections"])
def test_every_number_is_its_definition(config: Config, splits: Splits, results: Results, kind: str) -> None:
    test, (age,) = splits.test, splits.test.attributes.values()
    values = age if kind == "attributes" else test.protected * 3 + age
    names = AGES if kind == "attributes" else tuple(f"{ink} · {name}" for ink in ("green", "red") for name in AGES)
    audit = getattr(results, kind)["age"]
    assert tuple(audit.value_names) == names
    predicted = predictions(made_up_logits(splits, config))
    assert list(audit.methods) == list(predicted)
    for name, method in audit.methods.items():
        tables = [count_predictions(test.target, values, one, 2, len(names)) for one in predicted[name]]
        assert audit.test_images == tables[0].sum(axis=2).tolist()
        for metric, of in metrics.METRICS.items():
            per_seed = [float(of(table)) for table in tables]
            assert method.mean[metric] == pytest.approx(np.mean(per_seed), nan_ok=True)
            assert method.std[metric] == pytest.approx(np.std(per_seed, ddof=1), nan_ok=True)
            assert method.of_mean_rates[metric] == pytest.approx(float(of(np.mean(tables, axis=0))), nan_ok=True)
        rates = np.mean([metrics.by_group(table) for table in tables], axis=0)
        assert np.array(method.by_group.mean) == pytest.approx(rates, nan_ok=True)
        sizes = tables[0].sum(axis=2)
        expected = intervals.wilson(rates * sizes, sizes, config.evaluate.confidence)
        assert np.array(method.by_group.interval) == pytest.approx(expected, nan_ok=True)
        y, a = method.worst_present_group
        assert rates[a, y] == np.nanmin(rates)
        assert set(method.versus) == ({"biased"} if name == "aimfair" else set())
    mine, its = audit.methods["aimfair"], audit.methods["biased"]
    for metric, difference in mine.versus["biased"].items():
        assert difference.mean == pytest.approx(mine.mean[metric] - its.mean[metric], nan_ok=True)
        assert np.isnan(difference.over_images).any() == np.isnan(difference.mean), "of the same groups"


def test_empty_groups_make_strict_metrics_undefined_and_are_named(results: Results) -> None:
    audit = results.intersections["age"]
    assert audit.empty == 2
    method = audit.methods["aimfair"]
    assert np.isnan([method.mean["worst_group_accuracy"], method.mean["eo_mean"]]).all()
    assert 0 < method.mean["worst_present_group_accuracy"] < 1
    assert not np.isnan(method.versus["biased"]["worst_present_group_accuracy"].over_images).any()
    for target in ("below five", "five or more"):
        assert f"No test images in group {target} · red · old: metrics that need it are undefined." in (audit.cautions)
    assert results.attributes["age"].empty == 0
    assert not np.isnan(results.attributes["age"].methods["aimfair"].mean["worst_group_accuracy"])


def test_small_groups_are_flagged(results: Results) -> None:
    audit = results.intersections["age"]
    sizes = np.array(audit.test_images)
    small = [
        f"{target} · {value}"
        for y, target in enumerate(results.target_names)
        for a, value in enumerate(audit.value_names)
        if 0 < sizes[a, y] < 30
    ]
    assert small
    assert all(any(name in caution for caution in audit.cautions) for name in small)


def test_scores_of_the_values(results: Results) -> None:
    scores = results.intersections["age"].methods["aimfair"].scores_mean
    assert scores is not None
    assert np.isnan(scores.by_value["auroc"]).tolist() == [False] * 5 + [True]
    assert np.isnan(scores.gap["auroc"])
    assert scores.overall == results.methods["aimfair"].scores_mean.overall


def test_many_groups_are_named_in_one_sentence() -> None:
    sizes = np.array([[0, 0, 0], [0, 0, 31], [4, 4, 4], [4, 4, 50]])
    found = cautions("xyz", "abcd", sizes, 30)
    assert found == [
        "No test images in 5 of 12 groups, x · a; x · b; y · a; y · b; z · a: metrics that need them are undefined.",
        "Under 30 test images in 5 of 12 groups, x · c (4); x · d (4); y · c (4); y · d (4); z · c (4): their results"
        " are uncertain.",
    ]
    (found,) = cautions([str(y) for y in range(101)], "ab", np.zeros((2, 101), dtype=np.int64), 30)
    assert found.endswith("; 9 · a; 9 · b; and 182 more: metrics that need them are undefined.")


def test_unnamed_attributes_are_an_error(config: Config, splits: Splits) -> None:
    with pytest.raises(ValueError, match=r"attributes \['age'\], names of values of \[\]"):
        partitions({config.data.protected}, replace(splits, attribute_names={}))


def test_factors_are_not_crossed_with_their_product() -> None:
    """Protected is ink x side: each of them is audited alone, and only age is crossed with the four inks and sides."""
    splits = made_up_splits()
    ink, number = splits.test.protected, len(splits.test)
    side, age = (np.random.default_rng(seed).integers(values, size=number) for seed, values in ((1, 2), (2, 3)))
    sides = ("left", "right")
    crossed = replace(
        splits,
        test=replace(splits.test, protected=ink * 2 + side),
        protected_names=tuple(f"{one} · {other}" for one in ("green", "red") for other in sides),
    )
    crossed = with_attributes(crossed, {"ink": (("green", "red"), ink), "side": (sides, side), "age": (AGES, age)})
    alone, intersections = partitions({"ink", "side"}, crossed)
    assert list(alone) == ["ink", "side", "age"]
    assert list(intersections) == ["age"]
    assert intersections["age"].names[:4] == (
        "green · left · young", "green · left · middle", "green · left · old", "green · right · young",
    )  # fmt: skip


def test_the_file_keeps_them(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save(path)
    loaded = Results.load(path)
    assert loaded.model_dump_json() == results.model_dump_json()
    assert np.isnan(loaded.intersections["age"].methods["aimfair"].mean["eo_max"])
