"""Latent consistency models: a UNet of few steps with the guidance scale as an input."""

from aimfair.diffusion.families.family import Pipeline
from aimfair.diffusion.families.stable_diffusion import StableDiffusion


class LatentConsistency(StableDiffusion):
    pipeline = "LatentConsistencyModelPipeline"
    models = "latent consistency models"
    own_scheduler = True
    steers_away = False

    def guided(self, pipeline: Pipeline, scale: float) -> bool:
        return False
