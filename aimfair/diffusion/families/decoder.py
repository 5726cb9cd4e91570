"""The second half of an autoencoder, which all families have."""

from typing import Any

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.interface import Part, Tensors
from aimfair.diffusion.families.family import Latents, Pipeline


class Decoder(nn.Module):
    """Pixels [B, 3, H, W], about -1 to 1, of latents [B, C, h, w] as the last step leaves them."""

    latents_std: Tensor | None
    latents_mean: Tensor | None

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae
        config = vae.config
        self._scale, self._shift = config.scaling_factor, config.shift_factor
        for name in ("latents_std", "latents_mean"):  # of each channel; few models have them
            values = config[name]
            if values is not None:
                values = torch.tensor(values, dtype=vae.dtype, device=vae.device).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        latents = latents.to(self.vae.dtype)
        if self.latents_std is not None:
            latents = latents * self.latents_std
        latents = latents / self._scale
        for offset in (self._shift, self.latents_mean):
            if offset is not None:
                latents = latents + offset
        images: Tensor = self.vae.decode(latents, return_dict=False)[0]
        return (images,)


def decoder(pipeline: Pipeline, latents: Latents, dtype: torch.dtype) -> Part:
    """The part for latents of that dtype."""
    return Part(
        "decoder",
        Decoder(pipeline.vae).eval(),
        inputs={"latents": Tensors(latents, dtype)},
        outputs={"images": images(pipeline, latents)},
    )


def images(pipeline: Pipeline, latents: Latents) -> Tensors:
    """What comes out: [3, H, W]."""
    vae, factor = pipeline.vae, pipeline.vae_scale_factor
    return Tensors((vae.config.out_channels, latents[1] * factor, latents[2] * factor), vae.dtype)
