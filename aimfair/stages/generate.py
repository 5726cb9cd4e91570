"""The synthetic images: a balanced set and a biased one."""

from typing import Any

from aimfair.errors import AimfairError
from aimfair.generation.engines.choose import engine_facts
from aimfair.generation.job import Job, recipe_of
from aimfair.generation.model import fingerprint, model_folder
from aimfair.generation.plan import make_plan
from aimfair.generation.prompts import load_prompts
from aimfair.generation.sampler import Sampler
from aimfair.run.directory import Run

_NOT_IN_THE_IMAGES = {"model", "engine", "allow_download", "batch_size", "max_rejections"}
"""Settings that may change while a job goes on, and two for which other things stand: the model's fingerprint and the
engine's versions. The size of a batch changes no pixel by more than one grey level."""


def run(run: Run) -> None:
    settings, data = run.config.generate, run.config.data
    folder = model_folder(settings.model, settings.allow_download)
    recipe: dict[str, Any] = {
        "generate": settings.model_dump(mode="json", exclude=_NOT_IN_THE_IMAGES),
        "model": fingerprint(folder),
    }
    if (engine := engine_facts(settings.engine)) is not None:
        recipe["engine"] = engine
    _refuse_other_engine(run, engine)
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

        return Diffusion(folder, settings, choose_device(run.config.device), run.log, run.interrupt)

    with run.progress.task("generate", job.total, job.done) as task:
        job.run(load, task=task, interrupt=run.interrupt)
    run.log("images", made=job.done, rejected=dict(job.rejected), engine=engine or settings.engine)
    run.finish("generate", inputs, job.outputs)


def _refuse_other_engine(run: Run, engine: dict[str, Any] | None) -> None:
    """Hours of images are not made anew because a package was updated, unless that is wanted."""
    recipe = recipe_of(run.synthetic)
    if recipe and recipe.get("engine") != engine and not run.overwrite:
        raise AimfairError(
            f"{run.synthetic}: made with engine {_named(recipe.get('engine'))}, now there is {_named(engine)}; go back"
            " to that, or make the images anew with --overwrite"
        )


def _named(engine: dict[str, Any] | None) -> str:
    return " ".join(f"{name} {value}" for name, value in engine.items()).removeprefix("name ") if engine else "eager"
