"""For each seed, how the weights of the biased model react to real, biased synthetic and fair synthetic images."""

from functools import cache

from aimfair.data import synthetic
from aimfair.data.images import ImageSet
from aimfair.device import tuning_device
from aimfair.run.directory import Run
from aimfair.training.gradients import SOURCES, accumulate, batches_of_each_source
from aimfair.training.models import load_model


def run(run: Run) -> None:
    @cache
    def sources() -> dict[str, ImageSet]:
        data = run.config.data
        biased, fair = (
            synthetic.load(
                run.synthetic, which, data.image_size, data.fit, progress=run.progress, interrupt=run.interrupt
            )
            for which in ("biased", "balanced")
        )
        return dict(zip(SOURCES, (run.splits().train, biased, fair), strict=True))

    config = run.config
    for seed in config.seeds:
        step = f"sensitivity/{seed}"
        inputs = {
            "data": config.data.of_training,
            "preprocessing": config.model.computation,
            "sensitivity": config.sensitivity,
            "seed": seed,
            "upstream": [run.digest_of("generate"), run.digest_of(f"train/{seed}")],
        }
        if run.is_done(step, inputs):
            continue
        model = load_model(run.baseline(seed), config.model).to(tuning_device(config.device))
        batches = batches_of_each_source(sources(), config.sensitivity)
        with run.progress.task(f"sensitivity {seed}", batches * len(SOURCES)) as task:
            probe = accumulate(
                model, sources(), config.sensitivity, config.model, seed=seed, task=task, interrupt=run.interrupt
            )
        probe.save(run.sensitivity(seed))
        run.log("sensitivity", seed=seed, batches=probe.batches)
        run.finish(step, inputs, [run.sensitivity(seed)])
