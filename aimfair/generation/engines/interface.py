"""An engine as those who use it see it, and what one is made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """Runs the denoiser and the decoder of one model at one size of image, any number B of images at a time."""

    def denoise(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """One step.

        Args:
            sample: latents [B, C, h, w], in the dtype and on the device of the model, as all others but ``timestep``.
            timestep: float32 [B].
            embeddings: of the texts, [B, L, D].

        Returns:
            What the model predicts, [B, C, h, w].
        """

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], about -1 to 1, of scaled-back latents [B, C, h, w]."""


@dataclass(frozen=True)
class Shapes:
    """Of the tensors of one image.

    Attributes:
        latents: (C, h, w).
        embeddings: (L tokens, D).
        image: (3, H, W).
    """

    latents: tuple[int, int, int]
    embeddings: tuple[int, int]
    image: tuple[int, int, int]


@dataclass(frozen=True)
class Source:
    """What an engine is made from.

    Attributes:
        folder: of the model.
        unet, vae: its modules from diffusers, which has no types.
        shapes: of what will go through it.
        dtype, device: of its weights.
    """

    folder: Path
    unet: torch.nn.Module
    vae: torch.nn.Module
    shapes: Shapes
    dtype: torch.dtype
    device: torch.device
