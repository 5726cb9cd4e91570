"""Trains the biased model of each seed on the biased real images."""

from functools import partial

from aimfair.run.directory import Run
from aimfair.run.records import digest_of_inputs
from aimfair.run.steps import Assignment, Outputs, Step, one_by_one
from aimfair.stages.context import initial_model, keep, processes_of, splits_of
from aimfair.training.loop import Training


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
    model = initial_model(run, seed)
    checkpoint = processes_of(run).checkpoint(folder, config.checkpoint_seconds, inputs)
    run.log("step started", step=step)
    training = Training(
        model, splits.train, splits.validation, config.train, config.model, seed,
        checkpoint=checkpoint, name=f"train {seed}", interrupt=run.interrupt, log=run.log,
        processes=processes_of(run),
    )  # fmt: skip
    with run.progress.task(f"train {seed}", training.steps) as training.task:
        history = training.fit()
    keep(run, model, history, folder, checkpoint)
    return {step: [folder]}


def _inputs(run: Run, seed: int) -> dict[str, object]:
    return {
        "data": run.config.data.of_training,
        "model": run.config.model.of_training,
        "train": run.config.train.of_result,
        "seed": seed,
    }
