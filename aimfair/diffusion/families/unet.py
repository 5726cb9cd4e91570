"""Shared by the two families with a UNet."""

import math

import torch
from torch import Tensor

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Tensors
from aimfair.diffusion.families.family import Latents, Pipeline, StandIn, require_multiple


def unet_latents(pipeline: Pipeline, render_size: int | None) -> Latents:
    """As :meth:`Family.latents`."""
    unet, factor = pipeline.unet.config, pipeline.vae_scale_factor
    if not isinstance(unet.sample_size, int):
        raise AimfairError(f"generate.model: has latents of size {unet.sample_size}, expected square ones")
    own = unet.sample_size * factor
    size = render_size or own
    require_multiple(size, math.lcm(8, factor * 2 ** (len(unet.block_out_channels) - 1)), own)
    return unet.in_channels, size // factor, size // factor


def unet_inputs(pipeline: Pipeline, latents: Latents, tokens: int) -> tuple[dict[str, Tensors], dict[str, Tensors]]:
    """The inputs of every UNet, and those that one with the guidance scale as an input has after all others."""
    config, dtype = pipeline.unet.config, pipeline.unet.dtype
    inputs = {
        "sample": Tensors(latents, dtype),
        "timestep": Tensors((), torch.float32, below=1000),
        "embeddings": Tensors((tokens, config.cross_attention_dim), dtype),
    }
    if config.time_cond_proj_dim is None:
        return inputs, {}
    return inputs, {"timestep_cond": Tensors((config.time_cond_proj_dim,), dtype)}


def unet_guided(pipeline: Pipeline, scale: float) -> bool:
    """As :meth:`Family.guided`; diffusers applies no guidance up to 1."""
    return scale > 1 and pipeline.unet.config.time_cond_proj_dim is None


def scale_of_guidance(unet: StandIn, timestep_cond: Tensor | None, batch: int) -> tuple[Tensor, ...]:
    """The embedded guidance scale as an input [B, D], if there is one.

    Raises:
        AimfairError: it is given, but the model has no such input.
    """
    if unet.config.time_cond_proj_dim is None:
        unet.refuse({"timestep_cond": timestep_cond})
    return () if timestep_cond is None else (timestep_cond.expand(batch, -1),)
