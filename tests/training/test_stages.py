"""The stages from the biased model to the tuned one, in a run directory."""

import gc
import json
import os
import signal
import weakref
from pathlib import Path

import pytest
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.config import Config
from aimfair.data.decode import content_digest
from aimfair.data.images import ImageSet, Splits
from aimfair.generation.manifest import ImageRecord, Manifest, file_name
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.stages import context, finetune, select, sensitivity, train
from aimfair.training.checkpoint import CHECKPOINT
from aimfair.training.loop import Training
from aimfair.training.models import load_model
from tests.training.samples import MODEL, TRAIN, VALIDATION, images, state_bits

STAGES = (train, sensitivity, select, finetune)

SETTINGS = {
    "seeds": [100],
    "device": "cpu",
    "data": {"kind": "table", "root": "/nowhere", "target": "bar", "protected": "tint", "image_size": 16},
    "prompts": {
        "template": "{target} {protected}",
        "targets": [["level"], ["upright"]],
        "protected": [["red"], ["blue"]],
        "contexts": {},
        "contexts_per_prompt": 0,
    },
    "model": MODEL.model_dump(mode="json"),
    "train": {"epochs": 2, "batch_size": 16, "lr": 0.01},
    "sensitivity": {"batch_size": 8},
    "finetune": {"epochs": 1, "batch_size": 16, "lr": 0.01},
    "methods": {
        "full": {"rule": "all"},
        "aimfair": {"rule": "ratio", "density": 0.1, "lr": 0.02, "batchnorm": "adapt"},
    },
    "default_method": "aimfair",
}


def change(**sections: dict) -> Config:
    return Config.model_validate(SETTINGS | {name: SETTINGS[name] | value for name, value in sections.items()})


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A run whose images have been generated."""
    path = tmp_path / "run"
    with Run.open(path, change()) as run:
        write_synthetic(run.synthetic, {"balanced": images(24, 3), "biased": images(16, 4, bias=0.9)})
        run.finish("generate", {}, [run.synthetic])
    return path


def write_synthetic(folder: Path, sets: dict[str, ImageSet]) -> None:
    (folder / "images").mkdir(parents=True)
    records = []
    for which, whole in sets.items():
        for pixels, y, a in zip(whole.images, whole.target.tolist(), whole.protected.tolist(), strict=True):
            number, image = len(records), Image.fromarray(pixels)
            file = file_name(number, content_digest(image))
            image.save(folder / file)
            facts = {"prompt": "0", "text": "", "replica": 0, "seed": 0, "attempt": 0, "rejected": []}
            records.append(ImageRecord(image=number, y=y, a=a, sets=[which], file=file, **facts))
    Manifest(folder).write(records)


def opened(path: Path, config: Config | None = None) -> Run:
    run = Run.open(path, config or change(), overwrite=True, quiet=True)
    context._LOADED[run] = Splits(TRAIN, VALIDATION, VALIDATION, ("level", "upright"), ("red", "blue"))
    return run


def do(path: Path, config: Config | None = None) -> list[str]:
    """Does all four stages; the steps that were not done already."""
    before = len(events(path))
    with opened(path, config) as run:
        for stage in STAGES:
            stage.run(run)
    return [event["step"] for event in events(path)[before:] if event["event"] == "step finished"]


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def results(path: Path) -> dict[str, dict[str, bytes]]:
    folders = sorted(file.parent for file in path.glob("seeds/**/model.safetensors"))
    return {str(folder.relative_to(path)): state_bits(load_model(folder)) for folder in folders}


def test_they_make_what_a_run_directory_holds(directory):
    steps = do(directory, Config.model_validate(SETTINGS | {"seeds": [100, 200]}))
    assert len(steps) == 2 * (1 + 1 + 2 + 2)
    for seed in (100, 200):
        home = directory / "seeds" / str(seed)
        for folder in (home / "baseline", home / "finetuned" / "full", home / "finetuned" / "aimfair"):
            files = sorted(file.name for file in folder.iterdir())
            assert files == ["config.json", "history.json", "model.safetensors"]
        baseline, tuned = load_model(home / "baseline"), load_model(home / "finetuned" / "aimfair").state_dict()
        mask = ParameterMask.load(home / "masks" / "aimfair.safetensors", baseline)
        assert mask.nnz == round(0.1 * mask.numel)
        moved = {name: tuned[name] != weight for name, weight in baseline.named_parameters()}
        assert not any((moved[name] & ~selected).any() for name, selected in mask.to_bool().items())
        assert any(changed.any() for changed in moved.values())
    found = results(directory)
    assert found["seeds/100/baseline"] != found["seeds/200/baseline"]
    assert len(found) == 6


def test_synthetic_images_become_squares_as_real_ones_do(directory, monkeypatch):
    asked = []

    def load(folder, which, size, fit, **others):
        asked.append((which, size, fit))
        return images(24, 3)

    monkeypatch.setattr("aimfair.generation.manifest.Manifest.load", load)
    do(directory, change(data={"fit": "stretch"}))
    assert set(asked) == {("biased", 16, "stretch"), ("balanced", 16, "stretch")}


def test_what_is_done_is_not_done_again(directory, monkeypatch):
    do(directory)
    monkeypatch.setattr(Training, "fit", lambda _: pytest.fail("trained again"))
    monkeypatch.setattr("aimfair.generation.manifest.Manifest.load", lambda *_: pytest.fail("loaded again"))
    assert do(directory) == []


@pytest.mark.parametrize(
    ("config", "redone"),
    [
        (change(methods={"full": {"rule": "all", "lr": 0.5}}), {"finetune/100/full"}),
        (
            change(methods={"aimfair": {"rule": "ratio", "density": 0.2, "lr": 0.02, "batchnorm": "adapt"}}),
            {"select/100/aimfair", "finetune/100/aimfair"},
        ),
        (change(finetune={"batchnorm": "adapt"}), {"finetune/100/full"}),
        (change(finetune={"epochs": 2}), {"finetune/100/full", "finetune/100/aimfair"}),
    ],
)
def test_only_what_depends_on_a_changed_setting_is_done_again(directory, config, redone):
    do(directory)
    assert set(do(directory, config)) == redone


def test_other_synthetic_images_leave_the_baseline_alone(directory):
    do(directory)
    with opened(directory) as run:
        (run.synthetic / "manifest.jsonl").write_text("")
        (run.synthetic / "images").rename(run.synthetic / "old")
        write_synthetic(run.synthetic, {"balanced": images(24, 5), "biased": images(16, 6, bias=0.9)})
        run.finish("generate", {}, [run.synthetic])
    assert {step.split("/")[0] for step in do(directory)} == {"sensitivity", "select", "finetune"}


def test_a_stopped_stage_continues_to_the_same_bits(directory, monkeypatch):
    take, count = Training._take_step, 0

    def stop_at(step):
        def take_step(self, indices, images):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGINT)
            take(self, indices, images)

        return take_step

    for step in (2, 3, 2, 2):  # of those that are left: of training, and of both fine-tunings
        count = 0
        monkeypatch.setattr(Training, "_take_step", stop_at(step))
        with pytest.raises(Interrupted):
            do(directory)
        assert list(directory.glob(f"seeds/**/{CHECKPOINT}"))
    monkeypatch.undo()
    do(directory)
    assert not list(directory.glob(f"seeds/**/{CHECKPOINT}"))
    interrupted = results(directory)

    for file in sorted(directory.glob("stages/*/**/*.json")):
        file.unlink()
    do(directory)
    assert results(directory) == interrupted


def test_a_checkpoint_of_other_images_is_not_taken_up(directory, monkeypatch):
    """Nor is one of images that have the same numbers and labels, but are those of other settings of the data."""
    take = Training._take_step

    def stop(self, indices, images):
        os.kill(os.getpid(), signal.SIGINT)
        take(self, indices, images)

    monkeypatch.setattr(Training, "_take_step", stop)
    with pytest.raises(Interrupted):
        do(directory)
    assert list(directory.glob(f"seeds/**/{CHECKPOINT}"))
    monkeypatch.undo()
    do(directory, change(data={"seed": 5}))
    assert "training resumed" not in [event["event"] for event in events(directory)]

    (directory / "stages" / "finetune" / "100" / "full.json").unlink()
    monkeypatch.setattr(Training, "_take_step", stop)
    with pytest.raises(Interrupted):
        do(directory, change(data={"seed": 5}))
    monkeypatch.undo()
    with opened(directory, change(data={"seed": 5})) as run:
        run.finish("generate", {"seed": 1}, [run.synthetic])
    do(directory, change(data={"seed": 5}))
    assert "training resumed" not in [event["event"] for event in events(directory)]


def test_what_is_lost_is_made_again_to_the_same_bytes(directory):
    """So that nothing which follows from it is done again."""
    do(directory)
    for file in ("sensitivity.safetensors", "masks/full.safetensors"):
        (directory / "seeds" / "100" / file).unlink()
    assert do(directory) == ["sensitivity/100", "select/100/full"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stages_hold_the_model_of_one_seed_at_a_time(directory, monkeypatch, checkpointing):
    """And its statistics: the memory that a run takes does not depend on how many seeds it has."""
    made: list[weakref.ref] = []
    load, new = load_model, Sensitivity.__init__

    def watched_load(*arguments):
        assert not [ref for ref in made if ref() is not None], "that of the seed before is still there"
        model = load(*arguments)
        made.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    def watched_new(self, *arguments, **named):
        made.append(weakref.ref(self))
        new(self, *arguments, **named)

    config = change(model={"checkpointing": checkpointing})
    do(directory, config)
    config = config.model_copy(update={"seeds": [100, 200, 300]})
    with opened(directory, config) as run:
        train.run(run)
        monkeypatch.setattr(Sensitivity, "__init__", watched_new)
        gc.collect()
        gc.disable()  # it would come by itself, but not in time for certain
        try:
            for stage, module in ((sensitivity, "sensitivity"), (select, "select")):
                monkeypatch.setattr(f"aimfair.stages.{module}.load_model", watched_load)
                stage.run(run)
        finally:
            gc.enable()
    parameters = len(list(load_model(directory / "seeds" / "100" / "baseline").parameters()))
    assert len(made) == 2 * 2 * (parameters + 1), "two stages, two new seeds"


@pytest.mark.parametrize(("stage", "file"), [(select, "sensitivity.safetensors"), (finetune, "masks/full.safetensors")])
def test_a_damaged_file_is_refused_by_name(directory, stage, file):
    do(directory)
    with opened(directory) as run:
        path = directory / "seeds" / "100" / file
        path.write_bytes(b"\0" * path.stat().st_size)
        (directory / "stages" / stage.__name__.split(".")[-1] / "100" / "full.json").unlink()
        with pytest.raises(AimfairError, match=rf"{file}: not a usable .*; remove it and do: aimfair"):
            stage.run(run)


@pytest.mark.parametrize("named", [None, "convolution"])
def test_heads_are_what_the_logits_come_from_or_what_a_method_names(directory, named):
    """Of a model whose classifier is not what its maker has set up last."""
    own = {"factory": "tests.training.test_head:HeadFirst", "config": {}}
    methods = {
        "probe": {"rule": "head_only", "head": named},
        "last_layer": {"kind": "last_layer_retrain", "head": named},
    }
    settings = {"model": SETTINGS["model"] | own, "methods": methods, "default_method": "probe"}
    config = Config.model_validate(SETTINGS | settings)
    do(directory, config)
    home = directory / "seeds" / "100"
    baseline = load_model(home / "baseline", config.model)
    for name in methods:
        tuned = load_model(home / "finetuned" / name, config.model).state_dict()
        moved = {key.partition(".")[0] for key, weight in baseline.state_dict().items() if (tuned[key] != weight).any()}
        assert moved == {named or "classifier"}, name


@pytest.mark.parametrize("kind", [{"rule": "head_only"}, {"kind": "last_layer_retrain"}])
def test_a_method_whose_head_cannot_be_determined_is_refused_by_name(directory, kind):
    own = {"factory": "tests.training.test_head:Temperature", "config": {}}
    settings = {"model": SETTINGS["model"] | own, "methods": {"mine": kind}, "default_method": "mine"}
    with pytest.raises(AimfairError, match=r"mine: the head of the Temperature .*; name it as the method's head"):
        do(directory, Config.model_validate(SETTINGS | settings))
    settings["methods"] = {"mine": kind | {"head": "clasifier"}}
    with pytest.raises(AimfairError, match=r"mine: .*module 'clasifier'; did you mean 'classifier'"):
        do(directory, Config.model_validate(SETTINGS | settings))


def test_a_stage_without_its_inputs_says_what_to_do_first(directory):
    with opened(directory) as run, pytest.raises(AimfairError, match=r"'train/100' is not finished; .*aimfair train"):
        sensitivity.run(run)
