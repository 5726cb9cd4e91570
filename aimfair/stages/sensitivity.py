"""Accumulates, for each seed, the biased model's gradients on real, biased synthetic and fair synthetic images."""

import gc
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from aimfair.base.device import tuning_device
from aimfair.data.images import ImageSet
from aimfair.generation.manifest import Manifest
from aimfair.run.directory import Run
from aimfair.stages.context import splits_of
from aimfair.training.models import load_model
from aimfair.training.sensitivity import SOURCES, batches_of_each_source, measure_sensitivity


def run(run: Run) -> None:
    @cache
    def sources() -> dict[str, ImageSet]:
        data, manifest = run.config.data, Manifest(run.synthetic)
        biased, fair = (
            manifest.load(which, data.image_size, data.fit, log=run.log, progress=run.progress, interrupt=run.interrupt)
            for which in ("biased", "balanced")
        )
        return dict(zip(SOURCES, (splits_of(run).train, biased, fair), strict=True))

    todo = [
        (seed, inputs)
        for seed in run.config.seeds
        if not run.is_done(f"sensitivity/{seed}", inputs := inputs_of(run, seed))
    ]
    for seed, inputs in run.progress.each(todo, lambda item: f"sensitivity {item[0]}"):
        measure(run, seed, sources(), run.sensitivity(seed), f"sensitivity {seed}")
        run.finish(f"sensitivity/{seed}", inputs, [run.sensitivity(seed)])
        gc.collect()  # models can have reference cycles, for example with checkpointing


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
    model = load_model(run.baseline(seed), config.model).to(tuning_device(config.device))
    batches = batches_of_each_source(sources, config.sensitivity)
    with run.progress.task(name, batches * len(SOURCES)) as task:
        probe = measure_sensitivity(
            model, sources, config.sensitivity, config.model, seed=seed, task=task, interrupt=run.interrupt
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    probe.save(path)
    run.log("sensitivity", seed=seed, batches=probe.batches)
