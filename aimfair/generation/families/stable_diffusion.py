"""Stable Diffusion 1.x and 2.x: a UNet that sees the text through one encoder."""

from typing import Any

import torch
from torch import Tensor, nn

from aimfair.generation.engines.interface import Part, Tensors
from aimfair.generation.families.decoder import decoder


class Denoiser(nn.Module):
    """What the UNet predicts, [B, C, h, w]."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> tuple[Tensor, ...]:
        return (self.unet(sample, timestep, encoder_hidden_states=embeddings, return_dict=False)[0],)


def parts(pipeline: Any, latents: tuple[int, int, int]) -> tuple[Part, ...]:
    """What runs for images whose latents have this shape, [C, h, w]."""
    unet = pipeline.unet
    embeddings = (pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim)
    denoiser = Part(
        "denoiser",
        Denoiser(unet).eval(),
        inputs={
            "sample": Tensors(latents, unet.dtype),
            "timestep": Tensors((), torch.float32, below=1000),
            "embeddings": Tensors(embeddings, unet.dtype),
        },
        outputs={"predicted": Tensors(latents, unet.dtype)},
    )
    return denoiser, decoder(pipeline, latents, unet.dtype)
