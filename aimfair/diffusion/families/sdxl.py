"""Stable Diffusion XL: a UNet conditioned on two text encoders and on the image size."""

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Engine, Part, Tensors
from aimfair.diffusion.families.family import (
    PENULTIMATE,
    PROJECTED,
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    decoder,
)
from aimfair.diffusion.families.unet import scale_of_guidance, unet_guided, unet_inputs, unet_latents

_TIME_IDS = 6  # original height and width, crop top and left, target height and width


class Denoiser(nn.Module):
    """The UNet's prediction, [B, C, h, w]."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        embeddings: Tensor,
        text_embeds: Tensor,
        time_ids: Tensor,
        timestep_cond: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        # The UNet concatenates this with float32; torch promotes implicitly, ONNX does not.
        added = {"text_embeds": text_embeds.float(), "time_ids": time_ids}
        predicted: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=embeddings,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return (predicted,)


class DenoiserStandIn(StandIn):
    """Replaces the UNet."""

    def __init__(self, unet: Any, engine: Engine, part: str):
        super().__init__(unet, engine, part)
        features = unet.add_embedding.linear_1.in_features
        self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=features))  # the pipeline looks there

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_cond_kwargs: dict[str, Tensor],
        timestep_cond: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        added = dict(added_cond_kwargs)
        inputs = (added.pop("text_embeds"), added.pop("time_ids").to(self.dtype))
        self.refuse({**others, **added})
        batch = len(sample)
        scale = scale_of_guidance(self, timestep_cond, batch)
        return self.run(sample, self.steps(timestep, batch), encoder_hidden_states, *inputs, *scale)


class StableDiffusionXL(Family):
    pipeline = "StableDiffusionXLPipeline"
    models = "Stable Diffusion XL"
    components = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "unet", "vae")
    without: ClassVar = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    denoiser = "unet"
    stand_in = DenoiserStandIn
    encoders: ClassVar = {"text_encoder": (PENULTIMATE,), "text_encoder_2": (PROJECTED, PENULTIMATE)}
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        return unet_latents(pipeline, render_size)

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        """As :meth:`Family.parts`. The decoder is in float32 if the model says that it overflows in half precision."""
        unet = pipeline.unet
        if unet.dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae.to(torch.float32)
        inputs, scale = unet_inputs(pipeline, latents, pipeline.tokenizer.model_max_length)
        added = {
            "text_embeds": Tensors((pipeline.text_encoder_2.config.projection_dim,), unet.dtype),
            "time_ids": Tensors((_TIME_IDS,), unet.dtype, below=latents[1] * pipeline.vae_scale_factor),
        }
        denoiser = Part(
            "denoiser",
            Denoiser(unet).eval(),
            inputs={**inputs, **added, **scale},
            outputs={"predicted": Tensors(latents, unet.dtype)},
        )
        return denoiser, decoder(pipeline, latents, unet.dtype), *self.text_encoders(pipeline)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
        return {
            name: Vocabulary(tokenizer, tokenizer.model_max_length)
            for name, tokenizer in zip(self.encoders, tokenizers, strict=True)
        }

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        embedding, _, pooled, _ = pipeline.encode_prompt(
            text, device=pipeline.device, do_classifier_free_guidance=False
        )
        return embedding, pooled

    def embed_negative(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        """Zeros for an empty prompt, if the model was trained so."""
        embedded = self.embed(pipeline, text)
        if text or not pipeline.config.force_zeros_for_empty_prompt:
            return embedded
        return tuple(map(torch.zeros_like, embedded))

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return unet_guided(pipeline, scale)
