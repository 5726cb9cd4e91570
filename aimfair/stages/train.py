"""Trains the biased model of each seed on the biased real images."""

from aimfair.base.device import tuning_device
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.stages.context import splits_of
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.loop import Training
from aimfair.training.models import build_model, preprocessing_caution, save_model


def run(run: Run) -> None:
    todo = [seed for seed in run.config.seeds if not run.is_done(f"train/{seed}", _inputs(run, seed))]
    if todo and (caution := preprocessing_caution(run.config.model)):
        run.log.warn(caution)
    for seed in run.progress.each(todo, lambda seed: f"train {seed}"):
        _train(run, seed)


def _train(run: Run, seed: int) -> None:
    config, step, folder = run.config, f"train/{seed}", run.baseline(seed)
    inputs = _inputs(run, seed)
    splits = splits_of(run)
    model = build_model(config.model, len(splits.target_names), seed).to(tuning_device(config.device))
    checkpoint = Checkpoint(folder, config.checkpoint_seconds, digest_of_inputs(inputs))
    run.log("step started", step=step)
    training = Training(
        model, splits.train, splits.validation, config.train, config.model, seed,
        checkpoint=checkpoint, name=f"train {seed}", interrupt=run.interrupt, log=run.log,
    )  # fmt: skip
    with run.progress.task(f"train {seed}", training.steps) as training.task:
        history = training.fit()
    save_model(model, folder)
    history.save(folder)
    checkpoint.remove()
    run.finish(step, inputs, [folder])


def _inputs(run: Run, seed: int) -> dict[str, object]:
    return {
        "data": run.config.data.of_training,
        "model": run.config.model.of_training,
        "train": run.config.train,
        "seed": seed,
    }
