"""The filters that the settings name: what tells them from others, and, loaded only when needed, they themselves."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from aimfair.config import Config
from aimfair.generation.filters.interface import ImageFilter
from aimfair.generation.settings import FilterSettings

if TYPE_CHECKING:
    import torch


def filter_facts(config: Config, model: Path) -> dict[str, Any]:
    """What the decisions of the filters depend on, in JSON's types: equal for filters that reject the same images.

    Args:
        model: folder of the text-to-image model.

    Raises:
        AimfairError: a model or a hook is not there.
    """
    settings, facts = config.generate.filters, dict[str, Any]()
    if settings == FilterSettings():
        return facts  # before torch is imported, which takes a second
    from aimfair.generation.filters import clip, hooks, safety

    if settings.near_duplicates is not None:
        facts["near_duplicates"] = settings.near_duplicates
    if settings.clip is not None:
        folder = clip.clip_folder(settings.clip, config.generate.allow_download)
        texts = [[y, a, texts] for (y, a), texts in clip.plain_texts(config.prompts).items()]
        facts["clip"] = {"model": clip.fingerprint(folder), "margin": settings.clip_margin, "texts": texts}
    if settings.safety:
        facts["safety"] = safety.fingerprint(safety.safety_folder(config.generate, model))
    if settings.hooks:
        facts["hooks"] = {hook: hooks.fingerprint(hook) for hook in settings.hooks}
    return facts


def load_filters(config: Config, model: Path, device: "torch.device") -> list[ImageFilter]:
    """Those that look at images by themselves; near-duplicates take two.

    Raises:
        AimfairError: one of them cannot be used.
    """
    settings, found = config.generate.filters, list[ImageFilter]()
    if settings == FilterSettings():
        return found
    from aimfair.generation.filters import clip, hooks, safety

    if settings.clip is not None:
        folder = clip.clip_folder(settings.clip, config.generate.allow_download)
        found.append(clip.ClipAgreement(folder, clip.plain_texts(config.prompts), settings.clip_margin, device))
    if settings.safety:
        found.append(safety.SafetyChecker(safety.safety_folder(config.generate, model), device))
    found.extend(hooks.Hook(hook) for hook in settings.hooks)
    return found
