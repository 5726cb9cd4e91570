"""CLIP and SigLIP: how close an image is to texts."""

import json
from collections.abc import Sequence
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
from aimfair.diffusion.model import diffusion_libraries

READ = ("config.json", "preprocessor_config.json", "*.safetensors", "tokenizer*", "vocab.json", "merges.txt",
        "special_tokens_map.json", "spiece.model")  # fmt: skip
"""The files of a model that are read."""

CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
"""model_type in config.json -> class of transformers."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training
_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Preprocessor(BaseModel):
    """The part of preprocessor_config.json that matters: mean and deviation of red, green and blue in [0, 1]."""

    image_mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    image_std: tuple[_Positive, _Positive, _Positive] | None = None


class Towers:
    """A model with a tower for images and one for texts, whose embeddings are compared by their cosine.

    Args:
        key: the setting that names the folder, for errors.
        folder: a CLIPModel or SiglipModel with its tokenizer.
        device: to run on.

    Attributes:
        scale: factor of the cosines of an image with several texts whose softmax are probabilities.

    Raises:
        AimfairError: the model cannot be used.
    """

    def __init__(self, key: str, folder: Path, device: torch.device):
        kind = CLASSES.get(str(model_config(key, folder).get("model_type")), "CLIPModel")
        with diffusion_libraries():
            import transformers
        self._model = load_model(key, folder, getattr(transformers, kind))
        self._model = self._model.float().eval().requires_grad_(False).to(device)
        self._tokenizer, self._device = load_tokenizer(key, folder), device
        size = self._model.config.vision_config.image_size
        if kind == "SiglipModel":
            self._view = View(key, folder, size, device, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
            length = self._model.config.text_config.max_position_embeddings
            self._padding = {"padding": "max_length", "max_length": length}  # as in its training, it masks nothing
        else:
            self._view = View(key, folder, size, device)
            self._padding = {"padding": True}
        self._fitting = MicroBatch(256)
        self.scale = float(self._model.logit_scale.exp())

    @torch.inference_mode()
    def directions(self, texts: Sequence[Sequence[str]]) -> Tensor:
        """[len(texts), D] unit vectors; each is the direction of the mean of the unit embeddings of some texts."""
        return torch.stack([self._direction(some) for some in texts])

    @torch.inference_mode()
    def cosines(self, images: npt.NDArray[np.uint8], directions: Tensor) -> Tensor:
        """[B, K], on the CPU, of uint8 [B, H, W, 3] with [K, D] unit vectors."""
        return self._fitting.attempt(
            lambda size: torch.cat([self._cosines(images[part], directions) for part in pieces(len(images), size)])
        )

    def _cosines(self, images: npt.NDArray[np.uint8], directions: Tensor) -> Tensor:
        features = _features(self._model.get_image_features(pixel_values=self._view(images)))
        return (_unit(features) @ directions.T).cpu()

    def _direction(self, texts: Sequence[str]) -> Tensor:
        words = self._tokenizer(list(texts), truncation=True, return_tensors="pt", **self._padding).to(self._device)
        taken = {name: words[name] for name in ("input_ids", "attention_mask") if name in words}
        return _unit(_unit(_features(self._model.get_text_features(**taken))).mean(0))


class View:
    """Resizes images to a square and normalizes them, as preprocessor_config.json says.

    Args:
        key: the setting that names the folder, for error messages.
        folder: where preprocessor_config.json may be.
        size: pixels along each side.
        mean, std: of red, green and blue in [0, 1], if it is not there.

    Raises:
        AimfairError: preprocessor_config.json is damaged.
    """

    def __init__(
        self,
        key: str,
        folder: Path,
        size: int | tuple[int, int],
        device: torch.device,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ):
        found = _preprocessor(key, folder / "preprocessor_config.json")
        given = found.image_mean or mean, found.image_std or std
        self._mean, self._std = (torch.tensor(values, device=device)[:, None, None] for values in given)
        self._size, self._device = (size, size) if isinstance(size, int) else size, device

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """uint8 [B, S, S, 3] -> float32 [B, 3, H, W]."""
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255
        pixels = torch.nn.functional.interpolate(
            pixels, self._size, mode="bicubic", antialias=True, align_corners=False
        )
        return (pixels.clamp(0, 1) - self._mean) / self._std


def model_config(key: str, folder: Path) -> dict[str, Any]:
    """config.json of a model's folder.

    Raises:
        AimfairError: it is missing or damaged.
    """
    path = folder / "config.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise AimfairError(f"{key}: {folder} has no config.json, expected the folder of a model") from error
    except ValueError as error:
        raise AimfairError(f"{key}: {path}: {error}; fetch or copy it again") from error
    if not isinstance(found, dict):
        raise AimfairError(f"{key}: {path}: found a {type(found).__name__}, expected an object; fetch or copy it again")
    return found


def _preprocessor(key: str, file: Path) -> _Preprocessor:
    try:
        return _Preprocessor.model_validate_json(file.read_bytes() if file.exists() else b"{}")
    except ValidationError as error:
        raise AimfairError(f"{key}: {file}: {first_fault(error)}; fetch or copy it again") from error


def _features(output: Any) -> Tensor:
    """transformers returns a tensor, since 5.0 wrapped in an output object."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return features


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors, dim=-1)
