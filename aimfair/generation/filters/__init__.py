"""Filters: images that are not kept. Each is loaded only where ``generate.filters`` asks for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from aimfair.generation.filter_settings import FilterSettings
from aimfair.generation.plan import Group
from aimfair.generation.settings import GenerateSettings
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


@runtime_checkable
class Scorer(Protocol):
    """Gives every image a number, by which the worst of a group are rejected once all are made."""

    def scores(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> Sequence[float]:
        """B finite numbers; more is better. Arguments as of :class:`ImageFilter`."""


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
    from aimfair.generation.filters import attributes, clip, faces, hooks, quality, safety

    if filters.near_duplicates is not None:
        facts["near_duplicates"] = filters.near_duplicates
    if filters.near_duplicates_share is not None:
        facts["near_duplicates_share"] = filters.near_duplicates_share
    if filters.near_duplicates_attempts is not None:
        facts["near_duplicates_attempts"] = filters.near_duplicates_attempts
    if filters.clip is not None:
        folder = clip.clip_folder(filters.clip, settings.allow_download)
        texts = [[y, a, texts] for (y, a), texts in clip.plain_texts(prompts).items()]
        facts["clip"] = {"model": clip.fingerprint(folder), "margin": filters.clip_margin, "texts": texts}
    facts |= attributes.facts(settings, prompts)
    if filters.faces is not None:
        facts["faces"] = faces.facts(filters.faces)
    if filters.quality is not None:
        facts["quality"] = quality.facts(filters.quality, settings.allow_download)
    if filters.safety:
        facts["safety"] = safety.fingerprint(safety.safety_folder(settings, model))
    if filters.hooks:
        facts["hooks"] = {hook: hooks.fingerprint(hook) for hook in filters.hooks}
    return facts


def load_filters(
    settings: GenerateSettings, prompts: PromptSettings, model: Path, device: "torch.device"
) -> list[ImageFilter | Scorer]:
    """What judges images one by one, in this order, and what scores them. :mod:`aimfair.generation.rounds` compares the
    scores and near-duplicates.

    Raises:
        AimfairError: one of them cannot be loaded.
    """
    filters, found = settings.filters, list[ImageFilter | Scorer]()
    if filters == FilterSettings():
        return found
    from aimfair.generation.filters import attributes, clip, faces, hooks, quality, safety

    if filters.clip is not None:
        folder = clip.clip_folder(filters.clip, settings.allow_download)
        found.append(clip.ClipAgreement(folder, clip.plain_texts(prompts), filters.clip_margin, device))
    if filters.attributes:
        found.append(attributes.Attributes(settings, prompts, device))
    if filters.faces is not None:
        found.append(faces.Faces(filters.faces))
    if filters.safety:
        found.append(safety.SafetyChecker(safety.safety_folder(settings, model), device))
    found.extend(hooks.Hook(hook) for hook in filters.hooks)
    if filters.quality is not None:
        found.append(quality.Quality(filters.quality, settings.allow_download, device))
    return found
