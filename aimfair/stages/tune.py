"""Tries settings of each method, and chooses by held-out synthetic images and by real ones without group labels."""

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn

from aimfair.base.errors import AimfairError, DivergedError
from aimfair.base.log import NOWHERE
from aimfair.data.images import ImageSet, Splits
from aimfair.evaluation.metrics import Counts, count_predictions, worst_group_accuracy
from aimfair.generation.manifest import Manifest
from aimfair.methods import MethodSettings, Tune
from aimfair.methods.tune import NothingSelectedError, select_mask
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.run.steps import Assignment, Outputs, Step, in_one_task
from aimfair.selective.distributed import local
from aimfair.selective.mask import ParameterMask
from aimfair.selective.sensitivity import Sensitivity
from aimfair.selective.whole_statistics import load_shards
from aimfair.stages import sensitivity
from aimfair.stages.context import processes_of, splits_of, synthetic_of, trained_model
from aimfair.stages.finetune import inputs_of_training, work_of
from aimfair.training.head import head_names
from aimfair.training.history import Epoch
from aimfair.training.predict import predict
from aimfair.training.sensitivity import SOURCES
from aimfair.tuning import choice
from aimfair.tuning.holdout import hold_out, validation_halves
from aimfair.tuning.sampler import propose, require_optuna
from aimfair.tuning.space import with_values
from aimfair.tuning.trials import Audit, Choice, OfSeed, Point, Stopped, Trial

_WORST = "held_out_worst_group_accuracy"
_ACCURACY = "judging_accuracy"


def run(run: Run) -> None:
    if run.config.tuned:
        in_one_task(run, "tune", steps(run))


def steps(run: Run) -> list[Step]:
    """The trials of a batch need those of the batches before it, the choice all of them."""
    tune = run.config.tune
    images = ["generate", *(f"train/{seed}" for seed in _seeds(run))]
    gradients = [f"tune/sensitivity/{seed}" for seed in _seeds(run)]
    found = []
    if any(isinstance(run.config.methods[name], Tune) for name in run.config.tuned):
        for seed, step in zip(_seeds(run), gradients, strict=True):
            found.append(Step(step, ("generate", f"train/{seed}"), partial(_assign_sensitivity, run, seed)))
    for name in run.config.tuned:
        upstream = [*images, *gradients] if isinstance(run.config.methods[name], Tune) else images
        trials = [f"tune/trials/{name}/{number}" for number in range(tune.trials)]
        for number, trial in enumerate(trials):
            earlier = trials[: _batch_start(run, number)]
            found.append(Step(trial, (*upstream, *earlier), partial(_assign_trial, run, name, number)))
        found.append(Step(f"tune/chosen/{name}", (*upstream, *trials), partial(_assign_choice, run, name), local=True))
    return found


def _seeds(run: Run) -> list[int]:
    return run.config.seeds[: run.config.tune.seeds]


def _upstream(run: Run, name: str) -> list[str]:
    steps = ["generate", *(f"train/{seed}" for seed in _seeds(run))]
    if isinstance(run.config.methods[name], Tune):
        steps += [f"tune/sensitivity/{seed}" for seed in _seeds(run)]
    return [run.digest_of(step) for step in steps]


def _inputs_of_choice(run: Run, name: str) -> dict[str, object]:
    config, method = run.config, run.config.methods[name]
    unread = {"methods", "fixed", *(["batch"] if config.tune.batch == 1 else [])}  # which older versions did not have
    return {
        "training": inputs_of_training(run, method),
        "method": method,
        "tune": config.tune.model_dump(exclude=unread),
        "space": repr(config.space(name)),
        "seeds": _seeds(run),
        "upstream": _upstream(run, name),
    }


def _is_chosen(run: Run, name: str) -> bool:
    return run.is_done(f"tune/chosen/{name}", _inputs_of_choice(run, name))


def _assign_choice(run: Run, name: str) -> Assignment | None:
    if _is_chosen(run, name):
        return None
    return Assignment({f"tune/chosen/{name}": _inputs_of_choice(run, name)}, partial(_choose, name=name))


def _choose(run: Run, *, name: str) -> Outputs:
    trials = [Trial.load(run.trial(name, number)) for number in range(run.config.tune.trials)]
    chosen = choice.choose(trials, run.config.tune.tolerance)
    if chosen is None:
        raise AimfairError(
            f"tune: none of {len(trials)} trials of methods.{name} finished, the first: {trials[0].reason}"
        )
    if run.ranks.leads:
        Choice(trial=chosen.number, values=chosen.values).save(run.chosen(name))
        shutil.rmtree(run.tuning_work / name, ignore_errors=True)
        with suppress(OSError):  # other methods have trials there
            run.tuning_work.rmdir()
    run.log("chosen", method=name, trial=chosen.number, **chosen.values)
    return {f"tune/chosen/{name}": [run.chosen(name), *(run.trial(name, trial.number) for trial in trials)]}


# -- images and gradients ----------------------------------------------------------------------------------------------


_LOADED: WeakKeyDictionary[Run, "_Images"] = WeakKeyDictionary()


class _Images:
    """What trains and judges trials, loaded when it is first read."""

    def __init__(self, run: Run):
        held = hold_out(list(Manifest(run.synthetic).records.values()), run.config.tune.held_out)
        self._splits = splits_of(run)
        balanced, biased = synthetic_of(run, "balanced"), synthetic_of(run, "biased")
        self._parts = held.training_part(balanced), held.judging_part(balanced), held.training_part(biased)

    @classmethod
    def of(cls, run: Run) -> Self:
        if run not in _LOADED:
            _LOADED[run] = cls(run)
        return cast(Self, _LOADED[run])

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
        return dict(zip(SOURCES, (self._splits.train, self._parts[2], self.train), strict=True))

    def splits(self, method: MethodSettings) -> tuple[Splits, ImageSet]:
        """The real images for a method, and those that judge it: the validation images, or if they train it, the half
        of them that does not."""
        splits = self._splits
        if not method.trains_on_validation:
            return splits, splits.validation
        train, judge = validation_halves(splits.validation)
        return replace(splits, validation=train), judge


def _assign_sensitivity(run: Run, seed: int) -> Assignment | None:
    step = f"tune/sensitivity/{seed}"
    inputs = {**sensitivity.inputs_of(run, seed), "held_out": run.config.tune.held_out}
    return None if run.is_done(step, inputs) else Assignment({step: inputs}, partial(_measure, seed=seed))


def _measure(run: Run, *, seed: int) -> Outputs:
    path = run.tuning_sensitivity(seed)
    sensitivity.measure(run, seed, _Images.of(run).sources, path, f"tune: sensitivity {seed}")
    return {f"tune/sensitivity/{seed}": [path]}


# -- trials ------------------------------------------------------------------------------------------------------------


class _PrunedError(Exception):
    """Stops a training that is weak."""

    def __init__(self, training: Stopped, reason: str):
        super().__init__(reason)
        self.training = training


def _batch_start(run: Run, number: int) -> int:
    """The first trial of the batch of this one, which is also how many trials it knows of."""
    return number - number % run.config.tune.batch


def _assign_trial(run: Run, name: str, number: int) -> Assignment | None:
    if _is_chosen(run, name):
        return None
    require_optuna()
    config, known = run.config, _batch_start(run, number)
    given = config.methods[name].training_settings(config.train, config.finetune).model_dump()
    given |= config.methods[name].model_dump(exclude_none=True)
    earlier = [Trial.load(run.trial(name, one)) for one in range(known)]
    values = propose(config.space(name), given, earlier, config.seeds[0], name, number) if number else {}
    method = with_values(config.methods[name], values)
    before = range(known - config.tune.batch, known) if known else ()
    last = [run.digest_of(f"tune/trials/{name}/{one}") for one in before]
    step = f"tune/trials/{name}/{number}"
    inputs = {
        "training": inputs_of_training(run, method),
        "selection": method.selection if isinstance(method, Tune) else None,
        "tune": config.tune.model_dump(include={"held_out", "prune", "audit"}),
        "seeds": _seeds(run),
        "earlier": last if len(last) > 1 else next(iter(last), None),
        "upstream": _upstream(run, name),
    }
    if run.is_done(step, inputs):
        return None
    make = partial(
        _try,
        name=name,
        number=number,
        values=values,
        method=method,
        earlier=earlier,
        inputs=digest_of_inputs(inputs),
    )
    return Assignment({step: inputs}, make)


def _try(
    run: Run,
    *,
    name: str,
    number: int,
    values: dict[str, object],
    method: MethodSettings,
    earlier: Sequence[Trial],
    inputs: str,
) -> Outputs:
    folder, path = run.tuning_work / name / str(number), run.trial(name, number)
    seeds: list[OfSeed] = []
    try:
        for index, seed in enumerate(_seeds(run)):
            others = [training for one in earlier if (training := one.training(index)) is not None]
            seeds.append(_train(run, folder / str(seed), name, method, seed, others, inputs))
        trial = Trial(number=number, values=values, state="complete", seeds=seeds)
    except _PrunedError as stop:
        trial = Trial(
            number=number, values=values, state="pruned", reason=str(stop), seeds=seeds, stopped=stop.training
        )
    except (DivergedError, NothingSelectedError) as error:
        trial = Trial(number=number, values=values, state="failed", reason=str(error))
    if run.ranks.leads:
        trial.save(path)
        shutil.rmtree(folder, ignore_errors=True)
    run.log("trial", method=name, number=number, state=trial.state, **values)
    return {f"tune/trials/{name}/{number}": [path]}


def _train(
    run: Run, folder: Path, name: str, method: MethodSettings, seed: int, others: Sequence[Stopped], inputs: str
) -> OfSeed:
    images = _Images.of(run)
    splits, judging = images.splits(method)
    classes, values = splits.shape

    def counts(model: nn.Module, of: ImageSet) -> Counts:
        """[A, Y, K]"""
        config, device = run.config, next(model.parameters()).device
        scores = predict(
            model, of, config.model, batch_size=config.evaluate.batch_size, device=device, ranks=run.ranks,
            interrupt=run.interrupt,
        )  # fmt: skip
        return count_predictions(of.target, of.protected, scores.argmax(axis=1), classes, values)

    def monitor(model: nn.Module, epochs: list[Epoch]) -> None:
        epoch, of = epochs[-1], work.settings.epochs
        epoch.measured[_WORST] = float(worst_group_accuracy(counts(model, images.judge)))
        epoch.measured[_ACCURACY] = epoch.validation_accuracy
        if method.trains_on_validation:
            epoch.measured[_ACCURACY] = _accuracy(counts(model, judging))
        so_far = Stopped(curve=[_point(one) for one in epochs], epochs=of)
        if run.config.tune.prune and choice.is_weak(so_far, others):
            raise _PrunedError(so_far, f"after epoch {epoch.epoch} of {of} with seed {seed}")

    work = work_of(
        run,
        seed,
        method,
        name=f"tune {name}, seed {seed}",
        folder=folder,
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
        change=_distance(run, model, seed),
        curve=[_point(epoch) for epoch in history.epochs],
        audit=audit,
    )


def _point(epoch: Epoch) -> Point:
    return Point(worst=epoch.measured[_WORST], accuracy=epoch.measured[_ACCURACY])


def _accuracy(counts: Counts) -> float:
    return float(np.einsum("ayy->", counts) / counts.sum())


def _mask(run: Run, seed: int, name: str, method: MethodSettings, model: nn.Module) -> ParameterMask:
    assert isinstance(method, Tune)
    head = partial(head_names, model, run.config.data.image_size, f"methods.{name}")
    load = load_shards if processes_of(run).sharded else Sensitivity.load
    probe = load(run.tuning_sensitivity(seed), model)
    return select_mask(probe, name, method, seed, head=head)


def _distance(run: Run, model: nn.Module, seed: int) -> float:
    """L2 norm of the difference to the weights of the biased model, over that of these."""
    start = trained_model(run, run.baseline(seed), next(model.parameters()).device)
    squares = torch.zeros(2, dtype=torch.float64)
    for old, new in zip(start.parameters(), model.parameters(), strict=True):
        before, after = local(old).detach().double().cpu(), local(new).detach().double().cpu()
        squares += torch.stack([(after - before).square().sum(), before.square().sum()])
    if processes_of(run).sharded:
        run.ranks.sum(squares)
    return float((squares[0] / squares[1]).sqrt())
