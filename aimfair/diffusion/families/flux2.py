"""FLUX.2 klein: a transformer over latents in patches, conditioned on three layers of Qwen3."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.engine import Engine, Part, Tensors
from aimfair.diffusion.families.family import (
    Family,
    Latents,
    Pipeline,
    StandIn,
    Vocabulary,
    chat,
    images,
)
from aimfair.diffusion.families.flux import packed, packed_latents
from aimfair.diffusion.families.rotary import twin

_PATCH = 2  # latents along each side of a patch
_LENGTH = 512  # tokens; the model attends to padding, too
_LAYERS = (9, 18, 27)  # of the text encoder; the defaults of diffusers


class Split(nn.Module):
    """In the place of the transformer's position embeddings: gets them instead of position ids."""

    def forward(self, cos_and_sin: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 2D] -> twice [N, D]."""
        cos, sin = cos_and_sin.chunk(2, dim=-1)
        return cos, sin


class Denoiser(nn.Module):
    """The transformer's prediction, [B, h/2 * w/2, 4C], with position embeddings that are computed once, in float64."""

    tokens: Tensor
    patches: Tensor

    def __init__(self, transformer: Any, latents: Latents):
        super().__init__()
        self.transformer = twin(transformer)
        self.transformer.pos_embed = Split()
        rows, columns = torch.meshgrid(
            torch.arange(latents[1] // _PATCH), torch.arange(latents[2] // _PATCH), indexing="ij"
        )
        here = torch.stack([torch.zeros_like(rows), rows, columns, torch.zeros_like(rows)], -1).reshape(-1, 4)
        ids = {"tokens": torch.eye(4)[3] * torch.arange(_LENGTH)[:, None], "patches": here}
        for name, numbers in ids.items():
            self.register_buffer(
                name, torch.cat(transformer.pos_embed(numbers.to(transformer.device)), -1), persistent=False
            )

    def forward(self, sample: Tensor, timestep: Tensor, embeddings: Tensor) -> tuple[Tensor, ...]:
        predicted: Tensor = self.transformer(
            hidden_states=sample,
            timestep=timestep,
            encoder_hidden_states=embeddings,
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
        encoder_hidden_states: Tensor,
        txt_ids: Tensor,
        img_ids: Tensor,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse(others)
        return self.run(hidden_states, self.steps(timestep, len(hidden_states)), encoder_hidden_states)


class Decoder(nn.Module):
    """Latents [B, C, h, w], which the pipeline has scaled -> pixels [B, 3, H, W], about -1 to 1."""

    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor, ...]:
        images: Tensor = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (images,)


class VaeStandIn(StandIn):
    """Replaces the autoencoder, of which the pipeline needs the statistics of latents."""

    def __init__(self, vae: Any, engine: Engine):
        super().__init__(vae, engine, "decoder")
        self.bn = vae.bn


class Flux2Klein(Family):
    """Models with classifier-free guidance, and distilled ones without."""

    pipeline = "Flux2KleinPipeline"
    models = "FLUX.2 klein"
    components = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
    without: ClassVar[dict[str, Any]] = {}
    denoiser = "transformer"
    stand_in = DenoiserStandIn
    encoders: ClassVar[dict[str, tuple[str, ...]]] = {}
    embeddings = ("prompt_embeds",)
    own_scheduler = True
    halves = "apart"
    small_decoders = False

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        return packed_latents(pipeline, render_size)

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        transformer = pipeline.transformer
        config, dtype = transformer.config, transformer.dtype
        patches = packed(latents, dtype)
        denoiser = Part(
            "denoiser",
            Denoiser(transformer, latents).eval(),
            inputs={
                "sample": patches,
                "timestep": Tensors((), torch.float32, below=1),
                "embeddings": Tensors((_LENGTH, config.joint_attention_dim), dtype),
            },
            outputs={"predicted": patches},
        )
        decoder = Part(
            "decoder",
            Decoder(pipeline.vae).eval(),
            inputs={"latents": Tensors(latents, dtype)},
            outputs={"images": images(pipeline, latents)},
        )
        return denoiser, decoder

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        return {
            "text_encoder": Vocabulary(pipeline.tokenizer, _LENGTH, chat(pipeline.tokenizer, enable_thinking=False))
        }

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        if (layers := pipeline.text_encoder.config.num_hidden_layers) < max(_LAYERS):
            raise AimfairError(f"generate.model: its text encoder has {layers} layers, expected {max(_LAYERS)} or more")
        return (pipeline.encode_prompt(text, device=pipeline.device, max_sequence_length=_LENGTH)[0],)

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return scale > 1 and not pipeline.config.is_distilled

    def arrange(self, noise: Tensor) -> Tensor:
        """Noise as diffusers draws it, [B, 4C, h/2, w/2]."""
        batch, channels, height, width = noise.shape
        return noise.reshape(batch, channels * _PATCH**2, height // _PATCH, width // _PATCH)

    def replace(self, pipeline: Pipeline, engine: Engine) -> None:
        vae = VaeStandIn(pipeline.vae, engine)
        super().replace(pipeline, engine)
        pipeline.vae = vae
