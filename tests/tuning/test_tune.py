"""Tuning in a run: trials, their choice, what follows it, and continuing after a stop."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError, DivergedError
from aimfair.base.interrupt import Interrupted
from aimfair.config import Config
from aimfair.export.write import export_run
from aimfair.methods import LastLayerRetrain, Tune
from aimfair.report.tuning_section import Tuning, tuning_section
from aimfair.run.directory import Run
from aimfair.stages import evaluate, finetune, preflight, report, select, sensitivity, train, tune
from aimfair.training.history import History
from aimfair.training.loop import Training
from aimfair.tuning import choice, sampler
from aimfair.tuning.space import with_values
from aimfair.tuning.trials import Choice, Stopped, Trial
from tests.run.test_steps import everything_before, read_by
from tests.tiny_run import METHODS, SEEDS, SETTINGS, settings

TRIALS = 3
TUNED = ("full", "aimfair")


@pytest.fixture(autouse=True)
def as_in_the_run(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The photographs are decoded already, and one thread gives the same bits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
    torch.set_num_threads(SETTINGS["threads"])


def config(photographs: Path, names: tuple[str, ...] = TUNED, **changes: Any) -> Config:
    return settings(
        photographs,
        methods={name: METHODS[name] for name in names},
        default_method=names[0],
        tune={"trials": TRIALS, **changes},
    )


@pytest.fixture(scope="module")
def tuned(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two methods were tuned."""
    path = Path(shutil.copytree(tiny / "run", tmp_path_factory.mktemp("tuned") / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tiny / "cache"))
        torch.set_num_threads(SETTINGS["threads"])
        with Run.open(path, config(tiny / "photographs"), overwrite=True, quiet=True) as run:
            tune.run(run)
    return path


@pytest.fixture
def fresh(tiny: Path, tmp_path: Path) -> Path:
    """A finished run in which nothing was tuned."""
    return Path(shutil.copytree(tiny / "run", tmp_path / "run"))


def trials(run: Run, name: str, count: int = TRIALS) -> list[Trial]:
    return [Trial.load(run.trial(name, number)) for number in range(count)]


def records(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted((path / "tuning").rglob("*.json"))}


def test_each_method_has_as_many_trials_and_a_choice(tuned: Path, photographs: Path) -> None:
    with Run.open(tuned, config(photographs), quiet=True) as run:
        for name in TUNED:
            tried, chosen = trials(run, name), Choice.load(run.chosen(name))
            assert tried[0].values == {}  # the first is the method as it was given
            assert tried[chosen.trial].values == chosen.values
            assert all(set(one.values) >= {"lr", "epochs"} for one in tried[1:])
        assert not any("density" in one.values for one in trials(run, "full"))
        assert all({"density", "rule", "criterion"} <= set(one.values) for one in trials(run, "aimfair")[1:])
        assert not run.tuning_work.exists()


def test_the_chosen_settings_are_those_of_the_runs(tuned: Path, photographs: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tuned, tmp_path / "run")
    with Run.open(path, config(photographs), quiet=True) as run:
        for name in TUNED:  # whichever was chosen before: one that differs from what is given
            values = trials(run, name)[1].values
            Choice(trial=1, values=values).save(run.chosen(name))
            record = json.loads((path / "stages/tune/chosen" / f"{name}.json").read_text())
            record["outputs"] = {}
            (path / "stages/tune/chosen" / f"{name}.json").write_text(json.dumps(record))
        chosen = run.tuned_config().methods
        select.run(run)
        finetune.run(run)
        for seed in SEEDS:
            for name in TUNED:
                history = History.load(run.finetuned(seed, name))
                assert history is not None
                assert len(history.epochs) == chosen[name].epochs == trials(run, name)[1].values["epochs"]
                assert history.epochs[0].lr == chosen[name].lr
            assert select.mask_of(run, seed, "aimfair").density == pytest.approx(chosen["aimfair"].density, abs=0.02)


def test_it_is_done_once(tuned: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "fit", None)
    monkeypatch.setattr(sampler, "optional", None)  # not even the sampler is asked
    before = records(tuned)
    with Run.open(tuned, config(photographs), quiet=True) as run:
        tune.run(run)
    assert records(tuned) == before


def test_another_tolerance_repeats_no_trial(
    tuned: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    monkeypatch.setattr(Training, "fit", None)
    with Run.open(path, config(photographs, tolerance=1.0), overwrite=True, quiet=True) as run:
        tune.run(run)
        tried = trials(run, "full")
        best = max(tried, key=lambda one: (one.accuracy, -one.change))
        assert Choice.load(run.chosen("full")).trial == best.number


def test_a_stopped_tuning_ends_as_one_that_was_not(
    tuned: Path, fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped again and again, within trainings and between trials."""
    made = config(photographs).model_copy(update={"checkpoint_seconds": 0.0})
    for stops in range(100):  # noqa: B007
        with Run.open(fresh, made, overwrite=True, quiet=True) as run:
            checks = count()

            def check(checks: Iterator[int] = checks) -> None:
                if next(checks) == 35:
                    raise Interrupted(signal.SIGINT)

            monkeypatch.setattr(run.interrupt, "check", check)
            try:
                tune.run(run)
                break
            except Interrupted:
                pass
    assert 2 <= stops < 99
    assert records(fresh) == records(tuned)


def test_a_choice_that_is_out_of_date_is_not_used(tuned: Path, photographs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    shutil.rmtree(path / "stages/tune/chosen")
    with (
        Run.open(path, config(photographs), quiet=True) as run,
        pytest.raises(AimfairError, match=r"step 'tune/chosen/full' is not finished; do it first: aimfair tune"),
    ):
        select.run(run)


def test_no_label_of_a_real_group_is_read_by_the_choice(tuned: Path, photographs: Path) -> None:
    """The choice without the audit is that with it."""
    from aimfair.tuning.choice import choose

    with Run.open(tuned, config(photographs), quiet=True) as run:
        for name in TUNED:
            tried = trials(run, name)
            blind = [
                one.model_copy(update={"seeds": [of.model_copy(update={"audit": None}) for of in one.seeds]})
                for one in tried
            ]
            assert choose(blind, None) is blind[choose(tried, None).number]  # type: ignore[union-attr]


def test_a_trial_that_diverges_fails_and_the_others_go_on(
    fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Training.fit

    def diverging(self: Training) -> History:
        if self.settings.epochs != SETTINGS["finetune"]["epochs"] or self.settings.lr != SETTINGS["finetune"]["lr"]:
            raise DivergedError(f"{self.name}: the training diverges; choose a lower lr")
        return fit(self)

    monkeypatch.setattr(Training, "fit", diverging)
    with Run.open(fresh, config(photographs, names=("full",)), overwrite=True, quiet=True) as run:
        tune.run(run)
        assert [one.state for one in trials(run, "full")] == ["complete", "failed", "failed"]
        assert Choice.load(run.chosen("full")).trial == 0


def test_methods_of_every_kind_are_tuned(fresh: Path, photographs: Path) -> None:
    names = ("both", "dro", "jtt", "last_layer")
    made = config(photographs, names=names, audit=False, trials=2).model_copy(update={"seeds": [SEEDS[0]]})
    with Run.open(fresh, made, overwrite=True, quiet=True) as run:
        tune.run(run)
        for name in names:
            assert all(one.state == "complete" for one in trials(run, name, 2))
            assert trials(run, name, 2)[0].seeds[0].audit is None


def test_validation_images_that_train_do_not_judge(fresh: Path, photographs: Path) -> None:
    with Run.open(fresh, config(photographs, names=("last_layer",)), overwrite=True, quiet=True) as run:
        images = tune._Images(run)
        method = run.config.methods["last_layer"]
        assert isinstance(method, LastLayerRetrain)
        splits, judging = images.splits(method)
        assert not set(splits.validation.ids) & set(judging.ids)
        assert len(splits.validation) + len(judging) == 24


def test_without_optuna_it_says_what_to_install(
    fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with (
        Run.open(fresh, config(photographs), overwrite=True, quiet=True) as run,
        pytest.raises(AimfairError, match=r"optuna is not installed; tune needs: pip install 'aimfair\[tune\]'"),
    ):
        tune.run(run)


def test_judging_images_share_no_prompt_with_training_ones(tuned: Path, photographs: Path) -> None:
    from aimfair.generation.manifest import Manifest
    from aimfair.tuning.holdout import hold_out

    with Run.open(tuned, config(photographs), quiet=True) as run:
        held = hold_out(list(Manifest(run.synthetic).records.values()), 0.2)
        by_file = {one.file: one for one in Manifest(run.synthetic).records.values()}
        assert held.train
        assert held.judge
        prompts = [{by_file[file].prompt for file in part} for part in (held.train, held.judge)]
        assert not prompts[0] & prompts[1]
        counts = np.zeros((2, 2), dtype=int)
        for file in held.judge:
            counts[by_file[file].group] += 1
        assert (counts == 2).all()  # 0.2 of 6 images of one prompt each: the first number of whole prompts above


def test_the_report_has_the_front_the_choice_and_the_regret(tuned: Path, photographs: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    with Run.open(path, config(photographs), quiet=True) as run:
        for stage in (select, finetune, evaluate, report):
            stage.run(run)
        page = run.report.read_text()
    section = page[page.index('<section id="tuning">') :]
    section = section[: section.index("</section>")]
    assert section.count('<div class="scatter"') == len(TUNED)
    assert section.count("<li>chosen") == len(TUNED)
    assert "Regret" in section
    assert "3 trials of each method, with 1 seed." in section
    assert '<a href="#tuning">' in page


def test_models_of_settings_that_were_chosen_before_are_not_reported(
    tuned: Path, photographs: Path, tmp_path: Path
) -> None:
    """Nor evaluated nor exported: another trial is chosen after the run ended, of which only the mask differs."""
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    made = config(photographs, names=("aimfair",))
    with Run.open(path, made, overwrite=True, quiet=True) as run:
        for stage in (tune, select, finetune, evaluate, report):
            stage.run(run)
        before = with_values(run.config.methods["aimfair"], Choice.load(run.chosen("aimfair")).values)
        assert isinstance(before, Tune)
        values = {"lr": before.lr, "epochs": before.epochs, "density": 0.77}
        Choice(trial=1, values={key: value for key, value in values.items() if value}).save(run.chosen("aimfair"))
        record = json.loads((path / "stages/tune/chosen/aimfair.json").read_text())
        record["outputs"] = {}
        (path / "stages/tune/chosen/aimfair.json").write_text(json.dumps(record))
        said = rf"step 'select/{SEEDS[0]}/aimfair' is out of date: settings that it reads have changed; do it first"
        for late in (evaluate.run, report.run, export_run):
            with pytest.raises(AimfairError, match=said):
                late(run)
        select.run(run)
        with pytest.raises(AimfairError, match=rf"step 'finetune/{SEEDS[0]}/aimfair' is out of date"):
            evaluate.run(run)


def test_the_report_names_methods_that_bias_helps_to_be_chosen(tuned: Path, photographs: Path) -> None:
    with Run.open(tuned, config(photographs), quiet=True) as run:
        made = Tuning(trials(run, "full"), 0)
    names = ("full", "both", "synthetic", "last_layer")
    given = config(photographs, names=names)
    mixed = given.methods["full"].model_copy(update={"real_share": 0.3})
    given = given.model_copy(update={"methods": {**given.methods, "mixed": mixed}})
    section = tuning_section(dict.fromkeys((*names, "mixed"), made), given)
    assert section is not None
    assert section["misled"] == "both and mixed"


def test_an_ablation_varies_the_chosen_settings_and_tunes_nothing(tuned: Path, photographs: Path) -> None:
    from aimfair.ablation.run import _as_tuned

    with Run.open(tuned, config(photographs), quiet=True) as run:
        chosen = run.tuned_config().methods
        made = _as_tuned(run, run.config)
        assert (dict(made.methods), made.tuned) == (chosen, [])
        flag = run.config.methods["full"].model_copy(update={"lr": 0.5})
        changed = run.config.model_copy(update={"methods": {**run.config.methods, "full": flag}})
        assert _as_tuned(run, changed).methods["full"].lr == 0.5


def test_the_trials_of_a_batch_do_not_know_of_each_other(
    tuned: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    known = []

    def noting(space: Any, given: Any, earlier: list[Trial], *purpose: Any) -> dict[str, Any]:
        known.append([one.number for one in earlier])
        return {}

    monkeypatch.setattr(tune, "propose", noting)
    (path / "stages/tune/chosen/full.json").unlink()
    with Run.open(path, config(photographs, batch=2), overwrite=True, quiet=True) as run:
        steps = {step.name: step for step in tune.steps(run) if "full" in step.name}
        left = [steps[f"tune/trials/full/{number}"].assign() for number in (2, 1, 0)]
    assert known == [[0, 1], []], "the first takes the settings as given"
    assert [one is None for one in left] == [False, False, True], "the first was tried before, without batches"
    assert [set(steps[f"tune/trials/full/{number}"].needs) & set(steps) for number in range(3)] == [
        set(),
        set(),
        {"tune/trials/full/0", "tune/trials/full/1"},
    ]
    assert "tune/trials/full/2" in steps["tune/chosen/full"].needs


def test_a_step_of_tuning_needs_the_steps_whose_results_it_reads(
    tuned: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tuned, tmp_path / "run"))
    with Run.open(path, config(photographs), quiet=True) as run:
        steps = [step for stage in (train, sensitivity, tune, select, finetune) for step in stage.steps(run)]
        for step in steps:
            read = read_by(step, monkeypatch)
            before = everything_before(step, steps)
            if step.name.startswith(("select", "finetune")):
                break  # what was tuned is not selected yet
            assert read <= before, step.name
        needed = {step.name: step.needs for step in steps}
        for seed in SEEDS:
            assert "tune/chosen/aimfair" in needed[f"select/{seed}"]
            assert "tune/chosen/full" in needed[f"finetune/{seed}/full"]


def test_a_weak_trial_is_pruned(fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials after the first four, as soon as they may."""

    def weak(now: Stopped, earlier: Any) -> bool:
        return len(earlier) >= 2

    monkeypatch.setattr(choice, "is_weak", weak)
    with Run.open(fresh, config(photographs, names=("full",)), overwrite=True, quiet=True) as run:
        tune.run(run)
        assert [one.state for one in trials(run, "full")] == ["complete", "complete", "pruned"]
        last = trials(run, "full")[2]
        assert last.reason is not None
        assert last.reason.startswith("after epoch 1 of ")
        assert last.stopped is not None
        assert len(last.stopped.curve) == 1
        assert Choice.load(run.chosen("full")).trial < 2


def test_optuna_is_asked_for_before_anything_is_made(
    fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with (
        Run.open(fresh, config(photographs), overwrite=True, quiet=True) as run,
        pytest.raises(AimfairError, match="optuna is not installed"),
    ):
        preflight.check(run, real_images=True)


def test_every_rule_that_may_be_tried_is_rehearsed(
    fresh: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    select_mask = preflight.select_mask

    def noting(probe: Any, name: str, method: Any, seed: int, **more: Any) -> Any:
        seen.append((name, method.rule, method.criterion))
        return select_mask(probe, name, method, seed, **more)

    monkeypatch.setattr(preflight, "select_mask", noting)
    made = config(photographs, rules=["ratio", "top_k"])
    with Run.open(fresh, made, overwrite=True, quiet=True) as run:
        preflight.check(run, real_images=True)
        assert {("aimfair", *pair) for pair in made.space("aimfair").rules} <= set(seen)


_CHILD = """
import sys
from pathlib import Path
from aimfair.run.directory import Run
from aimfair.stages import tune
from aimfair.commands.settings import read_settings
config, directory = read_settings(None, Path(sys.argv[1]), {})
print("ready", flush=True)
with Run.open(directory, config, quiet=True) as run:
    tune.run(run)
"""


@pytest.mark.slow
def test_a_killed_tuning_ends_as_one_that_was_not(tuned: Path, fresh: Path, photographs: Path, tiny: Path) -> None:
    """kill -9 at ever later times, then a process that comes to its end."""
    made = config(photographs).model_copy(update={"checkpoint_seconds": 0.0})
    Run.open(fresh, made, overwrite=True, quiet=True).close()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tiny / "cache"), "OMP_NUM_THREADS": "1"}
    for seconds in (0.5, 1, 2, 3, 4, None):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(fresh)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        try:
            assert child.wait(timeout=seconds) == 0
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        finally:
            child.stdout.close()
    assert records(fresh) == records(tuned)
