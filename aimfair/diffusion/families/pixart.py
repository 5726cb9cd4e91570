"""PixArt-alpha and PixArt-Sigma: a transformer conditioned on T5."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import Family, Latents, Pipeline, Vocabulary, decoder, require_multiple
from aimfair.diffusion.families.masked import MaskedDenoiser, MaskedDenoiserStandIn, masked_inputs
from aimfair.diffusion.families.rotary import twin


class Projection(nn.Module):
    """The last layer, [B, N, D] -> [B, 1, N, D]: diffusers squeezes that dimension, which ONNX does only if it is 1."""

    def __init__(self, linear: nn.Module):
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        projected: Tensor = self.linear(hidden)
        return projected.unsqueeze(1)


class Denoiser(MaskedDenoiser):
    """Its transformer may take the image size, as alpha's for 1024 pixels does."""

    def __init__(self, transformer: Any, size: int):
        super().__init__(twin(transformer))
        self.transformer.proj_out = Projection(transformer.proj_out)
        self._size = float(size)

    def conditions(self, batch: int) -> dict[str, Any]:
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.transformer.use_additional_conditions:
            like = self.transformer.scale_shift_table
            added = {"resolution": like.new_full((batch, 2), self._size), "aspect_ratio": like.new_ones(batch, 1)}
        return {"added_cond_kwargs": added}


class DenoiserStandIn(MaskedDenoiserStandIn):
    constants = ("added_cond_kwargs",)


class PixArtSigma(Family):
    pipeline = "PixArtSigmaPipeline"
    models = "PixArt-Sigma"
    components = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    without: ClassVar[dict[str, Any]] = {}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar[dict[str, tuple[str, ...]]] = {}
    embeddings = ("prompt_embeds", "prompt_attention_mask")
    length: ClassVar[int] = 300
    """Tokens, as trained."""

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
        own = config.sample_size * factor
        size = render_size or own
        require_multiple(size, math.lcm(8, config.patch_size * factor), own)  # diffusers checks for 8
        return config.in_channels, size // factor, size // factor

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        denoiser = Part(
            "denoiser",
            Denoiser(transformer, latents[1] * pipeline.vae_scale_factor).eval(),
            inputs={
                "sample": Tensors(latents, dtype),
                "timestep": Tensors((), torch.float32, below=1000),
                **masked_inputs(self.length, config.caption_channels, dtype),
            },
            outputs={"predicted": Tensors((config.out_channels, *latents[1:]), dtype)},  # with learned variances
        )
        return denoiser, decoder(pipeline, latents, dtype)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        return {"text_encoder": Vocabulary(pipeline.tokenizer, self.length)}

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        embedding, mask, *_ = pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, device=pipeline.device, max_sequence_length=self.length
        )
        return embedding, mask

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 1

    def options(self, steps: int, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale, "use_resolution_binning": False, "negative_prompt": None}


class PixArtAlpha(PixArtSigma):
    pipeline = "PixArtAlphaPipeline"
    models = "PixArt-alpha"
    length = 120
    no_single_step = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # which do not return the clean image
