"""Qwen-Image: a transformer over latents in patches, conditioned on Qwen2.5-VL."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import (
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    images,
)
from aimfair.diffusion.families.flux import pack, packed, packed_latents, unpack
from aimfair.diffusion.families.masked import lengthened, masked_inputs
from aimfair.diffusion.families.rotary import Rotated, Rotations, twin

_PATCH = 2  # latents along each side of a patch
_LENGTH = 256  # tokens that an engine takes


class Nothing(nn.Module):
    """In the place of the transformer's position embeddings, which the layers then do not apply."""

    def forward(self, *_: Any, **__: Any) -> None:
        return None


class Denoiser(nn.Module):
    """The transformer's prediction [B, h/2 * w/2, 4C], for one image size and at most ``_LENGTH`` tokens."""

    patches: Tensor
    tokens: Tensor

    def __init__(self, transformer: Any, latents: Latents):
        super().__init__()
        self._of_patches, self._of_tokens = Rotations(), Rotations()
        shape = (1, latents[1] // _PATCH, latents[2] // _PATCH)
        found = transformer.pos_embed([shape], max_txt_seq_len=_LENGTH, device=transformer.device)
        for name, rotations in zip(("patches", "tokens"), found, strict=True):
            self.register_buffer(name, torch.view_as_real(rotations), persistent=False)
        self.transformer = twin(transformer)
        self.transformer.pos_embed = Nothing()
        for block in self.transformer.transformer_blocks:
            for name in ("norm_q", "norm_k"):
                setattr(block.attn, name, Rotated(getattr(block.attn, name), self._of_patches))
            for name in ("norm_added_q", "norm_added_k"):
                setattr(block.attn, name, Rotated(getattr(block.attn, name), self._of_tokens))

    def forward(self, sample: Tensor, timestep: Tensor, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        self._of_patches.set(self.patches)
        self._of_tokens.set(self.tokens)
        predicted: Tensor = self.transformer(
            hidden_states=sample,
            timestep=timestep,
            encoder_hidden_states=embeddings,
            encoder_hidden_states_mask=mask,
            return_dict=False,
        )[0]
        return (predicted,)


class DenoiserStandIn(StandIn):
    """Replaces the transformer; the shape of images is a constant of the engine."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_mask: Tensor | None,
        img_shapes: Any,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse(others)
        if encoder_hidden_states_mask is None:
            encoder_hidden_states_mask = torch.ones_like(encoder_hidden_states[..., 0], dtype=torch.int64)
        return self.run(
            hidden_states,
            self.steps(timestep, len(hidden_states)),
            lengthened(encoder_hidden_states, _LENGTH),
            lengthened(encoder_hidden_states_mask, _LENGTH),
        )


class Decoder(nn.Module):
    """Packed latents [B, h/2 * w/2, 4C] -> pixels [B, 3, H, W], about -1 to 1."""

    std: Tensor
    mean: Tensor

    def __init__(self, vae: Any, latents: Latents):
        super().__init__()
        self.vae, self._latents = vae, latents
        for name, values in (("std", vae.config.latents_std), ("mean", vae.config.latents_mean)):
            values = torch.tensor(values, dtype=vae.dtype, device=vae.device).view(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        latents = unpack(latents, self._latents).to(self.vae.dtype) * self.std + self.mean
        video: Tensor = self.vae.decode(latents[:, :, None], return_dict=False)[0]
        return (video[:, :, 0],)


class QwenImage(Family):
    pipeline = "QwenImagePipeline"
    models = "Qwen-Image"
    components = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    without: ClassVar[dict[str, Any]] = {}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar[dict[str, tuple[str, ...]]] = {}
    embeddings = ("prompt_embeds", "prompt_embeds_mask")
    own_scheduler = True
    halves = "apart"
    small_decoders = False

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        return packed_latents(pipeline, render_size)

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        if config.guidance_embeds:
            raise AimfairError("generate.model: a QwenImagePipeline with guidance_embeds, which is not supported")
        patches = packed(latents, dtype)
        denoiser = Part(
            "denoiser",
            Denoiser(transformer, latents).eval(),
            inputs={
                "sample": patches,
                "timestep": Tensors((), torch.float32, below=1),
                **masked_inputs(_LENGTH, config.joint_attention_dim, dtype),
            },
            outputs={"predicted": patches},
        )
        decoder = Part(
            "decoder",
            Decoder(pipeline.vae, latents).eval(),
            inputs={"latents": patches},
            outputs={"images": images(pipeline, latents)},
        )
        return denoiser, decoder

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        dropped = pipeline.prompt_template_encode_start_idx  # tokens of the template, after encoding
        template = pipeline.prompt_template_encode
        return {"text_encoder": Vocabulary(pipeline.tokenizer, _LENGTH + dropped, template.format)}

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        embedding, _ = pipeline.encode_prompt(text, device=pipeline.device, max_sequence_length=_LENGTH)
        return (embedding,)

    def batch(self, embedded: Sequence[tuple[Tensor, ...]]) -> tuple[Any, ...]:
        """As :meth:`Family.batch`, with zeros after the shorter ones, and a mask."""
        tensors = [tensor for (tensor,) in embedded]
        most = max(tensor.shape[1] for tensor in tensors)
        masks = [torch.ones(tensor.shape[:2], dtype=torch.int64, device=tensor.device) for tensor in tensors]
        return (
            torch.cat([lengthened(tensor, most) for tensor in tensors]),
            torch.cat([lengthened(mask, most) for mask in masks]),
        )

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 1

    def options(self, steps: int, scale: float) -> dict[str, Any]:
        return {"true_cfg_scale": scale}

    def arrange(self, noise: Tensor) -> Tensor:
        return pack(noise)
