"""The synthetic images: a balanced set and a biased one."""

from typing import Any

from aimfair.generation.job import Job
from aimfair.generation.model import fingerprint, model_folder
from aimfair.generation.plan import make_plan
from aimfair.generation.prompts import load_prompts
from aimfair.generation.sampler import Sampler
from aimfair.run.directory import Run

_NOT_IN_THE_IMAGES = {"model", "allow_download", "batch_size", "max_rejections"}
"""Settings that may change while a job goes on: the model's fingerprint stands for its name, and the size of a batch
changes no pixel by more than one grey level."""


def run(run: Run) -> None:
    settings, data = run.config.generate, run.config.data
    folder = model_folder(settings.model, settings.allow_download)
    recipe: dict[str, Any] = {
        "generate": settings.model_dump(mode="json", exclude=_NOT_IN_THE_IMAGES),
        "model": fingerprint(folder),
    }
    inputs = {
        **recipe,
        "image_size": data.image_size,
        "bias": data.bias,
        "majority": data.majority,
        "upstream": run.digest_of("prompts"),
    }
    if run.is_done("generate", inputs):
        return
    job = Job(
        run.synthetic,
        make_plan(load_prompts(run.prompts), settings, data),
        recipe,
        image_size=data.image_size,
        batch_size=settings.batch_size,
        max_rejections=settings.max_rejections,
    )

    def load() -> Sampler:
        # Imported here, for a run whose images are all there: these take seconds.
        from aimfair.device import choose_device
        from aimfair.generation.diffusion import Diffusion

        return Diffusion(folder, settings, choose_device(run.config.device))

    with run.progress.task("generate", job.total, job.done) as task:
        job.run(load, task=task, interrupt=run.interrupt)
    run.log("images", made=job.done, rejected=dict(job.rejected))
    run.finish("generate", inputs, job.outputs)
