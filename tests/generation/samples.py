"""Small plans, and images of noise to fill them at once."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from aimfair.data.settings import DataSettings
from aimfair.diffusion.sampler import Samples
from aimfair.generation.plan import PlannedImage, make_plan
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.grammar import write_prompts
from aimfair.prompts.settings import PromptSettings

SIZE = 16
"""Pixels along each side of an image."""


def prompt_settings(**changes: object) -> PromptSettings:
    """Settings of two classes and two protected values; ``changes`` replace some."""
    values: dict[str, object] = {
        "per_group": 6,
        "template": "a {target} in {protected}, {contexts}",
        "targets": [["one", "two"], ["six", "seven"]],
        "protected": [["green"], ["red"]],
        "contexts": {"stroke": ["thin", "thick"], "tilt": ["left", "right"], "paper": ["white", "grey"]},
        "contexts_per_prompt": 2,
    }
    return PromptSettings.model_validate({**values, **changes})


def small_plan(images_per_group: int = 5) -> list[PlannedImage]:
    """A plan of a balanced set, and of a biased one of 12 images."""
    settings = GenerateSettings(balanced_per_group=images_per_group, biased_total=12)
    return make_plan(write_prompts(prompt_settings()), settings, DataSettings(minority_ratio=0.5))


class NoiseSampler:
    """Images of noise that depend on text and seed alone, at once.

    Args:
        change: of (seed, pixels uint8 [H, W, 3]), before they are returned.
    """

    def __init__(self, size: int = SIZE, change: Callable[[int, np.ndarray], np.ndarray] = lambda _, pixels: pixels):
        self.size, self.change = size, change
        self.seconds: dict[str, float] = {}
        self.small_decoders = False
        self.batches: list[list[int]] = []
        """Seeds of every call."""

    def sample(self, texts: Sequence[str], seeds: Sequence[int]) -> Samples:
        self.batches.append(list(seeds))
        images = [self._one(text, seed) for text, seed in zip(texts, seeds, strict=True)]
        return Samples(np.stack(images), np.ones(len(images), dtype=bool))

    def _one(self, text: str, seed: int) -> np.ndarray:
        entropy = int.from_bytes(hashlib.sha256(f"{text} {seed}".encode()).digest())
        pixels = np.random.default_rng(entropy).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return self.change(seed, pixels)
