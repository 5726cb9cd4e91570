"""Results built from predictions: every number against its definition, and the file they are kept in."""

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.config import Config
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation import metrics
from aimfair.evaluation.compare import compare
from aimfair.evaluation.metrics import count_predictions
from aimfair.evaluation.results import Results
from aimfair.stages.evaluate import experiment
from tests.report.made_up import made_up_config, made_up_predictions, made_up_splits


@pytest.fixture(scope="module")
def config() -> Config:
    return made_up_config(replicates=500)


@pytest.fixture(scope="module")
def splits() -> Splits:
    return made_up_splits(test_per_group=(60, 80, 70, 50))


@pytest.fixture(scope="module")
def results(config: Config, splits: Splits) -> Results:
    return compare(experiment(config), splits, made_up_predictions(splits, config), {"aimfair": [0.1, 0.1, 0.1]})


def test_every_number_is_its_definition(config: Config, splits: Splits, results: Results) -> None:
    predicted = made_up_predictions(splits, config)
    assert list(results.methods) == ["biased", *config.methods]
    overall: dict[str, list[dict[str, float]]] = {}
    for name, method in results.methods.items():
        tables = [count_predictions(splits.test.target, splits.test.protected, one, 2, 2) for one in predicted[name]]
        overall[name] = [{metric: float(value) for metric, value in metrics.overall(table).items()} for table in tables]
        assert [one.counts for one in method.seeds] == [table.tolist() for table in tables]
        for metric in metrics.METRICS:
            values = [one[metric] for one in overall[name]]
            assert [one.overall[metric] for one in method.seeds] == pytest.approx(values)
            assert method.mean[metric] == pytest.approx(np.mean(values))
            assert method.std[metric] == pytest.approx(np.std(values, ddof=1))
            low, high = method.interval[metric]
            assert low <= high
        rates = np.mean([metrics.by_group(table) for table in tables], axis=0)
        assert np.array(method.by_group.mean) == pytest.approx(rates)
        assert method.of_mean_rates["worst_group_accuracy"] == pytest.approx(rates.min())
        assert method.of_mean_rates["group_std"] == pytest.approx(rates.std())
        assert method.of_mean_rates["worst_group_accuracy"] >= method.mean["worst_group_accuracy"] - 1e-12
    for name, method in results.methods.items():
        assert set(method.versus) == {"biased", "aimfair"} - {name}
        for other, differences in method.versus.items():
            for metric, difference in differences.items():
                pairs = zip(overall[name], overall[other], strict=True)
                assert difference.mean == pytest.approx(np.mean([mine[metric] - its[metric] for mine, its in pairs]))
                assert difference.over_images[0] <= difference.over_images[1]
    assert results.methods["aimfair"].density == pytest.approx(0.1)
    assert results.methods["biased"].density is None
    assert results.test_images == [[60, 70], [80, 50]]
    assert results.cautions == []


def test_methods_are_paired_by_image(config: Config, splits: Splits) -> None:
    """A method that is right where the biased model is, and on one more image, is never worse in any replicate."""
    predicted = made_up_predictions(splits, config)
    better = []
    for one in predicted["biased"]:
        fixed = one.copy()
        wrong = np.flatnonzero(one != splits.test.target)
        fixed[wrong[: len(wrong) // 4]] = splits.test.target[wrong[: len(wrong) // 4]]
        better.append(fixed)
    results = compare(experiment(config), splits, {**predicted, "aimfair": better}, {})
    low, high = results.methods["aimfair"].versus["biased"]["accuracy"].over_images
    assert 0 < low < high
    alone = results.methods["aimfair"].interval["accuracy"]
    assert high - low < alone[1] - alone[0], "pairing narrows the interval"
    opposite = results.methods["full"].versus["aimfair"]["accuracy"]
    assert opposite.mean == pytest.approx(
        results.methods["full"].mean["accuracy"] - results.methods["aimfair"].mean["accuracy"]
    )


def test_one_seed_has_no_spread(splits: Splits) -> None:
    config = made_up_config(replicates=200, seeds=[7])
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    method = results.methods["aimfair"]
    assert np.isnan(method.std["accuracy"])
    assert np.isnan(method.versus["biased"]["accuracy"].over_seeds).all()
    assert not np.isnan(method.versus["biased"]["accuracy"].over_images).any()


def test_empty_and_small_groups_are_cautioned(config: Config) -> None:
    splits = made_up_splits(test_per_group=(40, 29, 30, 0))
    results = compare(experiment(config), splits, made_up_predictions(splits, config), {})
    assert [caution.split(":")[0] for caution in results.cautions] == [
        "No test images in group five or more · red",
        "Only 29 test images in group below five · red",
    ]
    method = results.methods["aimfair"]
    assert np.isnan(method.mean["worst_group_accuracy"])
    assert method.seeds[0].worst_group is None
    assert 0 < method.mean["accuracy"] < 1
    assert np.isnan(method.by_group.interval[1][1]).all()


def test_the_file_keeps_everything(results: Results, config: Config, splits: Splits, tmp_path) -> None:
    path = tmp_path / "results.json"
    results.save(path)
    first = path.read_bytes()
    assert Results.load(path) == results
    compare(experiment(config), splits, made_up_predictions(splits, config), {"aimfair": [0.1, 0.1, 0.1]}).save(path)
    assert path.read_bytes() == first, "the same predictions give the same bytes"


def test_undefined_is_null_in_the_file(config: Config, tmp_path) -> None:
    splits = made_up_splits(test_per_group=(40, 40, 40, 0))
    path = tmp_path / "results.json"
    compare(experiment(config), splits, made_up_predictions(splits, config), {}).save(path)
    assert "NaN" not in path.read_text()
    assert np.isnan(Results.load(path).methods["biased"].mean["eo_max"])


def test_other_files_are_refused(tmp_path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(AimfairError, match="no results yet; first: aimfair evaluate"):
        Results.load(path)
    for text in ("{", "{}", '{"schema_version": 4}', "3", "\xff"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(AimfairError, match=r"results\.json: .*(from the models|remove it and do): aimfair"):
            Results.load(path)


def test_three_protected_values_and_classes_against_fairlearn(config: Config) -> None:
    from fairlearn.metrics import MetricFrame
    from sklearn.metrics import accuracy_score

    generator = np.random.default_rng(0)
    target, protected = np.repeat(np.arange(3), 120), np.tile([0, 1, 2], 120)
    test = ImageSet(np.zeros((360, 2, 2, 3), np.uint8), target, protected, tuple(map(str, range(360))))
    splits = Splits(test, test, test, ("x", "y", "z"), ("north", "middle", "south"))
    logits = {
        name: [(generator.normal(size=(360, 3)) + np.eye(3)[target]).astype(np.float32) for _ in config.seeds]
        for name in ("biased", *config.methods)
    }
    predicted = {name: [one.argmax(axis=1) for one in of] for name, of in logits.items()}
    results = compare(experiment(config), splits, predicted, {}, logits)
    for s, one in enumerate(results.methods["aimfair"].seeds):
        frame = MetricFrame(
            metrics=accuracy_score,
            y_true=target,
            y_pred=predicted["aimfair"][s],
            sensitive_features=protected,
            control_features=target,
        )
        assert np.array(one.by_group) == pytest.approx(frame.by_group.to_numpy().reshape(3, 3).T)
        assert one.overall["worst_group_accuracy"] == pytest.approx(frame.group_min().min())
        assert one.overall["equal_opportunity"] == pytest.approx(frame.difference().max())
        assert one.scores is not None
        assert len(one.scores.by_value["auroc"]) == 3
        assert one.scores.gap["auroc"] == pytest.approx(np.ptp(one.scores.by_value["auroc"]))
    y, a = results.methods["aimfair"].seeds[0].worst_group or pytest.fail("no group is empty")
    assert results.group_name(y, a) in {f"{k} · {v}" for k in "xyz" for v in ("north", "middle", "south")}


def test_an_older_file_is_named_as_such(tmp_path) -> None:
    path = tmp_path / "run" / "results.json"
    path.parent.mkdir()
    path.write_text('{"schema_version": 1, "title": "Digits", "methods": {}}')
    with pytest.raises(AimfairError, match=r"schema version 1, this aimfair reads 4; .*aimfair evaluate --run .*run$"):
        Results.load(path)


def test_ten_classes(config: Config) -> None:
    generator = np.random.default_rng(0)
    target, protected = np.repeat(np.arange(10), 40), np.tile([0, 1], 200)
    test = ImageSet(np.zeros((400, 2, 2, 3), np.uint8), target, protected, tuple(map(str, range(400))))
    splits = Splits(test, test, test, tuple(map(str, range(10))), ("green", "red"))
    predicted = {
        name: [np.where(generator.random(400) < 0.8, target, generator.integers(10, size=400)) for _ in config.seeds]
        for name in ("biased", *config.methods)
    }
    results = compare(experiment(config), splits, predicted, {})
    assert np.shape(results.methods["aimfair"].seeds[0].counts) == (2, 10, 10)
    assert np.shape(results.methods["aimfair"].by_group.interval) == (2, 10, 2)
    assert len(results.groups) == 20
    (caution,) = results.cautions
    assert caution.startswith("Under 30 test images in 20 of 20 groups, 0 · green (20); 0 · red (20); 1 · green (20);")
