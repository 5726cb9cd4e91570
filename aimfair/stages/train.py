"""Trains the biased model of each seed on the biased real images."""

from functools import partial

from aimfair.base.device import tuning_device
from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.run.steps import Assignment, Outputs, Step, one_by_one
from aimfair.stages.context import processes_of, splits_of
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.loop import Training
from aimfair.training.models import build_model, save_model


def run(run: Run) -> None:
    one_by_one(run, steps(run))


def steps(run: Run) -> list[Step]:
    return [Step(f"train/{seed}", (), partial(_assign, run, seed)) for seed in run.config.seeds]


def _assign(run: Run, seed: int) -> Assignment | None:
    step, inputs = f"train/{seed}", _inputs(run, seed)
    if run.is_done(step, inputs):
        return None
    return Assignment({step: inputs}, partial(_train, seed=seed, inputs=digest_of_inputs(inputs)))


def _train(run: Run, *, seed: int, inputs: str) -> Outputs:
    config, step, folder = run.config, f"train/{seed}", run.baseline(seed)
    splits = splits_of(run)
    model = build_model(config.model, len(splits.target_names), seed).to(tuning_device(config.device, run.ranks))
    checkpoint = Checkpoint(folder, config.checkpoint_seconds, inputs)
    run.log("step started", step=step)
    training = Training(
        model, splits.train, splits.validation, config.train, config.model, seed,
        checkpoint=checkpoint, name=f"train {seed}", interrupt=run.interrupt, log=run.log,
        processes=processes_of(run),
    )  # fmt: skip
    with run.progress.task(f"train {seed}", training.steps) as training.task:
        history = training.fit()
    if run.ranks.leads:
        save_model(model, folder)
        history.save(folder)
        checkpoint.remove()
    return {step: [folder]}


def _inputs(run: Run, seed: int) -> dict[str, object]:
    return {
        "data": run.config.data.of_training,
        "model": run.config.model.of_training,
        "train": run.config.train,
        "seed": seed,
    }
