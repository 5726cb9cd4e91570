"""Stable Diffusion 3 and 3.5: a transformer conditioned on two CLIP encoders and, optionally, T5."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import (
    LAST,
    PENULTIMATE,
    PROJECTED,
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    decoder,
    require_multiple,
)

_T5_LENGTH = 256  # tokens; the default of diffusers


class Denoiser(nn.Module):
    """The transformer's prediction, [B, C, h, w]."""

    def __init__(self, transformer: Any):
        super().__init__()
        self.transformer = transformer

    def forward(
        self, sample: Tensor, timestep: Tensor, embeddings: Tensor, pooled_projections: Tensor
    ) -> tuple[Tensor, ...]:
        predicted: Tensor = self.transformer(
            hidden_states=sample,
            timestep=timestep,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled_projections,
            return_dict=False,
        )[0]
        return (predicted,)


class DenoiserStandIn(StandIn):
    """Replaces the transformer."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse(others)
        steps = self.steps(timestep, len(hidden_states))
        return self.run(hidden_states, steps, encoder_hidden_states, pooled_projections)


class StableDiffusion3(Family):
    pipeline = "StableDiffusion3Pipeline"
    models = "Stable Diffusion 3.x"
    components = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    optional = ("text_encoder_3", "tokenizer_3")
    without: ClassVar = {"feature_extractor": None, "image_encoder": None}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar = {
        "text_encoder": (PROJECTED, PENULTIMATE),
        "text_encoder_2": (PROJECTED, PENULTIMATE),
        "text_encoder_3": (LAST,),
    }
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    own_scheduler = True

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        config, factor = pipeline.transformer.config, pipeline.vae_scale_factor
        own, patch = config.sample_size * factor, config.patch_size * factor
        size = render_size or own
        require_multiple(size, patch, own)
        if size > (most := config.pos_embed_max_size * patch):
            raise AimfairError(f"generate.render_size: found {size}, expected at most {most} for generate.model")
        return config.in_channels, size // factor, size // factor

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        denoiser = Part(
            "denoiser",
            Denoiser(transformer).eval(),
            inputs={
                "sample": Tensors(latents, dtype),
                "timestep": Tensors((), torch.float32, below=1000),
                "embeddings": Tensors((pipeline.tokenizer_max_length + _T5_LENGTH, config.joint_attention_dim), dtype),
                "pooled_projections": Tensors((config.pooled_projection_dim,), dtype),
            },
            outputs={"predicted": Tensors(latents, dtype)},
        )
        return denoiser, decoder(pipeline, latents, dtype), *self.text_encoders(pipeline)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        clip = pipeline.tokenizer_max_length
        found = {
            "text_encoder": Vocabulary(pipeline.tokenizer, clip),
            "text_encoder_2": Vocabulary(pipeline.tokenizer_2, clip),
        }
        if pipeline.text_encoder_3 is not None:  # optional; the pipeline uses zeros instead
            found["text_encoder_3"] = Vocabulary(pipeline.tokenizer_3, _T5_LENGTH)
        return found

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        embedding, _, pooled, _ = pipeline.encode_prompt(
            text,
            None,
            None,
            device=pipeline.device,
            do_classifier_free_guidance=False,
            max_sequence_length=_T5_LENGTH,
        )
        return embedding, pooled

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 1
