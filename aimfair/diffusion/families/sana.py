"""Sana and Sana-Sprint: a transformer with linear attention over few latents, conditioned on Gemma."""

import inspect
import math
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import Family, Latents, Pipeline, Vocabulary, decoder, require_multiple
from aimfair.diffusion.families.masked import MaskedDenoiser, MaskedDenoiserStandIn, masked_inputs

_LENGTH = 300  # tokens; the default of diffusers
_MIDDLE = 1.3  # time of the second of two steps of Sana-Sprint; the default of diffusers


class Sana(Family):
    pipeline = "SanaPipeline"
    models = "Sana 1 and 1.5"
    components = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    without: ClassVar[dict[str, Any]] = {}
    denoiser = "transformer"
    stand_in = MaskedDenoiserStandIn
    encoders: ClassVar[dict[str, tuple[str, ...]]] = {}
    embeddings = ("prompt_embeds", "prompt_attention_mask")
    own_scheduler = True
    full_latents = True

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
        own = config.sample_size * factor
        size = render_size or own
        require_multiple(size, math.lcm(32, config.patch_size * factor), own)  # diffusers checks for 32
        return config.in_channels, size // factor, size // factor

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        inputs = {
            "sample": Tensors(latents, dtype),
            "timestep": Tensors((), torch.float32, below=1 if config.guidance_embeds else 1000),
            **masked_inputs(_LENGTH, config.caption_channels, dtype),
        }
        if config.guidance_embeds:
            inputs["guidance"] = Tensors((), torch.float32, below=1)
        denoiser = Part(
            "denoiser",
            MaskedDenoiser(transformer).eval(),
            inputs=inputs,
            outputs={"predicted": Tensors((config.out_channels, *latents[1:]), dtype)},
            tiny_constants=True,  # linear attention divides by sums + 1e-15
        )
        return denoiser, replace(decoder(pipeline, latents, torch.float32), tiny_constants=True)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        return {"text_encoder": Vocabulary(pipeline.tokenizer, _LENGTH)}

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """As :meth:`Family.embed`, behind the instruction that diffusers puts before a prompt."""
        instruction = inspect.signature(type(pipeline).__call__).parameters["complex_human_instruction"].default
        return self._embed(pipeline, text, complex_human_instruction=instruction)

    def embed_negative(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """As :meth:`Family.embed_negative`, without the instruction."""
        return self._embed(pipeline, text)

    def _embed(self, pipeline: Pipeline, text: str, **options: Any) -> tuple[Tensor, ...]:
        embedding, mask, *_ = pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, device=pipeline.device, max_sequence_length=_LENGTH, **options
        )
        return embedding, mask

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 1

    def options(self, steps: int, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale, "use_resolution_binning": False, "negative_prompt": None}


class SanaSprint(Sana):
    """A model of one to four steps whose guidance scale is an input of the transformer."""

    pipeline = "SanaSprintPipeline"
    models = "Sana-Sprint"
    steers_away = False

    def _embed(self, pipeline: Pipeline, text: str, **options: Any) -> tuple[Tensor, ...]:
        embedding, mask = pipeline.encode_prompt(text, device=pipeline.device, max_sequence_length=_LENGTH, **options)
        return embedding, mask

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return False

    def options(self, steps: int, scale: float) -> dict[str, Any]:
        middle = _MIDDLE if steps == 2 else None
        return {"guidance_scale": scale, "use_resolution_binning": False, "intermediate_timesteps": middle}
