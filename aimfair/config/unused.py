"""Settings that were given a value and have no effect beside the others."""

from collections.abc import Iterator

from aimfair.base.settings import Settings
from aimfair.config.tree import Config
from aimfair.generation.settings import GenerateSettings
from aimfair.training.settings import OptimizerSettings
from aimfair.tuning.settings import TuneSettings

_STORED = {"storage", "images_per_shard"}

_OF_IMPORTS = {"folder", "balanced_per_group", "biased_total", "minority_ratio", "disjoint", "seed"} | _STORED

_OF_EMOJI = (_OF_IMPORTS - {"folder"}) | {"emoji", "image_format", "batch_size", "max_rejections"}


def without_effect(config: Config) -> Iterator[str]:
    """A line for each such setting, "<key>: <reason>". Values that are the default say nothing."""
    generate, prompts = config.generate, config.prompts
    if not generate.in_use:
        imported = generate.folder is not None
        reason = f"images are {'imported' if imported else 'drawn'}: {generate.instead}"
        used = _OF_IMPORTS if imported else _OF_EMOJI
        yield from _lines("generate", generate, set(GenerateSettings.model_fields) - used, reason)
        yield from _lines("prompts", prompts, {"provider", "per_group", "seed"}, reason)
    else:
        if not generate.engine.startswith("tensorrt") and generate.engine != "auto":
            yield from _lines("generate", generate, {"tensorrt"}, f"generate.engine is {generate.engine}")
        if prompts.provider == "grammar":
            yield from _lines("prompts", prompts, {"llm"}, "prompts.provider is grammar")
    if generate.storage == "files":
        yield from _lines("generate", generate, {"images_per_shard"}, "generate.storage is files")
    if not config.tune.trials:
        yield from _lines("tune", config.tune, set(TuneSettings.model_fields) - {"trials"}, "tune.trials is 0")
    yield from _of_training("train", config.train)
    yield from _of_training("finetune", config.finetune)


def _of_training(node: str, settings: OptimizerSettings) -> Iterator[str]:
    if settings.optimizer != "sgd":
        yield from _lines(node, settings, {"momentum"}, f"{node}.optimizer is {settings.optimizer}")
    if settings.schedule != "step":
        yield from _lines(node, settings, {"step_epochs"}, f"{node}.schedule is {settings.schedule}")


def _lines(node: str, settings: Settings, names: set[str], reason: str) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if name in names and value != field.get_default(call_default_factory=True):
            yield f"{node}.{name}: has no effect, {reason}"
