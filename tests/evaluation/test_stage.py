"""The stage: predictions of saved models, their table, and when it is done again."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aimfair.base.errors import AimfairError
from aimfair.evaluation import scores
from aimfair.evaluation.predictions import load_logits
from aimfair.evaluation.results import Results
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.stages import context, evaluate
from aimfair.stages.context import provide_splits, splits_of
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.predict import predict
from aimfair.training.settings import ModelSettings
from tests.report.made_up import made_up_config, made_up_splits, with_attributes

MODEL = {
    "model_type": "resnet",
    "embedding_size": 4,
    "hidden_sizes": [4, 8],
    "depths": [1, 1],
    "layer_type": "basic",
}
SEEDS = [1, 2]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    config = made_up_config(
        seeds=SEEDS, replicates=100, model={"config": MODEL}, methods={"aimfair": {"rule": "ratio", "density": 0.1}}
    )
    with Run.open(tmp_path / "run", config, quiet=True) as run:
        splits = made_up_splits((20, 20, 20, 29))
        splits = with_attributes(splits, {"age": (("young", "old"), np.arange(89) % 2)})
        provide_splits(run, splits)
        for seed in SEEDS:
            for folder, weights in ((run.baseline(seed), seed), (run.finetuned(seed, "aimfair"), 10 * seed)):
                save_model(build_model(ModelSettings(config=MODEL), 2, weights), folder)
            mask = ParameterMask.random(load_model(run.baseline(seed)), 0.1 * seed)
            run.mask(seed, "aimfair").parent.mkdir()
            mask.save(run.mask(seed, "aimfair"))
            run.finish(f"train/{seed}", {}, [run.baseline(seed)])
            run.finish(f"select/{seed}/aimfair", {}, [run.mask(seed, "aimfair")])
            run.finish(f"finetune/{seed}/aimfair", {}, [run.finetuned(seed, "aimfair")])
        yield run


def test_predictions_and_results(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run(run)
    test, results = splits_of(run).test, Results.load(run.results)
    assert results.methods["aimfair"].density == pytest.approx(0.15, abs=1e-3)
    for s, seed in enumerate(SEEDS):
        with (run.path / "seeds" / str(seed) / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["id"] for row in rows] == list(test.ids)
        assert [(int(row["target"]), int(row["protected"])) for row in rows] == list(
            zip(test.target.tolist(), test.protected.tolist(), strict=True)
        )
        for name, folder in (("biased", run.baseline(seed)), ("aimfair", run.finetuned(seed, "aimfair"))):
            model = load_model(folder)
            expected = predict(
                model, test, run.config.model, batch_size=7, device=next(model.parameters()).device
            ).argmax(axis=1)
            predicted = np.array([int(row[name]) for row in rows])
            assert np.array_equal(predicted, expected)
            counts = np.array(results.methods[name].seeds[s].counts)
            assert counts.sum() == len(test)
            assert counts[1, 0, 1] == ((test.protected == 1) & (test.target == 0) & (predicted == 1)).sum()
        logits = {name: load_logits(run.logits(seed, name)) for name in ("biased", "aimfair")}
        assert {name: of.shape for name, of in logits.items()} == {"biased": (89, 2), "aimfair": (89, 2)}
        for name, of in logits.items():
            assert [int(row[name]) for row in rows] == of.argmax(axis=1).tolist()
            again = scores.measure(of, test.target, test.protected, 2, run.config.evaluate.bins)
            assert results.methods[name].seeds[s].scores.overall == again.overall, "as recomputed from the file"
        age = test.attributes["age"].tolist()
        assert [int(row["attribute age"]) for row in rows] == age
    assert results.attributes["age"].value_names == ["young", "old"]
    assert results.intersections["age"].value_names == ["green · young", "green · old", "red · young", "red · old"]
    for name in ("results.csv", "table.md"):
        assert (run.path / name).exists()
    shown = capsys.readouterr().out
    assert "seed-avg" in shown
    assert f"{100 * results.methods['aimfair'].of_mean_rates['worst_group_accuracy']:.1f}" in shown
    assert "biased" in shown
    assert f"{100 * results.methods['aimfair'].mean['accuracy']:.1f}" in shown
    assert "Only 20 test images in group below five" in (run.path / "log.jsonl").read_text(encoding="utf-8")


def test_done_once_and_again_when_a_model_changes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    monkeypatch.setattr(context, "load_model", lambda folder, settings: calls.append(folder) or load_model(folder))
    evaluate.run(run)
    assert len(calls) == 4
    first = run.results.read_bytes()
    evaluate.run(run)
    assert len(calls) == 4
    save_model(build_model(ModelSettings(config=MODEL), 2, 99), run.finetuned(2, "aimfair"))
    run.finish("finetune/2/aimfair", {}, [run.finetuned(2, "aimfair")])
    evaluate.run(run)
    assert calls[4:] == [run.finetuned(2, "aimfair")], "of the model that has changed alone"
    assert run.results.read_bytes() != first


def test_other_metrics_predict_nothing_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate.run(run)
    run.config = run.config.model_copy(
        update={"title": "another", "evaluate": run.config.evaluate.model_copy(update={"small_group": 21})}
    )
    monkeypatch.setattr(context, "load_model", lambda *_: pytest.fail("the logits are there"))
    evaluate.run(run)
    assert Results.load(run.results).small_group == 21


def test_an_evaluation_that_was_stopped_goes_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []

    def load(folder: Path, settings: ModelSettings) -> object:
        calls.append(folder)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return load_model(folder)

    monkeypatch.setattr(context, "load_model", load)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(run)
    evaluate.run(run)
    assert len(calls) == 5, "the first two are not predicted again"


def test_results_of_an_older_aimfair_are_made_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an older one recorded as done is not taken for done, so that the advice to evaluate again helps."""
    with monkeypatch.context() as older:
        older.setattr(evaluate, "SCHEMA_VERSION", 1)
        evaluate.run(run)
    run.results.write_text(run.results.read_text().replace('"schema_version": 4', '"schema_version": 1'))
    with pytest.raises(AimfairError, match="schema version 1"):
        Results.load(run.results)
    evaluate.run(run)
    assert Results.load(run.results).schema_version == 4


def test_a_missing_model_is_named(run: Run) -> None:
    (run.path / "stages/finetune/2/aimfair.json").unlink()
    with pytest.raises(AimfairError, match=r"finetune/2/aimfair.*aimfair finetune --run"):
        evaluate.run(run)
