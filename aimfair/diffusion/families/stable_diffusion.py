"""Stable Diffusion 1.x and 2.x: a UNet conditioned on one text encoder."""

from typing import Any, ClassVar

from torch import Tensor, nn

from aimfair.diffusion.engines.engine import Part, Tensors
from aimfair.diffusion.families.family import LAST, Family, Latents, Pipeline, StandIn, Vocabulary, decoder
from aimfair.diffusion.families.unet import scale_of_guidance, unet_guided, unet_inputs, unet_latents


class Denoiser(nn.Module):
    """The UNet's prediction, [B, C, h, w]."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: Tensor, timestep: Tensor, embeddings: Tensor, timestep_cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        predicted: Tensor = self.unet(
            sample,
            timestep,
            encoder_hidden_states=embeddings,
            timestep_cond=timestep_cond,
            return_dict=False,
        )[0]
        return (predicted,)


class DenoiserStandIn(StandIn):
    """Replaces the UNet."""

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        timestep_cond: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        self.refuse(others)
        batch = len(sample)
        scale = scale_of_guidance(self, timestep_cond, batch)
        return self.run(sample, self.steps(timestep, batch), encoder_hidden_states, *scale)


class StableDiffusion(Family):
    pipeline = "StableDiffusionPipeline"
    models = "Stable Diffusion 1.x or 2.x"
    components = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    without: ClassVar = {
        "safety_checker": None,
        "feature_extractor": None,
        "image_encoder": None,
        "requires_safety_checker": False,
    }
    denoiser = "unet"
    stand_in = DenoiserStandIn
    encoders: ClassVar = {"text_encoder": (LAST,)}
    embeddings = ("prompt_embeds",)

    def latents(self, pipeline: Pipeline, render_size: int | None) -> Latents:
        return unet_latents(pipeline, render_size)

    def parts(self, pipeline: Pipeline, latents: Latents) -> tuple[Part, ...]:
        unet = pipeline.unet
        inputs, scale = unet_inputs(pipeline, latents, pipeline.tokenizer.model_max_length)
        denoiser = Part(
            "denoiser",
            Denoiser(unet).eval(),
            inputs={**inputs, **scale},
            outputs={"predicted": Tensors(latents, unet.dtype)},
        )
        return denoiser, decoder(pipeline, latents, unet.dtype), *self.text_encoders(pipeline)

    def vocabularies(self, pipeline: Pipeline) -> dict[str, Vocabulary]:
        return {"text_encoder": Vocabulary(pipeline.tokenizer, pipeline.tokenizer.model_max_length)}

    def embed(self, pipeline: Pipeline, text: str) -> tuple[Tensor, ...]:
        return (pipeline.encode_prompt(text, pipeline.device, 1, False)[0],)

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return unet_guided(pipeline, scale)
