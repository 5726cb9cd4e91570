"""The safety filter: Stable Diffusion's own checker, run by diffusers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from aimfair.base.checked_weights import load_model
from aimfair.base.errors import AimfairError
from aimfair.base.memory import MicroBatch, pieces
from aimfair.diffusion.model import SHIPPED, diffusion_libraries, digest_of_files, from_hub
from aimfair.generation.filters.towers import View
from aimfair.generation.plan import Group
from aimfair.generation.reasons import UNSAFE
from aimfair.generation.settings import GenerateSettings

_KEY = "generate.filters.safety"
_READ = ("safety_checker/config.json", "safety_checker/*.safetensors", "feature_extractor/preprocessor_config.json")


def safety_folder(settings: GenerateSettings, model: Path) -> Path:
    """The folder of the text-to-image model, with its safety checker.

    Args:
        model: the folder of the model itself.

    Raises:
        AimfairError: the model has no checker.
    """
    if settings.model not in SHIPPED and not Path(settings.model).is_absolute():
        model = from_hub(_KEY, settings.model, settings.allow_download, _READ)
    if not (model / "safety_checker" / "config.json").is_file():
        raise AimfairError(f"{_KEY}: {model} has no safety_checker; set it to false, or take a model that has one")
    return model


def fingerprint(folder: Path) -> str:
    """SHA-256 of the files that are read."""
    return digest_of_files(folder, _READ)


class SafetyChecker:
    """The checker of diffusers with its own thresholds.

    Args:
        folder: of the text-to-image model.

    Raises:
        AimfairError: the checker cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device):
        with diffusion_libraries():
            import diffusers
            from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        diffusers.utils.logging.set_verbosity_error()
        checker = load_model(_KEY, folder / "safety_checker", StableDiffusionSafetyChecker)
        self._checker = checker.float().eval().to(device)
        size = checker.config.vision_config.image_size
        self._fitting = MicroBatch(256)
        self._view = View(_KEY, folder / "feature_extractor", size, device)

    @torch.inference_mode()
    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """ "unsafe" or None; see :class:`ImageFilter`."""
        return self._fitting.attempt(
            lambda size: [reason for part in pieces(len(images), size) for reason in self._reasons(images[part])]
        )

    def _reasons(self, images: npt.NDArray[np.uint8]) -> list[str | None]:
        blackened = [np.zeros((1, 1, 3), dtype=np.float32) for _ in images]  # the checker paints over what it is given
        _, unsafe = self._checker(images=blackened, clip_input=self._view(images))
        return [UNSAFE if objection else None for objection in unsafe]
