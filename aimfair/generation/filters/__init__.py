"""Filters: images that are not kept. Each is loaded only where ``generate.filters`` asks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from aimfair.generation.plan import Group
from aimfair.generation.settings import FilterSettings, GenerateSettings
from aimfair.prompts.settings import PromptSettings

if TYPE_CHECKING:
    import torch


class ImageFilter(Protocol):
    """Judges every image on its own, a batch at a time, between two batches of the sampler."""

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> Sequence[str | None]:
        """Why each image is rejected, in one word; None if it is kept.

        Args:
            images: uint8 [B, H, W, 3], as generated, before they are reduced.
            groups: the B groups that they should show.
        """


def filter_facts(settings: GenerateSettings, prompts: PromptSettings, model: Path) -> dict[str, Any]:
    """What the filters' decisions depend on, in JSON types: equal for filters that reject the same images.

    Args:
        prompts: their words describe the groups to CLIP.
        model: folder of the text-to-image model.

    Raises:
        AimfairError: a model or a hook is missing.
    """
    filters, facts = settings.filters, dict[str, Any]()
    if filters == FilterSettings():
        return facts  # before torch is imported, which takes a second
    from aimfair.generation.filters import clip, hooks, safety

    if filters.near_duplicates is not None:
        facts["near_duplicates"] = filters.near_duplicates
    if filters.clip is not None:
        folder = clip.clip_folder(filters.clip, settings.allow_download)
        texts = [[y, a, texts] for (y, a), texts in clip.plain_texts(prompts).items()]
        facts["clip"] = {"model": clip.fingerprint(folder), "margin": filters.clip_margin, "texts": texts}
    if filters.safety:
        facts["safety"] = safety.fingerprint(safety.safety_folder(settings, model))
    if filters.hooks:
        facts["hooks"] = {hook: hooks.fingerprint(hook) for hook in filters.hooks}
    return facts


def load_filters(
    settings: GenerateSettings, prompts: PromptSettings, model: Path, device: "torch.device"
) -> list[ImageFilter]:
    """The filters that judge images one by one; near-duplicates are compared by :mod:`aimfair.generation.rounds`.

    Raises:
        AimfairError: one of them cannot be loaded.
    """
    filters, found = settings.filters, list[ImageFilter]()
    if filters == FilterSettings():
        return found
    from aimfair.generation.filters import clip, hooks, safety

    if filters.clip is not None:
        folder = clip.clip_folder(filters.clip, settings.allow_download)
        found.append(clip.ClipAgreement(folder, clip.plain_texts(prompts), filters.clip_margin, device))
    if filters.safety:
        found.append(safety.SafetyChecker(safety.safety_folder(settings, model), device))
    found.extend(hooks.Hook(hook) for hook in filters.hooks)
    return found
