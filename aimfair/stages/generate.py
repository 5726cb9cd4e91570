"""The synthetic images: a balanced set and a biased one, made here or copied from where others made them."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.config import Config
from aimfair.data.leakage import find_leaks, refuse_leaks
from aimfair.diffusion.engines.auto import choose_engine
from aimfair.diffusion.engines.choose import engine_facts
from aimfair.diffusion.model import fingerprint, model_folder
from aimfair.diffusion.sampler import Sampler
from aimfair.generation import imported
from aimfair.generation.filters.choose import filter_facts, load_filters
from aimfair.generation.filters.interface import ImageFilter
from aimfair.generation.job import Job
from aimfair.generation.job_folder import recipe_of
from aimfair.generation.plan import bias_of, make_plan
from aimfair.generation.ranks import Ranks
from aimfair.generation.summary import GenerationSummary
from aimfair.prompts.grammar import load_prompts
from aimfair.run.directory import Run

if TYPE_CHECKING:
    import torch

_NOT_IN_THE_IMAGES = {
    "model", "engine", "tensorrt", "filters", "image_format", "allow_download", "batch_size", "max_rejections", "bias",
    "folder",
}  # fmt: skip
"""Settings that may change while a job goes on, and some for which other things stand: the model's fingerprint, the
engine's versions, the facts of the filters, the plan. The size of a batch changes no pixel by more than one
grey level."""

_EAGER = {"name": "eager"}
"""The engine of images whose recipe names none."""


def run(run: Run) -> None:
    """The stage; of several processes, in that of rank 0."""
    with Ranks.join(run.interrupt) as ranks:
        if run.config.generate.folder is not None:
            ranks.gather(json.dumps(None))  # one process copies; the others have nothing to do
            _copy(run, run.config.generate.folder)
            return
        made = recipe_of(run.synthetic)
        if imported.PICTURES in made:  # they were copied, by no engine; the job refuses or replaces them
            made = {}
        known = made or (recipe_of(run.origin / run.synthetic.name) if run.origin is not None else {})
        config, why = _choose_engine(run, known)
        settings, data = config.generate, config.data
        folder = model_folder(settings.model, settings.allow_download)

        # Images that are all there need no engine, not even its package: they stay those of the version that made them.
        engine = known.get("engine")
        of_model = _recipe(config, folder)
        recipe = _with_engine(of_model, engine)
        others = {
            "image_format": settings.image_format,
            "image_size": data.image_size,
            "bias": bias_of(settings, data),
            "majority": data.majority,
            "upstream": run.digest_of("prompts"),
        }
        made_here = (engine or _EAGER)["name"] == settings.engine
        work = not (made_here and run.is_done("generate", {**recipe, **others}))
        if work:
            engine = engine_facts(settings.engine)
            _refuse_other_engine(run, made, engine)
            recipe = _with_engine(of_model, engine)
        settled = {"config": config.model_dump(mode="json"), "prompts": run.prompts.name, "to": run.synthetic.name}
        ranks.gather(json.dumps(settled if work else None))
        if not work:
            return
        if config != run.config:
            run.log.tell(f"engine: {settings.engine} ({why})")
        _refuse_differences(ranks, recipe)
        job = _open(config, run.prompts, run.synthetic, recipe, ranks, overwrite=run.overwrite)
        models = _Models(config, folder, job, ranks, run.log, run.interrupt)
        with run.progress.task("generate", job.total, job.done) as task:
            job.run(models.sampler, models.filters, task=task, interrupt=run.interrupt)
        if job.speed is not None or not run.generation.exists():
            GenerationSummary.of(job).save(run.generation)
        run.log(
            "images",
            made=job.done,
            rejected=dict(job.rejected),
            engine=engine or settings.engine,
            speed=job.speed.model_dump() if job.speed else None,
        )
        run.finish("generate", {**recipe, **others}, job.outputs)


def follow(path: Path, interrupt: Interrupt) -> None:
    """The part of another rank in the stage of the run in ``path``: it makes its share of the images.

    Settings are those that rank 0 has settled.

    Raises:
        AimfairError, Interrupted: as :func:`run`, and if another process failed.
    """
    from aimfair.stages.pipeline import prepare_process

    with Ranks.join(interrupt) as ranks:
        settled = json.loads(ranks.gather("")[0])
        if settled is None:
            return
        config = Config.model_validate_json(json.dumps(settled["config"]))
        prepare_process(config)
        folder = model_folder(config.generate.model, config.generate.allow_download)
        _refuse_differences(ranks, _with_engine(_recipe(config, folder), engine_facts(config.generate.engine)))
        job = _open(config, path / settled["prompts"], path / settled["to"], {}, ranks, overwrite=False)
        models = _Models(config, folder, job, ranks, NOWHERE, interrupt)
        job.run(models.sampler, models.filters, interrupt=interrupt)


def _copy(run: Run, folder: Path) -> None:
    """The stage for images that were made elsewhere."""
    settings, data = run.config.generate, run.config.data
    groups = len(data.majority), len(run.config.prompts.protected)
    here, there = run.synthetic.resolve(), folder.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise ConfigError(f"generate.folder: found {folder}, which is or holds that of this run, {run.synthetic}")
    pictures = None
    if folder.is_dir():
        source = imported.find(folder, groups)
        pictures = imported.look(source, data, progress=run.progress, interrupt=run.interrupt)
        digest = pictures.digest
    else:  # what is copied needs its source no more
        digest = _digest_of_copy(run, folder)
    recipe = imported.recipe(digest, settings, data, groups[1])
    # Which real images there are decides whether one of them is among these.
    inputs = {**recipe, "real": data.model_dump(mode="json", exclude={"audit", "image_size", "fit"})}
    if run.is_done("generate", inputs):
        return
    if pictures is None:
        raise _missing(folder)
    images = imported.Import(
        pictures, run.synthetic, settings, data, groups[1], log=run.log, progress=run.progress, interrupt=run.interrupt
    )
    leaks = find_leaks(pictures.digests, run.splits(), data, progress=run.progress, interrupt=run.interrupt)
    refuse_leaks(leaks, folder, run.log)
    images.run(recipe, overwrite=run.overwrite)
    images.summary.save(run.generation)
    run.log("images", copied=len(images.chosen), folder=str(folder))
    run.finish("generate", inputs, images.outputs)


def _digest_of_copy(run: Run, folder: Path) -> str:
    """Of the pictures that were copied from ``folder``, which is gone.

    Raises:
        ConfigError: none were.
    """
    known = recipe_of(run.synthetic).get(imported.PICTURES)
    if known is None or not run.generation.exists() or GenerationSummary.load(run.generation).folder != str(folder):
        raise _missing(folder)
    return str(known)


def _missing(folder: Path) -> ConfigError:
    return ConfigError(f"generate.folder: found {folder}, which is no folder, expected one with images")


class _Models:
    """Loads what makes and judges the images, with imports that take seconds, for a run that lacks images."""

    def __init__(self, config: Config, folder: Path, job: Job, ranks: Ranks, log: Log, interrupt: Interrupt):
        self._config, self._folder, self._job = config, folder, job
        self._ranks, self._log, self._interrupt = ranks, log, interrupt

    def sampler(self) -> Sampler:
        from aimfair.diffusion.text_to_image import Diffusion

        model = Diffusion(self._folder, self._config.generate, self._device(), self._log, self._interrupt)
        model.refuse_unreadable(dict.fromkeys(planned.text for planned in self._job.plan))  # before the first hour
        return model

    def filters(self) -> list[ImageFilter]:
        return load_filters(self._config, self._folder, self._device())

    def _device(self) -> "torch.device":
        """Of several processes, each takes the GPU of its number on its machine."""
        from aimfair.base.device import choose_device

        name = self._config.device
        if self._ranks.size > 1 and ":" in name:
            raise ConfigError(
                f"device: found {name}, expected auto, cpu or cuda: each of several processes has its own"
            )
        device = choose_device(name)
        if self._ranks.size > 1 and device.type == "cuda":
            import torch

            device = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', self._ranks.rank)}")
            torch.cuda.set_device(device)
        return device


def _recipe(config: Config, folder: Path) -> dict[str, Any]:
    """What the images depend on, beside engine, plan, size and format; reads all weights."""
    recipe: dict[str, Any] = {
        "generate": config.generate.model_dump(mode="json", exclude=_NOT_IN_THE_IMAGES),
        "model": fingerprint(folder),
    }
    if filters := filter_facts(config, folder):
        recipe["filters"] = filters
    return recipe


def _with_engine(recipe: dict[str, Any], engine: dict[str, Any] | None) -> dict[str, Any]:
    return recipe if engine is None else {**recipe, "engine": engine}


def _refuse_differences(ranks: Ranks, recipe: dict[str, Any]) -> None:
    """Of processes on several machines each has its own model, hooks and packages; all come here."""
    first, *others = (json.loads(text) for text in ranks.gather(json.dumps(recipe)))
    for rank, other in enumerate(others, 1):
        if names := [name for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]:
            raise AimfairError(
                f"process {rank} would make other images than process 0: {', '.join(names)} differ; all need the same"
                " files of the model, filters and versions of packages"
            )


def _open(
    config: Config, prompts: Path, synthetic: Path, recipe: dict[str, Any], ranks: Ranks, *, overwrite: bool
) -> Job:
    settings = config.generate
    return Job(
        synthetic,
        make_plan(load_prompts(prompts), settings, config.data),
        recipe,
        image_size=config.data.image_size,
        batch_size=settings.batch_size,
        max_rejections=settings.max_rejections,
        image_format=settings.image_format,
        near_duplicates=settings.filters.near_duplicates,
        ranks=ranks,
        overwrite=overwrite,
    )


def _choose_engine(run: Run, made: dict[str, Any]) -> tuple[Config, str]:
    """The settings, with the engine that ``auto`` is here, and why it is that.

    Args:
        made: the recipe of the images that are there or, of a variant, in its origin; empty if there are none.
    """
    from aimfair.base.device import choose_device

    made_with = made.get("engine", _EAGER)["name"] if made else None
    settings = run.config.generate
    name, reason = choose_engine(settings, lambda: choose_device(run.config.device), made_with)
    return run.config.model_copy(update={"generate": settings.model_copy(update={"engine": name})}), reason


def _refuse_other_engine(run: Run, made: dict[str, Any], engine: dict[str, Any] | None) -> None:
    """Hours of images are not made anew because a package was updated, unless that is wanted."""
    if made and made.get("engine") != engine and not run.overwrite:
        raise AimfairError(
            f"{run.synthetic}: made with engine {_named(made.get('engine'))}, now there is {_named(engine)}; go back"
            " to that, or make the images anew with --overwrite"
        )


def _named(engine: dict[str, Any] | None) -> str:
    return " ".join(f"{name} {value}" for name, value in engine.items()).removeprefix("name ") if engine else "eager"
