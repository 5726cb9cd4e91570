"""Accumulates, for each seed, the biased model's gradients on real, biased synthetic and fair synthetic images."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from aimfair.base.device import tuning_device
from aimfair.data.images import ImageSet
from aimfair.run.directory import Run
from aimfair.run.steps import Assignment, Outputs, Step, one_by_one
from aimfair.selective.whole_statistics import save_whole
from aimfair.stages.context import processes_of, splits_of, synthetic_of, trained_model
from aimfair.training.processes import require_same_images
from aimfair.training.sensitivity import SOURCES, batches_of_each_source, measure_sensitivity


def run(run: Run) -> None:
    one_by_one(run, steps(run))


def steps(run: Run) -> list[Step]:
    return [
        Step(f"sensitivity/{seed}", ("generate", f"train/{seed}"), partial(_assign, run, seed))
        for seed in run.config.seeds
    ]


def _assign(run: Run, seed: int) -> Assignment | None:
    step, inputs = f"sensitivity/{seed}", inputs_of(run, seed)
    return None if run.is_done(step, inputs) else Assignment({step: inputs}, partial(_measure, seed=seed))


def _measure(run: Run, *, seed: int) -> Outputs:
    images = (splits_of(run).train, synthetic_of(run, "biased"), synthetic_of(run, "balanced"))
    measure(run, seed, dict(zip(SOURCES, images, strict=True)), run.sensitivity(seed), f"sensitivity {seed}")
    return {f"sensitivity/{seed}": [run.sensitivity(seed)]}


def inputs_of(run: Run, seed: int) -> dict[str, object]:
    config = run.config
    return {
        "data": config.data.of_training,
        "preprocessing": config.model.computation,
        "sensitivity": config.sensitivity,
        "seed": seed,
        "upstream": [run.digest_of("generate"), run.digest_of(f"train/{seed}")],
    }


def measure(run: Run, seed: int, sources: Mapping[str, ImageSet], path: Path, name: str) -> None:
    """Writes the statistics of one seed to ``path``; its model is freed on return. ``name``: for the progress."""
    config = run.config
    require_same_images(run.ranks, {f"the images {source} of {name}": images for source, images in sources.items()})
    model = trained_model(run, run.baseline(seed), tuning_device(config.device, run.ranks))
    batches = batches_of_each_source(sources, config.sensitivity)
    with run.progress.task(name, batches * len(SOURCES)) as task:
        probe = measure_sensitivity(
            model,
            sources,
            config.sensitivity,
            config.model,
            seed=seed,
            processes=processes_of(run),
            task=task,
            interrupt=run.interrupt,
        )
    if run.ranks.leads:
        path.parent.mkdir(parents=True, exist_ok=True)
    if processes_of(run).sharded:
        save_whole(probe, path, model, write=run.ranks.leads)
    elif run.ranks.leads:
        probe.save(path)
    run.log("sensitivity", seed=seed, batches=probe.batches)
