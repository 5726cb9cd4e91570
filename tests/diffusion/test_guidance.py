"""Guidance in some of the steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.model import SHIPPED
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings

DIGITS = SHIPPED["digits"]
TEXTS, SEEDS = ["a one in green", "a two in red", "seven"], [1, 2, 3]
STEPS = 4


def load(model: Path, **settings: Any) -> Diffusion:
    settings = {"engine": "eager", "steps": STEPS, "guidance_scale": 5.0, **settings}
    return Diffusion(model, GenerateSettings(**settings), torch.device("cpu"))


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3"])
@pytest.mark.parametrize(
    ("interval", "rows"), [((0, 0.5), [6, 6, 3, 3]), ((0.5, 1), [3, 3, 6, 6]), ((0.25, 0.7), [3, 6, 6, 3])]
)
def test_steps_outside_run_for_one_text(
    models: dict[str, Path], family: str, interval: tuple[float, float], rows: list[int]
) -> None:
    diffusion = load(models[family], guidance_interval=interval)
    engine, found = diffusion._engine, []
    right = engine.run

    def run(part: str, inputs: Any) -> Any:
        if part == "denoiser":
            found.append(len(inputs[0]))
        return right(part, inputs)

    engine.run = run
    for _ in range(2):  # every batch starts over
        diffusion.sample(TEXTS, SEEDS)
        assert found == rows
        found.clear()


@pytest.mark.parametrize("after", [1, 3])
def test_images_are_those_of_diffusers_where_guidance_ends_early(after: int) -> None:
    diffusion, plain = load(DIGITS, guidance_interval=(0, after / STEPS)), load(DIGITS)
    pipeline = plain._pipeline

    def end(pipe: Any, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 == after:
            pipe._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
        return tensors

    whole = plain.sample(TEXTS, SEEDS).images
    callback = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    plain._pipeline = lambda **given: pipeline(**given, **callback)
    plain._pipeline.scheduler = pipeline.scheduler
    expected = plain.sample(TEXTS, SEEDS).images
    found = diffusion.sample(TEXTS, SEEDS).images
    assert levels(found, expected) <= 1
    assert levels(whole, expected) > 1


def test_an_interval_between_two_steps_is_no_guidance() -> None:
    none = load(DIGITS, guidance_scale=1.0).sample(TEXTS, SEEDS).images
    diffusion = load(DIGITS, guidance_interval=(0.9, 1))  # the last of four steps begins at 0.75
    assert levels(load(DIGITS).sample(TEXTS, SEEDS).images, none) > 1
    assert levels(diffusion.sample(TEXTS, SEEDS).images, none) <= 1


def test_refusals(models: dict[str, Path]) -> None:
    for interval in ((0.5, 0.5), (-0.1, 1), (0, 1.5), (1, 0)):
        with pytest.raises(ValueError, match="expected 0 <= first < last <= 1"):
            GenerateSettings(guidance_interval=interval)
    for family, scale in (("stable_diffusion", 1.0), ("flux", 3.0)):
        with pytest.raises(AimfairError, match=r"guidance_interval: found \[0\.0, 0\.5\], expected \[0, 1\]"):
            load(models[family], guidance_scale=scale, guidance_interval=(0, 0.5))
