"""The CLIP filter: rejects images that look like another group than their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.model import digest_of_files, from_hub
from aimfair.generation.filters.towers import READ, Towers
from aimfair.generation.plan import Group
from aimfair.generation.reasons import OTHER_GROUP
from aimfair.prompts.grammar import plain_text
from aimfair.prompts.settings import PromptSettings

_KEY = "generate.filters.clip"


def clip_folder(model: str, allow_download: bool) -> Path:
    """The folder of a CLIP model in the layout of transformers.

    Args:
        model: the absolute path of a folder, or a hub id.

    Raises:
        AimfairError: there is no such model.
    """
    if not Path(model).is_absolute():
        return from_hub(_KEY, model, allow_download, READ)
    if not (Path(model) / "config.json").is_file():
        raise AimfairError(f"{_KEY}: {model} has no config.json, expected a folder of a CLIPModel")
    return Path(model)


def fingerprint(folder: Path) -> str:
    """SHA-256 of the files that are read."""
    return digest_of_files(folder, READ)


def plain_texts(settings: PromptSettings) -> dict[Group, list[str]]:
    """Group -> its prompts without contexts, one for each pair of words."""
    return {
        (y, a): [plain_text(settings.template, target, protected) for target in targets for protected in protecteds]
        for y, targets in enumerate(settings.targets)
        for a, protecteds in enumerate(settings.protected)
    }


class ClipAgreement:
    """Rejects an image unless its cosine with its own group exceeds that with every other group by a margin.

    Args:
        folder: a CLIPModel or SiglipModel with its tokenizer.
        texts: group -> texts.
        margin: 0: the own group must be the nearest.
        device: to run on.

    Raises:
        AimfairError: the model cannot be used.
    """

    def __init__(self, folder: Path, texts: Mapping[Group, Sequence[str]], margin: float, device: torch.device):
        self._towers, self._margin = Towers(_KEY, folder, device), margin
        self._groups = {group: row for row, group in enumerate(texts)}
        self._directions = self._towers.directions(list(texts.values()))

    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """ "other_group" or None; see :class:`ImageFilter`."""
        cosines = self._towers.cosines(images, self._directions)
        own = torch.tensor([self._groups[group] for group in groups])[:, None]
        others = cosines.scatter(1, own, -torch.inf).amax(1)
        agree = cosines.gather(1, own)[:, 0] - others > self._margin
        return [None if yes else OTHER_GROUP for yes in agree.tolist()]
