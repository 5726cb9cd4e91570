"""Every kind of method through the stages: what it reads, what it writes, and that it resumes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.base.log import NOWHERE
from aimfair.config import Config, strict_yaml
from aimfair.config import load as config_file
from aimfair.data.images import ImageSet, Splits
from aimfair.data.load import load_splits
from aimfair.evaluation.results import Results
from aimfair.methods import KINDS, Tune
from aimfair.methods.controls import Erm
from aimfair.methods.jtt import ERROR_SET
from aimfair.methods.last_layer_retrain import LastLayerRetrain
from aimfair.run.directory import Run
from aimfair.stages import finetune, select, sensitivity, train
from aimfair.stages.context import provide_splits
from aimfair.training.history import HISTORY, History
from aimfair.training.loop import Training
from aimfair.training.models import build_model, load_model
from aimfair.training.predict import predict
from aimfair.training.settings import FinetuneSettings, OptimizerSettings
from tests.tiny_run import CLASSES, METHODS, SETTINGS, VALUES, replace_synthetic, settings
from tests.training.samples import state_bits

STAGES = (train, sensitivity, select, finetune)
WATCHED = {name: values for name, values in METHODS.items() if "kind" in values or name == "full"}
"""One method of each kind, or two."""


@pytest.fixture
def directory(tiny: Path, tmp_path: Path) -> Path:
    """A copy of a run in which every method is done."""
    return Path(shutil.copytree(tiny / "run", tmp_path / "run"))


@pytest.fixture(autouse=True)
def as_in_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    torch.set_num_threads(SETTINGS["threads"])


@pytest.fixture
def config(photographs: Path) -> Callable[..., Config]:
    """The run's settings with one seed, with methods changed."""

    def change(**methods: dict) -> Config:
        return settings(photographs, seeds=[7], methods=METHODS | methods)

    return change


@pytest.fixture
def splits(config: Callable[..., Config]) -> Splits:
    return load_splits(config().data)


def do(path: Path, settings: Config, stages=STAGES, splits: Splits | None = None) -> list[str]:
    """Does the stages; the steps that were not done already."""
    log = path / "log.jsonl"
    before = len(log.read_text().splitlines()) if log.exists() else 0
    with Run.open(path, settings, overwrite=True, quiet=True) as run:
        if splits is not None:
            provide_splits(run, splits)
        for stage in stages:
            stage.run(run)
    events = [json.loads(line) for line in log.read_text().splitlines()[before:]]
    return [event["step"] for event in events if event["event"] == "step finished"]


def forget(path: Path, name: str) -> None:
    (path / "stages" / "finetune" / "7" / f"{name}.json").unlink()
    shutil.rmtree(folder_of(path, name))


def folder_of(path: Path, name: str) -> Path:
    return path / "seeds" / "7" / "finetuned" / name


def histories(path: Path) -> dict[str, History]:
    return {
        name: History.model_validate_json((folder_of(path, name) / HISTORY).read_bytes())
        for name in METHODS
        if folder_of(path, name).exists()
    }


def test_all_kinds(directory, config):
    assert do(directory, config()) == []
    models = {name: load_model(folder_of(directory, name)) for name in METHODS}
    baseline = load_model(directory / "seeds" / "7" / "baseline")

    assert state_bits(models["erm"]) == state_bits(baseline), "a control with the settings of the biased model is it"
    others = [json.dumps({k: v.hex() for k, v in state_bits(model).items()}) for model in models.values()]
    assert len(set(others)) == len(METHODS)
    for name in ("last_layer", "last_layer_synthetic"):
        same = {
            key for key, tensor in models[name].state_dict().items() if torch.equal(tensor, baseline.state_dict()[key])
        }
        assert baseline.state_dict().keys() - same == {"classifier.1.weight", "classifier.1.bias"}

    reads = {name for name, history in histories(directory).items() if history.reads_groups}
    assert reads == {"resampled", "dro", "last_layer"}
    assert {name for name in METHODS if config().methods[name].reads_groups} == reads
    for name in METHODS:
        left = sorted(file.name for file in folder_of(directory, name).iterdir())
        extra = [ERROR_SET] if name == "jtt" else []
        assert left == sorted(["config.json", "history.json", "model.safetensors", *extra])
    masks = {file.stem for file in (directory / "seeds" / "7" / "masks").iterdir()}
    assert masks == {name for name, values in METHODS.items() if "kind" not in values}

    notes = histories(directory)["dro"].notes
    assert list(notes) == [f"last weight of {y}, {a}" for y in CLASSES for a in VALUES]
    assert sum(notes.values()) == pytest.approx(1)
    assert max(notes.values()) > 0.26

    results = Results.load(directory / "results.json")
    assert {name for name, method in results.methods.items() if method.density is not None} == masks


def test_an_epoch_of_each_kind(directory, config, splits, monkeypatch):
    """Which images it sees: by the indices that each step gets."""
    seen: dict[str, list[tuple[ImageSet, np.ndarray]]] = {}
    take = Training._take_step

    def watched(self, indices, images):
        if name.startswith("last_layer") and not seen[name]:
            assert not self.model.classifier[1].weight.any(), "the head starts over"
        seen[name].append((self.train, indices))
        take(self, indices, images)

    monkeypatch.setattr(Training, "_take_step", watched)
    counts = {}
    for name in WATCHED:
        forget(directory, name)
        seen[name] = []
        do(directory, config(), splits=splits)
        whole, indices = seen[name][-1][0], np.concatenate([indices for _, indices in seen[name]])
        counts[name] = whole.subset(indices).group_counts(2, 2).ravel().tolist()
    for name in ("resampled", "dro", "last_layer", "last_layer_synthetic"):
        assert len(set(counts[name])) == 1, name
    assert counts["erm"] == (2 * splits.train.group_counts(2, 2)).ravel().tolist()
    assert {name for name in WATCHED if seen[name][0][0] is splits.train} == {"erm", "resampled", "dro", "jtt"}
    assert seen["last_layer"][0][0] is splits.validation
    both = seen["both"][0][0]
    assert len(both) == len(splits.train) + 24
    assert np.array_equal(both.images[: len(splits.train)], splits.train.images)
    assert np.array_equal(both.images[len(splits.train) :], seen["synthetic"][0][0].images)
    assert np.array_equal(both.target[len(splits.train) :], seen["full"][0][0].target)


def test_real_images_may_be_mixed_in(directory, config, splits, monkeypatch):
    trained: list[ImageSet] = []
    prepare = Training.__post_init__

    def watched(self):
        trained.append(self.train)
        prepare(self)

    monkeypatch.setattr(Training, "__post_init__", watched)
    mixed = {"rule": "random", "density": 0.3, "real_share": 0.5}
    assert do(directory, config(mixed=mixed), splits=splits) == ["select/7/mixed", "finetune/7/mixed"]
    assert do(directory, config(mixed=mixed), splits=splits) == []
    images, real = trained[0], trained[0].ids[24:]
    assert images.group_counts(2, 2).sum() == 24 + 12
    assert images.subset(range(24)).group_counts(2, 2).tolist() == [[6, 6], [6, 6]]
    assert len(set(real)) == 12
    for place, name in enumerate(real, start=24):
        number = splits.train.ids.index(name)
        assert images.target[place] == splits.train.target[number]
        assert np.array_equal(images.images[place], splits.train.images[number])

    assert do(directory, config(mixed=mixed | {"real_share": 0.25}), splits=splits) == ["finetune/7/mixed"]
    assert trained[-1].ids == trained[0].ids[: 24 + 6], "fewer of the same"
    with pytest.warns(UserWarning, match=r"real_share asks for 2400 real images, there are 48: all are used") as said:
        Tune(**mixed)._real(SimpleNamespace(splits=lambda: splits, seed=7, name="mixed", log=NOWHERE), 2400)
    assert len(said) == 1


def test_the_error_set_is_what_the_first_model_gets_wrong(directory, config, splits):
    record = json.loads((folder_of(directory, "jtt") / ERROR_SET).read_text())
    how, train = config().model, splits.train
    model = build_model(how, 2, 7)
    one = config().train.model_copy(update={"epochs": 1})
    Training(model, train, splits.validation, one, how, 7).fit()
    wrong = np.flatnonzero(
        predict(model, train, how, batch_size=9, device=torch.device("cpu")).argmax(1) != train.target
    )
    assert 0 < len(wrong) < len(train)
    assert record["indices"] == wrong.tolist()
    assert record["ids"] == [train.ids[index] for index in wrong]
    history = histories(directory)["jtt"]
    assert history.notes == {"images in the error set": len(wrong)}
    assert len(history.epochs) == 2


def test_the_first_model_is_an_ordinary_training_that_is_stopped(photographs, tmp_path, monkeypatch):
    """Its learning rates are those of the whole one, not of one that ends with it."""
    lrs, take = [], Training._take_step

    def watched(self, indices, images):
        take(self, indices, images)
        lrs.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Training, "_take_step", watched)
    only = {"seeds": [7], "methods": {"jtt": METHODS["jtt"]}, "default_method": "jtt"}
    cosine = settings(photographs, **only, train={"schedule": "cosine"})
    do(tmp_path / "run", cosine, stages=[train, finetune])
    whole, first = lrs[:6], lrs[6:9]
    assert len(set(whole)) == 6
    assert first == whole[:3]
    assert len(lrs) == 6 + 3 + 2 * 5


def test_the_error_set_of_other_images_is_not_used(directory, photographs, splits):
    before = json.loads((folder_of(directory, "jtt") / ERROR_SET).read_text())
    other = replace(splits.train, images=255 - splits.train.images)  # with the same ids and labels
    changed = settings(photographs, seeds=[7], data={"seed": 5})
    do(directory, changed, splits=replace(splits, train=other))
    after = json.loads((folder_of(directory, "jtt") / ERROR_SET).read_text())
    assert after["training"] != before["training"]
    assert after["indices"] != before["indices"]


STEPS = {
    "resampled": ([2, 4], 6),
    "dro": ([2, 4], 6),
    "jtt": ([2, 3, 5, 8], 3 + 2 * 5),
    "last_layer": ([1], 3),
    "both": ([3], 10),
}
"""The steps in which a method is stopped, and all that it takes; of jtt in the first training and in the second."""


def test_a_stopped_method_continues_to_the_same_bits(directory, config, monkeypatch):
    expected = {name: state_bits(load_model(folder_of(directory, name))) for name in STEPS}
    notes = {name: history.notes for name, history in histories(directory).items()}
    take = Training._take_step
    for name, (steps, in_all) in STEPS.items():
        forget(directory, name)
        done = 0

        def stop(self, indices, images, steps=steps):
            nonlocal done
            done += 1
            if done in steps:
                os.kill(os.getpid(), signal.SIGINT)
            take(self, indices, images)

        monkeypatch.setattr(Training, "_take_step", stop)
        for _ in steps:
            with pytest.raises(Interrupted):
                do(directory, config())
        do(directory, config())
        assert done == in_all, f"{name}: steps were taken again"
        assert state_bits(load_model(folder_of(directory, name))) == expected[name], name
        assert histories(directory)[name].notes == notes[name]
        assert not list(folder_of(directory, name).rglob("checkpoint*"))


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ({"dro": {"kind": "group_dro", "step_size": 0.2}}, {"dro"}),
        ({"jtt": {"kind": "jtt", "first_epochs": 1, "upweight": 4}}, {"jtt"}),
        ({"last_layer": {"kind": "last_layer_retrain", "balanced_from": "synthetic"}}, {"last_layer"}),
        ({"erm": {"kind": "erm", "lr": 0.5}}, {"erm"}),
        ({"full": {"rule": "all", "epochs": 2}}, {"full"}),
        ({"jtt": {"kind": "erm"}}, {"jtt"}),
    ],
)
def test_only_the_method_that_changed_is_done_again(directory, config, changed, redone):
    assert {step.split("/")[-1] for step in do(directory, config(**changed))} == redone
    if changed.get("jtt", {}).get("kind") == "erm":
        assert not (folder_of(directory, "jtt") / ERROR_SET).exists()


def test_other_synthetic_images_redo_those_who_read_them(directory, config):
    with Run.open(directory, config(), overwrite=True, quiet=True) as run:
        replace_synthetic(run)
    redone = {step.split("/")[-1] for step in do(directory, config()) if step.startswith("finetune")}
    assert redone == {
        "linear_probe", "full", "random", "aimfair", "synthetic", "both", "last_layer_synthetic",
    }  # fmt: skip


def test_controls_need_no_generated_images(photographs, tmp_path):
    only = settings(photographs, seeds=[7], methods={"jtt": METHODS["jtt"]}, default_method="jtt")
    assert do(tmp_path / "run", only, stages=[train, select, finetune]) == ["train/7", "finetune/7/jtt"]


def test_a_first_model_without_errors_gives_a_warning(directory, config, monkeypatch):
    monkeypatch.setattr("aimfair.methods.jtt._misclassified", lambda *_: np.array([], dtype=np.int64))
    forget(directory, "jtt")
    do(directory, config())
    assert histories(directory)["jtt"].notes == {"images in the error set": 0}
    assert "7 jtt: the first model classifies every image correctly" in (directory / "log.jsonl").read_text()


def test_a_group_without_images_gives_a_warning(directory, config, splits):
    train = splits.train
    there = np.flatnonzero((train.target == 0) | (train.protected == 1))
    forget(directory, "dro")
    do(directory, config(), splits=replace(splits, train=train.subset(there)))
    assert f"7 dro: no image of the group {CLASSES[1]}, {VALUES[0]}" in (directory / "log.jsonl").read_text()
    assert list(histories(directory)["dro"].notes)[-1] == f"last weight of {CLASSES[1]}, {VALUES[1]}"
    assert len(histories(directory)["dro"].notes) == 3


@pytest.mark.parametrize("indices", ["", "[10000000]", "[-1]", "[[0]]", "[1e99]", f"[{10**30}]", "null"])
def test_a_damaged_error_set_is_refused_by_name(directory, config, indices):
    (directory / "stages" / "finetune" / "7" / "jtt.json").unlink()
    path = folder_of(directory, "jtt") / ERROR_SET
    training = json.loads(path.read_text())["training"]
    path.write_text(f'{{"training": "{training}", "indices": {indices}}}')
    with pytest.raises(AimfairError, match=r"error_set\.json: not a usable error set.*remove it"):
        do(directory, config())


# -- settings ---------------------------------------------------------------------------------------------------------


def test_what_a_method_may_set_for_itself():
    train, finetune = OptimizerSettings(batch_size=7), FinetuneSettings(keep="best_validation", batchnorm="adapt")
    own = Erm(lr=0.5, epochs=3, weight_decay=0.0)
    assert own.training_settings(train, finetune) == OptimizerSettings(batch_size=7, lr=0.5, epochs=3, weight_decay=0.0)
    tuned = Tune(rule="all", epochs=2).training_settings(train, finetune)
    assert tuned == finetune.model_copy(update={"epochs": 2})
    # Validation images that train the head do not choose its epoch.
    real = LastLayerRetrain().training_settings(train, finetune)
    assert (real.keep, real.batchnorm) == ("last", "freeze")
    own = LastLayerRetrain(balanced_from="synthetic", batchnorm="adapt")
    synthetic = own.training_settings(train, finetune)
    assert (synthetic.keep, synthetic.batchnorm) == ("best_validation", "adapt")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"kind": "erm", "rule": "all"}, "not valid for kind 'erm', only for tune; erm takes kind, lr, epochs"),
        ({"kind": "jtt", "freeze": ["x"]}, "not valid for kind 'jtt'"),
        ({"kind": "erm", "batchnorm": "freeze"}, "not valid for kind 'erm', only for tune and last_layer_retrain"),
        ({"rule": "all", "upweight": 3}, "not valid for kind 'tune', only for jtt"),
        ({"kind": "jtt", "step_size": 0.5}, "not valid for kind 'jtt', only for group_dro"),
        ({"kind": "dro"}, "found 'dro', expected one of tune, erm, synthetic_only"),
        ({"rule": "blocks"}, "rule 'blocks' takes blocks, found none"),
        ({"rule": "top_k", "k": 3, "criterion": "cosine"}, "found 'element', expected row or tensor"),
    ],
)
def test_settings_that_do_not_go_together(config, method, message):
    with pytest.raises(ValidationError) as raised:
        config(mine=method)
    assert message in str(raised.value)


def test_settings_of_every_kind_survive_their_file(config, tmp_path):
    (tmp_path / "config.yaml").write_text(config_file.dump(config()))
    assert config_file.load(tmp_path / "config.yaml") == config()


def test_saved_settings_hold_the_keys_of_their_kind_alone(config):
    saved = strict_yaml.parse(config_file.dump(config()))[0]["methods"]
    assert all(saved[name].keys() == KINDS[saved[name]["kind"]].model_fields.keys() for name in METHODS)
    assert saved["erm"].keys() == {"kind", "lr", "epochs", "weight_decay"}


def test_the_old_name_of_last_layer_retrain_is_taken_with_a_warning(config):
    with pytest.warns(FutureWarning, match="method kind 'dfr' is now called 'last_layer_retrain'; rename it"):
        old = config(mine={"kind": "dfr", "head": "x"})
    assert old == config(mine={"kind": "last_layer_retrain", "head": "x"})


def test_settings_need_no_torch():
    program = "import aimfair.config, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
