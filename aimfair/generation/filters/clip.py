"""The CLIP filter: rejects images that look like another group than their own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import Tensor

from aimfair.base.checked_weights import load_model, load_tokenizer
from aimfair.base.errors import AimfairError
from aimfair.base.memory import MicroBatch, pieces
from aimfair.base.settings import first_fault
from aimfair.diffusion.model import diffusion_libraries, digest_of_files, from_hub
from aimfair.generation.plan import Group
from aimfair.prompts.grammar import plain_text
from aimfair.prompts.settings import PromptSettings

_READ = ("config.json", "preprocessor_config.json", "*.safetensors", "tokenizer*", "vocab.json", "merges.txt",
         "special_tokens_map.json")  # fmt: skip
_KEY = "generate.filters.clip"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training
_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Preprocessor(BaseModel):
    """The part of preprocessor_config.json that matters: mean and deviation of red, green and blue in [0, 1]."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] = _MEAN
    image_std: tuple[_Positive, _Positive, _Positive] = _STD


def clip_folder(model: str, allow_download: bool) -> Path:
    """The folder of a CLIP model in the layout of transformers.

    Args:
        model: the absolute path of a folder, or a hub id.

    Raises:
        AimfairError: there is no such model.
    """
    if not Path(model).is_absolute():
        return from_hub(_KEY, model, allow_download, _READ)
    if not (Path(model) / "config.json").is_file():
        raise AimfairError(f"{_KEY}: {model} has no config.json, expected a folder of a CLIPModel")
    return Path(model)


def fingerprint(folder: Path) -> str:
    """SHA-256 of the files that are read."""
    return digest_of_files(folder, _READ)


def plain_texts(settings: PromptSettings) -> dict[Group, list[str]]:
    """Group -> its prompts without contexts, one for each pair of words."""
    return {
        (y, a): [plain_text(settings.template, target, protected) for target in targets for protected in protecteds]
        for y, targets in enumerate(settings.targets)
        for a, protecteds in enumerate(settings.protected)
    }


class ClipAgreement:
    """Rejects an image unless its cosine with its own group exceeds that with every other group by a margin.

    The direction of a group is that of the mean of its texts' unit embeddings.

    Args:
        folder: a CLIPModel with its tokenizer.
        texts: group -> texts.
        margin: 0: the own group must be the nearest.
        device: to run on.

    Raises:
        AimfairError: the model cannot be used.
    """

    def __init__(self, folder: Path, texts: Mapping[Group, Sequence[str]], margin: float, device: torch.device):
        self._model, tokenizer = _load(folder, device)
        self._device, self._margin = device, margin
        self._groups = {group: row for row, group in enumerate(texts)}
        self._view = ClipView(_KEY, folder, self._model.config.vision_config.image_size, device)
        self._fitting = MicroBatch(256)
        with torch.inference_mode():
            self._directions = torch.stack([self._direction(of_group, tokenizer) for of_group in texts.values()])

    @torch.inference_mode()
    def reasons(self, images: npt.NDArray[np.uint8], groups: Sequence[Group]) -> list[str | None]:
        """ "other_group" or None; see :class:`ImageFilter`."""
        cosines = self._fitting.attempt(
            lambda size: torch.cat([self._cosines(images[part]) for part in pieces(len(images), size)])
        )  # [B, groups]
        own = torch.tensor([self._groups[group] for group in groups])[:, None]
        others = cosines.scatter(1, own, -torch.inf).amax(1)
        agree = cosines.gather(1, own)[:, 0] - others > self._margin
        return [None if yes else "other_group" for yes in agree.tolist()]

    def _cosines(self, images: npt.NDArray[np.uint8]) -> Tensor:
        features = _features(self._model.get_image_features(pixel_values=self._view(images)))
        return (_unit(features) @ self._directions.T).cpu()

    def _direction(self, texts: Sequence[str], tokenizer: Any) -> Tensor:
        words = tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        return _unit(_unit(_features(self._model.get_text_features(**words))).mean(0))


class ClipView:
    """Resizes and normalizes images as in CLIP's training.

    Args:
        key: the setting that names the folder, for error messages.
        folder: where preprocessor_config.json may be.
        size: pixels along each side.

    Raises:
        AimfairError: preprocessor_config.json is damaged.
    """

    def __init__(self, key: str, folder: Path, size: int, device: torch.device):
        mean, std = _mean_and_std(key, folder / "preprocessor_config.json")
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in (mean, std))
        self._size, self._device = size, device

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, size, size]."""
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        pixels = torch.nn.functional.interpolate(
            pixels, (self._size, self._size), mode="bicubic", antialias=True, align_corners=False
        )
        return (pixels.clamp(0, 1) - self._mean) / self._std


def _mean_and_std(key: str, file: Path) -> tuple[Sequence[float], Sequence[float]]:
    """See :class:`_Preprocessor`."""
    try:
        found = _Preprocessor.model_validate_json(file.read_bytes() if file.exists() else b"{}")
    except ValidationError as error:
        raise AimfairError(f"{key}: {file}: {first_fault(error)}; fetch or copy it again") from error
    return found.image_mean, found.image_std


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    with diffusion_libraries():
        from transformers import CLIPModel
    model = load_model(_KEY, folder, CLIPModel)
    tokenizer = load_tokenizer(_KEY, folder)
    return model.float().eval().requires_grad_(False).to(device), tokenizer


def _features(output: Any) -> Tensor:
    """transformers returns a tensor, since 5.0 wrapped in an output object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
