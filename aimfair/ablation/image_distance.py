"""The distance between two sets of images: kernel distance (KID) in the features of a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from aimfair.base.checked_weights import load_model
from aimfair.base.errors import AimfairError, ConfigError
from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.memory import MicroBatch, pieces
from aimfair.data.images import ImageSet
from aimfair.diffusion.model import diffusion_libraries
from aimfair.generation.filters.towers import View
from aimfair.training.execution import logits, prepare
from aimfair.training.feed import Normalize
from aimfair.training.head import head_names
from aimfair.training.settings import ModelSettings

Extractor = Callable[[npt.NDArray[np.uint8]], Tensor]
"""uint8 [B, H, W, 3] -> float32 [B, D] on the CPU."""

MOST = 5000
"""Of a larger set, so many images are compared, evenly spaced."""

_FLAG = "--features"
_ROWS = 1024  # of a kernel matrix at a time
_BATCH = 256
_SIDE = 224  # pixels that DINO models are used with; their positions are interpolated


def kid(first: Tensor, second: Tensor) -> float:
    """The squared maximum mean discrepancy of two sets of features, [N, D] and [M, D].

    Unbiased for sets of any size, and so below zero where two sets differ less than chance (Gretton et al., JMLR 13,
    2012, lemma 6), with the kernel (x . y / D + 1)^3 (Binkowski et al., Demystifying MMD GANs, ICLR 2018, arXiv
    1801.01401); over all pairs instead of random subsets. Values compare within one kind of features only.

    Raises:
        ValueError: a set has fewer than two images.
    """
    x, y = first.double(), second.double()
    if min(len(x), len(y)) < 2:
        raise ValueError(f"sets of {len(x)} and {len(y)} images, expected two of each at least")
    return _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _within(x: Tensor) -> float:
    """Mean over the pairs of two different images."""
    diagonal = float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    return sum(float((part @ y.T / x.shape[1] + 1).pow(3).sum()) for part in torch.split(x, _ROWS))


def features_of(images: ImageSet, extract: Extractor, interrupt: Interrupt = NEVER) -> Tensor:
    """float32 [N, D], of at most :data:`MOST` images."""
    chosen = np.unique(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(np.int64))
    found = []
    for start in range(0, len(chosen), _BATCH):
        interrupt.check()
        found.append(extract(np.asarray(images.images[chosen[start : start + _BATCH]])))
    return torch.cat(found)


class HeadInputs:
    """What the last layer of a classifier sees: its penultimate features.

    Args:
        image_size: pixels along each side.
        where: prefix of errors.

    Raises:
        AimfairError: the last layer cannot be determined.
    """

    def __init__(self, model: nn.Module, settings: ModelSettings, image_size: int, device: torch.device, where: str):
        owners = dict.fromkeys(name.rpartition(".")[0] for name in head_names(model, image_size, where))
        self._model, self._normalize = model.to(device), Normalize(settings, device)
        prepare(self._model, settings)
        self._model.eval()
        self._heads = [self._model.get_submodule(name) for name in owners]
        self._fitting = MicroBatch(_BATCH)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        return _in_pieces(images, self._extract, self._fitting)

    @torch.inference_mode()
    def _extract(self, images: npt.NDArray[np.uint8]) -> Tensor:
        seen: list[Tensor] = []
        hooks = [head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for head in self._heads]
        try:
            logits(self._model, self._normalize(images))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([_pooled(one).float().cpu() for one in seen], dim=1)


def _in_pieces(
    images: npt.NDArray[np.uint8], extract: Callable[[npt.NDArray[np.uint8]], Tensor], fitting: MicroBatch
) -> Tensor:
    """Features [N, D] of all images, as many at a time as fit."""
    return fitting.attempt(lambda size: torch.cat([extract(images[part]) for part in pieces(len(images), size)]))


def _pooled(inputs: Tensor) -> Tensor:
    """[B, D] of what a linear layer or a convolution, [B, D, H, W], reads."""
    return inputs.flatten(2).mean(2) if inputs.ndim > 2 else inputs


class PretrainedFeatures:
    """The image features of a CLIP model, or the pooled output of another vision model, such as DINOv2.

    Args:
        folder: in the layout of transformers.

    Raises:
        AimfairError: there is no such model, or it cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device):
        with diffusion_libraries():
            from transformers import AutoModel
        self._folder = folder
        self._model = load_model(_FLAG, folder, AutoModel).float().eval().requires_grad_(False).to(device)
        self._of_clip = getattr(self._model, "get_image_features", None)
        config = self._model.config
        size = getattr(getattr(config, "vision_config", config), "image_size", _SIDE)
        self._view = View(_FLAG, folder, size if self._of_clip else min(size, _SIDE), device)
        self._fitting = MicroBatch(_BATCH)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        return _in_pieces(images, self._extract, self._fitting)

    @torch.inference_mode()
    def _extract(self, images: npt.NDArray[np.uint8]) -> Tensor:
        output: Any = (self._of_clip or self._model)(pixel_values=self._view(images))
        features = output if isinstance(output, Tensor) else getattr(output, "pooler_output", None)
        if features is None:
            raise AimfairError(f"{_FLAG}: {self._folder}: a model without pooled features, expected CLIP or DINO")
        return features.flatten(1).float().cpu()


def features_folder(typed: str | None) -> Path | None:
    """The folder that ``--features`` names.

    Raises:
        ConfigError: it holds no model.
    """
    if typed is None:
        return None
    folder = Path(typed).expanduser().absolute()
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{_FLAG}: {typed} has no config.json, expected the folder of a CLIP or DINO model")
    return folder
