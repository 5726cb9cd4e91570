"""Trains the model of each seed and method; most tune the biased model on balanced synthetic images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from aimfair.base.device import tuning_device
from aimfair.data.images import ImageSet
from aimfair.methods import KINDS, MethodSettings, Tune
from aimfair.methods.work import Work
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.run.steps import Assignment, Outputs, Step, one_by_one
from aimfair.selective.mask import ParameterMask
from aimfair.stages import select
from aimfair.stages.context import initial_model, keep, processes_of, splits_of, synthetic_of, trained_model


def run(run: Run) -> None:
    one_by_one(run, steps(run))


def steps(run: Run) -> list[Step]:
    return [
        Step(f"finetune/{seed}/{name}", _needs(run, seed, name), partial(_assign, run, seed, name))
        for seed in run.config.seeds
        for name in run.config.methods
    ]


def _needs(run: Run, seed: int, name: str) -> list[str]:
    """Choosing a method's settings changes neither its kind nor whether it selects weights."""
    method = run.config.methods[name]
    upstream = [f"select/{seed}" if step.startswith("select/") else step for step in method.upstream(seed, name)]
    return [*upstream, f"tune/chosen/{name}"] if name in run.config.tuned else upstream


def _assign(run: Run, seed: int, name: str) -> Assignment | None:
    step, method = f"finetune/{seed}/{name}", run.tuned_method(name)
    inputs = _inputs(run, seed, name, method)
    if run.is_done(step, inputs):
        return None
    make = partial(_train, seed=seed, name=name, method=method, inputs=digest_of_inputs(inputs))
    return Assignment({step: inputs}, make)


def _train(run: Run, *, seed: int, name: str, method: MethodSettings, inputs: str) -> Outputs:
    step, folder = f"finetune/{seed}/{name}", run.finetuned(seed, name)
    if run.ranks.leads:
        for record in {record for kind in KINDS.values() for record in kind.records} - set(method.records):
            (folder / record).unlink(missing_ok=True)  # of another kind that had the name before
    run.log("step started", step=step)
    work = work_of(
        run,
        seed,
        method,
        name=f"finetune {seed} {name}",
        folder=folder,
        balanced=partial(synthetic_of, run, "balanced"),
        mask=lambda model: select.mask_of(run, seed, name, model),
        inputs=inputs,
        progress=run.progress,
        log=run.log,
    )
    model, history = method.run(work)
    history.reads_groups = method.reads_groups
    keep(run, model, history, folder, work.checkpoint())
    return {step: [folder]}


def require_chosen(run: Run) -> None:
    """Raises AimfairError: a tuning since the models were trained chose other settings than theirs."""
    for name in run.config.tuned:
        method = run.tuned_method(name)
        for seed in run.config.seeds:
            if isinstance(method, Tune):
                run.digest_of(f"select/{seed}/{name}", inputs=select.inputs_of(run, seed, method))
            run.digest_of(f"finetune/{seed}/{name}", inputs=_inputs(run, seed, name, method))


def _inputs(run: Run, seed: int, name: str, method: MethodSettings) -> dict[str, object]:
    inputs = {"seed": seed, **inputs_of_training(run, method)}
    return {**inputs, "upstream": [run.digest_of(step) for step in method.upstream(seed, name)]}


def inputs_of_training(run: Run, method: MethodSettings) -> dict[str, object]:
    """What the result of a method depends on besides its seed and other steps; of the settings, what it reads."""
    config = run.config
    settings = method.training_settings(config.train, config.finetune)
    inputs: dict[str, object] = {"data": config.data.of_training, "method": method.own}
    if method.from_biased:
        return {**inputs, "preprocessing": config.model.computation, "finetune": settings.of_result}
    return {**inputs, "model": config.model.of_training, "train": settings.of_result}


def work_of(
    run: Run,
    seed: int,
    method: MethodSettings,
    *,
    name: str,
    folder: Path,
    balanced: Callable[[], ImageSet],
    mask: Callable[[nn.Module], ParameterMask],
    inputs: str,
    **more: Any,
) -> Work:
    """The work of a method in a run; arguments as :class:`Work`, ``more`` of them optional there."""
    config = run.config
    device = tuning_device(config.device, run.ranks)
    return Work(
        name=name,
        settings=method.training_settings(config.train, config.finetune),
        preprocessing=config.model,
        seed=seed,
        folder=folder,
        splits=partial(splits_of, run),
        balanced=balanced,
        initial=partial(initial_model, run, seed),
        biased=lambda: trained_model(run, run.baseline(seed), device),
        mask=mask,
        inputs=inputs,
        checkpoint_seconds=config.checkpoint_seconds,
        interrupt=run.interrupt,
        processes=processes_of(run),
        **more,
    )
