"""Tries settings of each method, and chooses by held-out synthetic images and by real ones without group labels."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import nn

from aimfair.base.errors import AimfairError, DivergedError
from aimfair.base.log import NOWHERE
from aimfair.base.progress import Task
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation.metrics import Counts, count_predictions, worst_group_accuracy
from aimfair.generation.manifest import Manifest
from aimfair.methods import MethodSettings, Tune
from aimfair.methods.tune import NothingSelectedError, select_mask
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.stages import sensitivity
from aimfair.stages.context import splits_of
from aimfair.stages.finetune import inputs_of_training, work_of
from aimfair.training.head import head_names
from aimfair.training.history import Epoch
from aimfair.training.models import load_model
from aimfair.training.predict import predict
from aimfair.training.sensitivity import SOURCES
from aimfair.tuning import choice
from aimfair.tuning.holdout import hold_out, validation_halves
from aimfair.tuning.sampler import propose, require_optuna
from aimfair.tuning.space import with_values
from aimfair.tuning.trials import Audit, Choice, OfSeed, Step, Stopped, Trial

_WORST = "held_out_worst_group_accuracy"
_ACCURACY = "judging_accuracy"


def run(run: Run) -> None:
    config = run.config
    if not config.tuned:
        return
    images = _Images(run)
    if any(isinstance(config.methods[name], Tune) for name in config.tuned):
        _measure_sensitivity(run, images)
    todo = [name for name in config.tuned if not run.is_done(f"tune/chosen/{name}", _inputs_of_choice(run, name))]
    if todo:
        require_optuna()
    with run.progress.task("tune", len(todo) * config.tune.trials) as task:
        for name in todo:
            trials = _trials(run, images, name, task)
            chosen = choice.choose(trials, config.tune.tolerance)
            if chosen is None:
                raise AimfairError(
                    f"tune: none of {len(trials)} trials of methods.{name} finished, the first: {trials[0].reason}"
                )
            Choice(trial=chosen.number, values=chosen.values).save(run.chosen(name))
            run.log("chosen", method=name, trial=chosen.number, **chosen.values)
            outputs = [run.chosen(name), *(run.trial(name, trial.number) for trial in trials)]
            run.finish(f"tune/chosen/{name}", _inputs_of_choice(run, name), outputs)


def _seeds(run: Run) -> list[int]:
    return run.config.seeds[: run.config.tune.seeds]


def _upstream(run: Run, name: str) -> list[str]:
    steps = ["generate", *(f"train/{seed}" for seed in _seeds(run))]
    if isinstance(run.config.methods[name], Tune):
        steps += [f"tune/sensitivity/{seed}" for seed in _seeds(run)]
    return [run.digest_of(step) for step in steps]


def _inputs_of_choice(run: Run, name: str) -> dict[str, object]:
    config, method = run.config, run.config.methods[name]
    return {
        "training": inputs_of_training(run, method),
        "method": method,
        "tune": config.tune.model_dump(exclude={"methods", "fixed"}),
        "space": repr(config.space(name)),
        "seeds": _seeds(run),
        "upstream": _upstream(run, name),
    }


# -- images and gradients ----------------------------------------------------------------------------------------------


class _Images:
    """What trains and judges trials, loaded when it is first read."""

    def __init__(self, run: Run):
        self._run = run

    @cached_property
    def _parts(self) -> tuple[ImageSet, ImageSet, ImageSet]:
        run, data = self._run, self._run.config.data
        manifest = Manifest(run.synthetic)
        held = hold_out(list(manifest.records.values()), run.config.tune.held_out)
        balanced, biased = (
            manifest.load(which, data.image_size, data.fit, log=run.log, progress=run.progress, interrupt=run.interrupt)
            for which in ("balanced", "biased")
        )
        return held.training_part(balanced), held.judging_part(balanced), held.training_part(biased)

    @property
    def train(self) -> ImageSet:
        """Balanced synthetic images that train."""
        return self._parts[0]

    @property
    def judge(self) -> ImageSet:
        """Those that judge."""
        return self._parts[1]

    @property
    def sources(self) -> dict[str, ImageSet]:
        """Of sensitivity, without those that judge."""
        return dict(zip(SOURCES, (splits_of(self._run).train, self._parts[2], self.train), strict=True))

    def splits(self, method: MethodSettings) -> tuple[Splits, ImageSet]:
        """The real images for a method, and those that judge it: the validation images, or if they train it, the half
        of them that does not."""
        splits = splits_of(self._run)
        if not method.trains_on_validation:
            return splits, splits.validation
        train, judge = validation_halves(splits.validation)
        return replace(splits, validation=train), judge


def _measure_sensitivity(run: Run, images: _Images) -> None:
    for seed in _seeds(run):
        step = f"tune/sensitivity/{seed}"
        inputs = {**sensitivity.inputs_of(run, seed), "held_out": run.config.tune.held_out}
        if not run.is_done(step, inputs):
            sensitivity.measure(run, seed, images.sources, run.tuning_sensitivity(seed), f"tune: sensitivity {seed}")
            run.finish(step, inputs, [run.tuning_sensitivity(seed)])


# -- trials ------------------------------------------------------------------------------------------------------------


class _PrunedError(Exception):
    """Stops a training that is weak."""

    def __init__(self, training: Stopped, reason: str):
        super().__init__(reason)
        self.training = training


def _trials(run: Run, images: _Images, name: str, task: Task) -> list[Trial]:
    """All trials of a method, those that are missing done now."""
    config, trials = run.config, list[Trial]()
    given = config.methods[name].training_settings(config.train, config.finetune).model_dump()
    given |= config.methods[name].model_dump(exclude_none=True)
    for number in range(config.tune.trials):
        values = propose(config.space(name), given, trials, config.seeds[0], name, number) if number else {}
        method = with_values(config.methods[name], values)
        step, path = f"tune/trials/{name}/{number}", run.trial(name, number)
        inputs = {
            "training": inputs_of_training(run, method),
            "selection": method.selection if isinstance(method, Tune) else None,
            "tune": config.tune.model_dump(include={"held_out", "prune", "audit"}),
            "seeds": _seeds(run),
            "earlier": run.digest_of(f"tune/trials/{name}/{number - 1}") if number else None,
            "upstream": _upstream(run, name),
        }
        if run.is_done(step, inputs):
            trials.append(Trial.load(path))
        else:
            trials.append(_try(run, images, name, method, values, trials, digest_of_inputs(inputs)))
            trials[-1].save(path)
            run.log("trial", method=name, number=number, state=trials[-1].state, **values)
            run.finish(step, inputs, [path])
            shutil.rmtree(run.tuning_work, ignore_errors=True)
        task.advance(note=f"{name} {number + 1} of {config.tune.trials}")
        run.interrupt.check()
    return trials


def _try(
    run: Run,
    images: _Images,
    name: str,
    method: MethodSettings,
    values: dict[str, object],
    earlier: Sequence[Trial],
    inputs: str,
) -> Trial:
    seeds: list[OfSeed] = []
    number = len(earlier)
    try:
        for index, seed in enumerate(_seeds(run)):
            others = [training for one in earlier if (training := one.training(index)) is not None]
            seeds.append(_train(run, images, name, method, seed, others, inputs))
        return Trial(number=number, values=values, state="complete", seeds=seeds)
    except _PrunedError as stop:
        return Trial(number=number, values=values, state="pruned", reason=str(stop), seeds=seeds, stopped=stop.training)
    except (DivergedError, NothingSelectedError) as error:
        return Trial(number=number, values=values, state="failed", reason=str(error))


def _train(
    run: Run,
    images: _Images,
    name: str,
    method: MethodSettings,
    seed: int,
    others: Sequence[Stopped],
    inputs: str,
) -> OfSeed:
    splits, judging = images.splits(method)
    classes, values = splits.shape

    def counts(model: nn.Module, of: ImageSet) -> Counts:
        """[A, Y, K]"""
        config, device = run.config, next(model.parameters()).device
        scores = predict(
            model, of, config.model, batch_size=config.evaluate.batch_size, device=device, interrupt=run.interrupt
        )
        return count_predictions(of.target, of.protected, scores.argmax(axis=1), classes, values)

    def monitor(model: nn.Module, epochs: list[Epoch]) -> None:
        epoch, of = epochs[-1], work.settings.epochs
        epoch.measured[_WORST] = float(worst_group_accuracy(counts(model, images.judge)))
        epoch.measured[_ACCURACY] = epoch.validation_accuracy
        if method.trains_on_validation:
            epoch.measured[_ACCURACY] = _accuracy(counts(model, judging))
        so_far = Stopped(curve=[_step(one) for one in epochs], epochs=of)
        if run.config.tune.prune and choice.is_weak(so_far, others):
            raise _PrunedError(so_far, f"after epoch {epoch.epoch} of {of} with seed {seed}")

    work = work_of(
        run,
        seed,
        method,
        name=f"tune {name}, seed {seed}",
        folder=run.tuning_work / str(seed),
        balanced=lambda: images.train,
        mask=partial(_mask, run, seed, name, method),
        inputs=inputs,
        log=NOWHERE,
        monitor=monitor,
    )
    model, history = method.run(replace(work, splits=lambda: splits))
    audit = None
    if run.config.tune.audit:
        audit = Audit(validation=counts(model, judging).tolist(), test=counts(model, splits.test).tolist())
    return OfSeed(
        synthetic=counts(model, images.judge).tolist(),
        accuracy=_accuracy(counts(model, judging)),
        change=_distance(model, load_model(run.baseline(seed), run.config.model)),
        curve=[_step(epoch) for epoch in history.epochs],
        audit=audit,
    )


def _step(epoch: Epoch) -> Step:
    return Step(worst=epoch.measured[_WORST], accuracy=epoch.measured[_ACCURACY])


def _accuracy(counts: Counts) -> float:
    return float(np.einsum("ayy->", counts) / counts.sum())


def _mask(run: Run, seed: int, name: str, method: MethodSettings, model: nn.Module) -> ParameterMask:
    assert isinstance(method, Tune)
    head = partial(head_names, model, run.config.data.image_size, f"methods.{name}")
    probe = Sensitivity.load(run.tuning_sensitivity(seed), model)
    return select_mask(probe, name, method, seed, head=head)


def _distance(model: nn.Module, start: nn.Module) -> float:
    """L2 norm of the difference of the weights, over that of the weights of ``start``."""
    squares = torch.zeros(2, dtype=torch.float64)
    for old, new in zip(start.parameters(), model.parameters(), strict=True):
        before, after = old.detach().double().cpu(), new.detach().double().cpu()
        squares += torch.stack([(after - before).square().sum(), before.square().sum()])
    return float((squares[0] / squares[1]).sqrt())
