"""Trains the model of each seed and method; most tune the biased model on balanced synthetic images."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from aimfair.base.device import tuning_device
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import Manifest
from aimfair.methods import KINDS, MethodSettings
from aimfair.methods.work import Work
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.selective.mask import ParameterMask
from aimfair.stages.context import splits_of
from aimfair.stages.select import mask_of
from aimfair.training.models import build_model, load_model, save_model


def run(run: Run) -> None:
    @cache
    def balanced() -> ImageSet:
        data = run.config.data
        return Manifest(run.synthetic).load(
            "balanced", data.image_size, data.fit, log=run.log, progress=run.progress, interrupt=run.interrupt
        )

    methods = run.tuned_config().methods
    todo = [
        (seed, name, inputs)
        for seed in run.config.seeds
        for name, method in methods.items()
        if not run.is_done(f"finetune/{seed}/{name}", inputs := _inputs(run, seed, name, method))
    ]
    for seed, name, inputs in run.progress.each(todo, lambda item: f"finetune {item[0]} {item[1]}"):
        _train(run, seed, name, methods[name], inputs, balanced)


def _train(
    run: Run, seed: int, name: str, method: MethodSettings, inputs: object, balanced: Callable[[], ImageSet]
) -> None:
    step, folder = f"finetune/{seed}/{name}", run.finetuned(seed, name)
    for record in {record for kind in KINDS.values() for record in kind.records} - set(method.records):
        (folder / record).unlink(missing_ok=True)  # of another kind that had the name before
    run.log("step started", step=step)
    work = work_of(
        run,
        seed,
        method,
        name=f"finetune {seed} {name}",
        folder=folder,
        balanced=balanced,
        mask=lambda model: mask_of(run, seed, name, model),
        inputs=digest_of_inputs(inputs),
        progress=run.progress,
        log=run.log,
    )
    model, history = method.run(work)
    history.reads_groups = method.reads_groups
    save_model(model, folder)
    history.save(folder)
    work.checkpoint().remove()
    run.finish(step, inputs, [folder])


def _inputs(run: Run, seed: int, name: str, method: MethodSettings) -> dict[str, object]:
    inputs = {"seed": seed, **inputs_of_training(run, method)}
    return {**inputs, "upstream": [run.digest_of(step) for step in method.upstream(seed, name)]}


def inputs_of_training(run: Run, method: MethodSettings) -> dict[str, object]:
    """What the result of a method depends on besides its seed and other steps; of the settings, what it reads."""
    config = run.config
    settings = method.training_settings(config.train, config.finetune)
    inputs: dict[str, object] = {"data": config.data.of_training, "method": method.own}
    if method.from_biased:
        return {**inputs, "preprocessing": config.model.computation, "finetune": settings}
    return {**inputs, "model": config.model.of_training, "train": settings}


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
    device = tuning_device(config.device)
    return Work(
        name=name,
        settings=method.training_settings(config.train, config.finetune),
        preprocessing=config.model,
        seed=seed,
        folder=folder,
        splits=partial(splits_of, run),
        balanced=balanced,
        initial=lambda: build_model(config.model, len(splits_of(run).target_names), seed).to(device),
        biased=lambda: load_model(run.baseline(seed), config.model).to(device),
        mask=mask,
        inputs=inputs,
        checkpoint_seconds=config.checkpoint_seconds,
        interrupt=run.interrupt,
        **more,
    )
