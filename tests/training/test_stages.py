"""The stages from the biased model to the tuned one, in a run directory."""

import gc
import json
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.interrupt import Interrupted
from aimfair.config import Config
from aimfair.evaluation.predictions import load_logits
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.stages import finetune, select, sensitivity, train
from aimfair.stages.select import mask_of, sensitivity_of
from aimfair.training.checkpoint import CHECKPOINT
from aimfair.training.loop import Training
from aimfair.training.models import load_model
from tests.tiny_run import METHODS, SEEDS, SETTINGS, replace_synthetic, settings
from tests.training.samples import images, state_bits

STAGES = (train, sensitivity, select, finetune)

METHODS = {name: METHODS[name] for name in ("full", "aimfair")}


@pytest.fixture(autouse=True)
def as_in_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The photographs are decoded already, and one thread gives the same bits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    torch.set_num_threads(SETTINGS["threads"])


@pytest.fixture
def finished(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(tiny / "run", tmp_path / "run"))


@pytest.fixture
def generated(finished: Path) -> Path:
    """A run whose images have been generated, and no more."""
    shutil.rmtree(finished / "seeds")
    for stage in ("train", "sensitivity", "select", "finetune"):
        shutil.rmtree(finished / "stages" / stage)
    return finished


@pytest.fixture
def change(photographs: Path) -> Callable[..., Config]:
    """The run's settings with one seed and two methods, and with sections changed."""
    return partial(settings, photographs, **{"seeds": [7], "methods": METHODS})


def opened(path: Path, config: Config) -> Run:
    return Run.open(path, config, overwrite=True, quiet=True)


def do(path: Path, config: Config) -> list[str]:
    """Does all four stages; the steps that were not done already."""
    before = len(events(path))
    with opened(path, config) as run:
        for stage in STAGES:
            stage.run(run)
    return [event["step"] for event in events(path)[before:] if event["event"] == "step finished"]


def events(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def results(path: Path) -> dict[str, dict[str, bytes]]:
    """Model -> its weights, of the models that ``change()`` asks for."""
    folders = [path / "seeds/7/baseline", *(path / "seeds/7/finetuned" / name for name in METHODS)]
    return {folder.name: state_bits(load_model(folder)) for folder in folders}


def test_they_make_what_a_run_directory_holds(tiny):
    for seed in SEEDS:
        home = tiny / "run" / "seeds" / str(seed)
        for folder in (home / "baseline", home / "finetuned" / "full", home / "finetuned" / "aimfair"):
            files = sorted(file.name for file in folder.iterdir())
            assert files == ["config.json", "history.json", "model.safetensors"]
        baseline, tuned = load_model(home / "baseline"), load_model(home / "finetuned" / "aimfair").state_dict()
        mask = ParameterMask.load(home / "masks" / "aimfair.safetensors", baseline)
        assert mask.nnz == round(0.3 * mask.numel)
        moved = {name: tuned[name] != weight for name, weight in baseline.named_parameters()}
        assert not any((moved[name] & ~selected).any() for name, selected in mask.to_bool().items())
        assert any(changed.any() for changed in moved.values())
    first, second = (load_model(tiny / "run" / "seeds" / str(seed) / "baseline") for seed in SEEDS)
    assert state_bits(first) != state_bits(second)


def test_synthetic_images_become_squares_as_real_ones_do(generated, change, monkeypatch):
    asked = []

    def load(folder, which, size, fit, **others):
        asked.append((which, size, fit))
        return images(24, 3)

    monkeypatch.setattr("aimfair.generation.manifest.Manifest.load", load)
    do(generated, change(data={"fit": "stretch"}))
    assert set(asked) == {("biased", 32, "stretch"), ("balanced", 32, "stretch")}


def test_what_is_done_is_not_done_again(finished, change, monkeypatch):
    monkeypatch.setattr(Training, "fit", lambda _: pytest.fail("trained again"))
    monkeypatch.setattr("aimfair.generation.manifest.Manifest.load", lambda *_: pytest.fail("loaded again"))
    assert do(finished, change()) == []


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ({"methods": METHODS | {"full": {"rule": "all", "lr": 0.5}}}, {"finetune/7/full"}),
        (
            {"methods": METHODS | {"aimfair": METHODS["aimfair"] | {"density": 0.2}}},
            {"select/7/aimfair", "finetune/7/aimfair"},
        ),
        ({"finetune": {"batchnorm": "adapt"}}, {"finetune/7/full", "finetune/7/aimfair"}),
        ({"finetune": {"epochs": 2}}, {"finetune/7/full", "finetune/7/aimfair"}),
    ],
)
def test_only_what_depends_on_a_changed_setting_is_done_again(finished, change, changed, redone):
    assert set(do(finished, change(**changed))) == redone


def test_other_synthetic_images_leave_the_baseline_alone(finished, change):
    with opened(finished, change()) as run:
        replace_synthetic(run)
    assert {step.split("/")[0] for step in do(finished, change())} == {"sensitivity", "select", "finetune"}


def test_a_stopped_stage_continues_to_the_same_bits(tiny, generated, change, monkeypatch):
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
            do(generated, change())
        assert list(generated.glob(f"seeds/**/{CHECKPOINT}"))
    monkeypatch.setattr(Training, "_take_step", take)
    do(generated, change())
    assert not list(generated.glob(f"seeds/**/{CHECKPOINT}"))
    assert results(generated) == results(tiny / "run")


def test_a_checkpoint_of_other_images_is_not_taken_up(generated, change, monkeypatch):
    """Nor is one of images that have the same numbers and labels, but are those of other settings of the data."""
    take = Training._take_step

    def stop(self, indices, images):
        os.kill(os.getpid(), signal.SIGINT)
        take(self, indices, images)

    monkeypatch.setattr(Training, "_take_step", stop)
    with pytest.raises(Interrupted):
        do(generated, change())
    assert list(generated.glob(f"seeds/**/{CHECKPOINT}"))
    monkeypatch.setattr(Training, "_take_step", take)
    do(generated, change(data={"seed": 5}))
    assert "training resumed" not in [event["event"] for event in events(generated)]

    (generated / "stages" / "finetune" / "7" / "full.json").unlink()
    monkeypatch.setattr(Training, "_take_step", stop)
    with pytest.raises(Interrupted):
        do(generated, change(data={"seed": 5}))
    monkeypatch.setattr(Training, "_take_step", take)
    with opened(generated, change(data={"seed": 5})) as run:
        run.finish("generate", {"seed": 1}, [run.synthetic])
    do(generated, change(data={"seed": 5}))
    assert "training resumed" not in [event["event"] for event in events(generated)]


def test_what_is_lost_is_made_again_to_the_same_bytes(finished, change):
    """So that nothing which follows from it is done again."""
    for file in ("sensitivity.safetensors", "masks/full.safetensors"):
        (finished / "seeds" / "7" / file).unlink()
    assert do(finished, change()) == ["sensitivity/7", "select/7/full"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_stages_hold_the_model_of_one_seed_at_a_time(finished, change, monkeypatch, checkpointing):
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

    config = change(model={"checkpointing": checkpointing}, seeds=[7, 200, 300])
    with opened(finished, config) as run:
        train.run(run)
        monkeypatch.setattr(Sensitivity, "__init__", watched_new)
        gc.collect()
        gc.disable()  # it would come by itself, but not in time for certain
        try:
            for stage in (sensitivity, select):
                monkeypatch.setattr("aimfair.stages.context.load_model", watched_load)
                stage.run(run)
        finally:
            gc.enable()
    parameters = len(list(load_model(finished / "seeds" / "7" / "baseline").parameters()))
    assert len(made) == 2 * 2 * (parameters + 1), "two stages, two new seeds"


@pytest.mark.parametrize(("stage", "file"), [(select, "sensitivity.safetensors"), (finetune, "masks/full.safetensors")])
def test_a_damaged_file_is_refused_by_name(finished, change, stage, file):
    with opened(finished, change()) as run:
        path = finished / "seeds" / "7" / file
        path.write_bytes(b"\0" * path.stat().st_size)
        (finished / "stages" / stage.__name__.split(".")[-1] / "7" / "full.json").unlink()
        with pytest.raises(AimfairError, match=rf"{file}: not a usable .*; remove it and do: aimfair"):
            stage.run(run)


def test_files_that_are_missing_are_made_again_by_the_stage_that_made_them(finished, change):
    """What cannot be removed is not to be removed."""
    folder = finished / "seeds" / "7"
    with opened(finished, change()) as run:
        for read, file, stage in (
            (lambda: mask_of(run, 7, "full"), "masks/full.safetensors", f"select --run {finished}"),
            (lambda: sensitivity_of(run, 7), "sensitivity.safetensors", f"sensitivity --run {finished}"),
            (lambda: load_logits(run.logits(7, "full")), run.logits(7, "full").relative_to(folder), "evaluate"),
        ):
            (folder / file).unlink()
            with pytest.raises(AimfairError, match=rf"^{folder / file}: no such file; do: aimfair {stage}$"):
                read()
        for file in ("model.safetensors", "config.json"):
            (folder / "baseline" / file).unlink()
            with pytest.raises(AimfairError, match=rf"^{folder / 'baseline' / file}: no such file.*; train again$"):
                load_model(folder / "baseline")


@pytest.mark.parametrize("named", [None, "convolution"])
def test_heads_are_what_the_logits_come_from_or_what_a_method_names(generated, change, named):
    """Of a model whose classifier is not what its maker has set up last."""
    own = {"factory": "tests.training.test_head:HeadFirst", "config": {}}
    methods = {
        "probe": {"rule": "head_only", "head": named},
        "last_layer": {"kind": "last_layer_retrain", "head": named},
    }
    config = change(model=own, methods=methods, default_method="probe")
    do(generated, config)
    home = generated / "seeds" / "7"
    baseline = load_model(home / "baseline", config.model)
    for name in methods:
        tuned = load_model(home / "finetuned" / name, config.model).state_dict()
        moved = {key.partition(".")[0] for key, weight in baseline.state_dict().items() if (tuned[key] != weight).any()}
        assert moved == {named or "classifier"}, name


@pytest.mark.parametrize("kind", [{"rule": "head_only"}, {"kind": "last_layer_retrain"}])
def test_a_method_whose_head_cannot_be_determined_is_refused_by_name(generated, change, kind):
    own = {"factory": "tests.training.test_head:Temperature", "config": {}}
    with pytest.raises(AimfairError, match=r"mine: the head of the Temperature .*; name it as the method's head"):
        do(generated, change(model=own, methods={"mine": kind}, default_method="mine"))
    kind = kind | {"head": "clasifier"}
    with pytest.raises(AimfairError, match=r"mine: .*module 'clasifier'; did you mean 'classifier'"):
        do(generated, change(model=own, methods={"mine": kind}, default_method="mine"))


def test_a_stage_without_its_inputs_says_what_to_do_first(generated, change):
    with (
        opened(generated, change()) as run,
        pytest.raises(AimfairError, match=r"'train/7' is not finished; .*aimfair train"),
    ):
        sensitivity.run(run)
