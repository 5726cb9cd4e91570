"""Trains the model of each seed and method; most tune the biased model on balanced synthetic images."""

from collections.abc import Callable
from functools import cache, partial

from torch import nn

from aimfair.base.device import tuning_device
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import Manifest
from aimfair.methods import KINDS
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

    todo = [
        (seed, name, inputs)
        for seed in run.config.seeds
        for name in run.config.methods
        if not run.is_done(f"finetune/{seed}/{name}", inputs := _inputs(run, seed, name))
    ]
    for seed, name, inputs in run.progress.each(todo, lambda item: f"finetune {item[0]} {item[1]}"):
        _train(run, seed, name, inputs, balanced)


def _train(run: Run, seed: int, name: str, inputs: object, balanced: Callable[[], ImageSet]) -> None:
    step, folder, method = f"finetune/{seed}/{name}", run.finetuned(seed, name), run.config.methods[name]
    for record in {record for kind in KINDS.values() for record in kind.records} - set(method.records):
        (folder / record).unlink(missing_ok=True)  # of another kind that had the name before
    run.log("step started", step=step)
    work = _work(run, seed, name, balanced, digest_of_inputs(inputs))
    model, history = method.run(work)
    history.reads_groups = method.reads_groups
    save_model(model, folder)
    history.save(folder)
    work.checkpoint().remove()
    run.finish(step, inputs, [folder])


def _inputs(run: Run, seed: int, name: str) -> dict[str, object]:
    """What the result depends on; of the settings, what the method reads."""
    config, method = run.config, run.config.methods[name]
    settings = method.training_settings(config.train, config.finetune)
    inputs: dict[str, object] = {"data": config.data.of_training, "seed": seed, "method": method.own}
    if method.from_biased:
        inputs |= {"preprocessing": config.model.computation, "finetune": settings}
    else:
        inputs |= {"model": config.model.of_training, "train": settings}
    return {**inputs, "upstream": [run.digest_of(step) for step in method.upstream(seed, name)]}


def _work(run: Run, seed: int, name: str, balanced: Callable[[], ImageSet], inputs: str) -> Work:
    config = run.config
    device = tuning_device(config.device)

    def initial() -> nn.Module:
        return build_model(config.model, len(splits_of(run).target_names), seed).to(device)

    def mask(model: nn.Module) -> ParameterMask:
        return mask_of(run, seed, name, model)

    return Work(
        name=f"finetune {seed} {name}",
        settings=config.methods[name].training_settings(config.train, config.finetune),
        preprocessing=config.model,
        seed=seed,
        folder=run.finetuned(seed, name),
        splits=partial(splits_of, run),
        balanced=balanced,
        initial=initial,
        biased=lambda: load_model(run.baseline(seed), config.model).to(device),
        mask=mask,
        inputs=inputs,
        checkpoint_seconds=config.checkpoint_seconds,
        progress=run.progress,
        interrupt=run.interrupt,
        log=run.log,
    )
