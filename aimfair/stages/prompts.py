"""Writes the prompts of every group, and measures their diversity."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from aimfair.prompts import diversity
from aimfair.prompts.grammar import Prompt, fill_templates, save_prompts, write_prompts
from aimfair.run.directory import Run

if TYPE_CHECKING:
    from aimfair.prompts.providers import ChatModel

_PATIENCE = {"timeout", "retries", "max_wait", "max_fruitless", "json_schema"}
"""Settings that decide whether prompts are received, but not which are accepted."""


def run(run: Run) -> None:
    if (instead := run.config.generate.instead) is not None:
        run.log.tell(f"prompts: none, the images are those of {instead}")
        return
    inputs = _inputs(run)
    if run.is_done("prompts", inputs):
        return
    settings = run.config.prompts
    prompts = write_prompts(settings) if settings.provider == "grammar" else _ask(run)
    save_prompts(run.prompts, prompts)
    found = diversity.measure(prompts, settings)
    found.save(run.diversity)
    farthest = found.greatest_difference
    run.log("prompts", prompts=len(prompts), greatest_difference=farthest and [farthest.name, farthest.difference])
    run.finish("prompts", inputs, [run.prompts, run.diversity])


def _inputs(run: Run) -> dict[str, Any]:
    """The words themselves, without the vocabulary that they came from."""
    settings, data = run.config.prompts, run.config.data
    if settings.provider == "grammar":
        return {"prompts": settings.model_dump(mode="json", exclude={"llm": True, "vocabulary": True})}
    values = settings.model_dump(mode="json", exclude={"llm": _PATIENCE, "vocabulary": True})
    return {"prompts": values, "target": data.target, "protected": data.protected}


def _ask(run: Run) -> list[Prompt]:
    from aimfair.prompts.providers.templates import ask_for_templates

    settings, data = run.config.prompts, run.config.data
    with _chat_model(run) as model:
        templates = ask_for_templates(
            model,
            settings,
            data.target,
            data.protected,
            run.templates,
            log=run.log,
            progress=run.progress,
            interrupt=run.interrupt,
        )
    return fill_templates(settings, [(template.text, template.contexts) for template in templates])


@contextmanager
def _chat_model(run: Run) -> Iterator["ChatModel"]:
    settings = run.config.prompts
    if settings.provider == "openai":
        from aimfair.prompts.providers.endpoint import Endpoint

        with closing(Endpoint(settings.llm, log=run.log, interrupt=run.interrupt)) as endpoint:
            yield endpoint
    else:
        from aimfair.base.device import choose_device
        from aimfair.prompts.providers.local import LocalModel

        yield LocalModel(settings.llm, settings.seed, choose_device(run.config.device), interrupt=run.interrupt)
