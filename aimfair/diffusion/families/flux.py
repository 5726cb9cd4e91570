"""Flux: a transformer over patches of latents, conditioned on CLIP's pooled embedding and T5's token embeddings."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import (
    LAST,
    POOLED,
    Decoder,
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    images,
    require_multiple,
)

_PATCH = 2  # latents along each side of a patch


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4C]: patches in row-major order, each with the channels of its four latents."""
    batch, channels, height, width = latents.shape
    patches = latents.reshape(batch, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * _PATCH**2)


def unpack(packed: Tensor, latents: Latents) -> Tensor:
    """The inverse of :func:`pack`."""
    channels, height, width = latents
    patches = packed.reshape(-1, height // _PATCH, width // _PATCH, channels, _PATCH, _PATCH)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)


def packed_latents(pipeline: Pipeline, render_size: int | None) -> Latents:
    """As :meth:`Family.latents`, of a transformer that takes them packed."""
    factor = pipeline.vae_scale_factor
    own = pipeline.default_sample_size * factor
    size = render_size or own
    require_multiple(size, _PATCH * factor, own)
    return pipeline.transformer.config.in_channels // _PATCH**2, size // factor, size // factor


def packed(latents: Latents, dtype: torch.dtype) -> Tensors:
    """Latents of this shape as :func:`pack` gives them."""
    channels, height, width = latents
    return Tensors((height * width // _PATCH**2, channels * _PATCH**2), dtype)


class UnpackingDecoder(Decoder):
    """A :class:`Decoder` of packed latents [B, h/2 * w/2, 4C]."""

    def __init__(self, vae: Any, latents: Latents):
        super().__init__(vae)
        self._latents = latents

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        return super().forward(unpack(latents, self._latents))


class Positions(nn.Module):
    """Replaces the transformer's position embeddings, for one image size and prompt length: computed once, in float64.

    Args:
        positions: FluxPosEmbed.
        ids: of tokens and patches, [N, 3].
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, positions: nn.Module, ids: Tensor):
        super().__init__()
        cos, sin = positions(ids)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
        return self.cos, self.sin


class Denoiser(nn.Module):
    """The transformer's prediction, [B, h/2 * w/2, 4C]. It then works only for latents of this shape."""

    tokens: Tensor
    patches: Tensor

    def __init__(self, transformer: Any, latents: Latents, length: int):
        super().__init__()
        self.transformer = transformer
        rows, columns = torch.meshgrid(
            torch.arange(latents[1] // _PATCH), torch.arange(latents[2] // _PATCH), indexing="ij"
        )
        patches = torch.stack((torch.zeros_like(rows), rows, columns), -1).reshape(-1, 3)
        self.register_buffer("tokens", torch.zeros(length, 3, device=transformer.device), persistent=False)
        self.register_buffer("patches", patches.float().to(transformer.device), persistent=False)
        transformer.pos_embed = Positions(transformer.pos_embed, torch.cat((self.tokens, self.patches)))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        embeddings: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        predicted: Tensor = self.transformer(
            hidden_states=sample,
            timestep=timestep,
            guidance=guidance,
            encoder_hidden_states=embeddings,
            pooled_projections=pooled_projections,
            txt_ids=self.tokens,
            img_ids=self.patches,
            return_dict=False,
        )[0]
        return (predicted,)


class DenoiserStandIn(StandIn):
    """Replaces the transformer; position ids are constants of the engine."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        guidance: Tensor | None,
        pooled_projections: Tensor,
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse(others)
        batch = len(hidden_states)
        scale = () if guidance is None else (self.steps(guidance, batch),)
        return self.run(hidden_states, self.steps(timestep, batch), encoder_hidden_states, pooled_projections, *scale)


class Flux(Family):
    """Guidance-distilled models: the guidance scale is an input of Flux dev; schnell has none."""

    pipeline = "FluxPipeline"
    models = "Flux 1 dev or schnell"
    components = ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae")
    without: ClassVar = {"feature_extractor": None, "image_encoder": None}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar = {"text_encoder": (POOLED,), "text_encoder_2": (LAST,)}
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    own_scheduler = True
    steers_away = False

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        return packed_latents(pipeline, render_size)

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        """As :meth:`Family.parts`. The transformer then works only for latents of this shape."""
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        length = self.vocabularies(pipeline)["text_encoder_2"].length
        patches = packed(latents, dtype)
        inputs = {
            "sample": patches,
            "timestep": Tensors((), torch.float32, below=1),
            "embeddings": Tensors((length, config.joint_attention_dim), dtype),
            "pooled_projections": Tensors((config.pooled_projection_dim,), dtype),
        }
        if config.guidance_embeds:
            inputs["guidance"] = Tensors((), torch.float32, below=8)
        denoiser = Part(
            "denoiser", Denoiser(transformer, latents, length).eval(), inputs=inputs, outputs={"predicted": patches}
        )
        decoder = Part(
            "decoder",
            UnpackingDecoder(pipeline.vae, latents).eval(),
            inputs={"latents": patches},
            outputs={"images": images(pipeline, latents)},
        )
        return denoiser, decoder, *self.text_encoders(pipeline)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        words = 512 if pipeline.transformer.config.guidance_embeds else 256  # dev's and schnell's
        return {
            "text_encoder": Vocabulary(pipeline.tokenizer, pipeline.tokenizer_max_length),
            "text_encoder_2": Vocabulary(pipeline.tokenizer_2, words),
        }

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        length = self.vocabularies(pipeline)["text_encoder_2"].length
        embedding, pooled, _ = pipeline.encode_prompt(text, device=pipeline.device, max_sequence_length=length)
        return embedding, pooled

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return False

    def arrange(self, noise: Tensor) -> Tensor:
        return pack(noise)
