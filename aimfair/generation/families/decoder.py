"""The second half of an autoencoder, which all families have."""

from typing import Any

import torch
from torch import Tensor, nn

from aimfair.generation.engines.interface import Part, Tensors


class Decoder(nn.Module):
    """Pixels [B, 3, H, W], about -1 to 1, of latents [B, C, h, w] as the last step leaves them."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        self._scale, self._shift = vae.config.scaling_factor, vae.config.shift_factor

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        latents = latents / self._scale
        if self._shift is not None:
            latents = latents + self._shift
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (images,)


def decoder(pipeline: Any, latents: tuple[int, int, int], dtype: torch.dtype) -> Part:
    """The part for latents [C, h, w] of that dtype."""
    vae = pipeline.vae
    factor = pipeline.vae_scale_factor
    image = (vae.config.out_channels, latents[1] * factor, latents[2] * factor)
    return Part(
        "decoder",
        Decoder(vae).eval(),
        inputs={"latents": Tensors(latents, dtype)},
        outputs={"images": Tensors(image, vae.dtype)},
    )
