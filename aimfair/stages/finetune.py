"""For each seed and method, the biased model with the selected weights tuned on balanced synthetic images."""

from collections.abc import Callable
from functools import cache

from aimfair.data import synthetic
from aimfair.data.images import ImageSet
from aimfair.device import tuning_device
from aimfair.errors import AimfairError
from aimfair.run.directory import Run
from aimfair.selective.mask import ParameterMask
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.finetune import finetune
from aimfair.training.loop import total_steps
from aimfair.training.methods import finetune_settings
from aimfair.training.models import load_model, save_model


def run(run: Run) -> None:
    @cache
    def balanced() -> ImageSet:
        size = run.config.data.image_size
        return synthetic.load(run.synthetic, "balanced", size, progress=run.progress, interrupt=run.interrupt)

    for seed in run.config.seeds:
        for name in run.config.methods:
            _finetune(run, seed, name, balanced)


def _finetune(run: Run, seed: int, name: str, balanced: Callable[[], ImageSet]) -> None:
    config, step, folder = run.config, f"finetune/{seed}/{name}", run.finetuned(seed, name)
    settings = finetune_settings(config.finetune, config.methods[name])
    inputs = {
        "data": config.data,
        "preprocessing": (config.model.mean, config.model.std),
        "finetune": settings,
        "seed": seed,
        "upstream": [run.digest_of(upstream) for upstream in ("generate", f"train/{seed}", f"select/{seed}/{name}")],
    }
    if run.is_done(step, inputs):
        return
    model = load_model(run.baseline(seed)).to(tuning_device(config.device))
    try:
        mask = ParameterMask.load(run.mask(seed, name), model)
    except ValueError as error:
        raise AimfairError(f"{error}; remove it and do: aimfair select --run {run.path}") from error
    checkpoint = Checkpoint(folder, config.checkpoint_seconds)
    run.log("step started", step=step)
    with run.progress.task(f"finetune {seed} {name}", total_steps(settings, len(balanced()))) as task:
        history = finetune(
            model,
            mask,
            balanced(),
            run.splits().validation,
            settings,
            config.model,
            seed=seed,
            checkpoint=checkpoint,
            task=task,
            interrupt=run.interrupt,
            log=run.log,
        )
    save_model(model, folder)
    history.save(folder)
    checkpoint.remove()
    run.finish(step, inputs, [folder])
