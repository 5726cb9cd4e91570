"""Caches of activations between steps."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import SIZE

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a one in green", "a two in red", "seven"], [1, 2, 3]


def load(model: Path, cache: str | None = None, interval: int = 3, steps: int = 7, **changes: Any) -> Diffusion:
    caching = {} if cache is None else {"step_cache": cache, "step_cache_interval": interval}
    settings = {"engine": "eager", "steps": steps, "render_size": SIZE, **caching, **changes}
    return Diffusion(model, GenerateSettings.model_validate(settings), CPU)


def test_inner_blocks_of_a_unet_run_in_every_third_step(model: Path) -> None:
    diffusion, ran = load(model, "deep"), {"outer": 0, "inner": 0}
    unet = diffusion._pipeline.unet

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            ran[name] += 1

        return hook

    unet.conv_in.register_forward_hook(count("outer"))
    unet.mid_block.resnets[0].register_forward_hook(count("inner"))
    for number in (1, 2):  # every batch starts over
        images = diffusion.sample(TEXTS, SEEDS).images
        assert ran == {"outer": 7 * number, "inner": 3 * number}
    assert np.abs(images.astype(int) - load(model).sample(TEXTS, SEEDS).images).max() > 0
    alone = diffusion.sample(TEXTS[:2], SEEDS[:2]).images  # an image does not depend on its neighbours
    assert np.abs(images[:2].astype(int) - alone).max() <= 1


@pytest.mark.parametrize("family", ["stable_diffusion", "flux"])
def test_an_interval_of_one_changes_nothing(models: dict[str, Path], family: str) -> None:
    cache = "deep" if family == "stable_diffusion" else "taylorseer"
    cached = load(models[family], cache, interval=1).sample(TEXTS, SEEDS).images
    assert np.array_equal(cached, load(models[family]).sample(TEXTS, SEEDS).images)


def test_a_transformer_extrapolates(models: dict[str, Path]) -> None:
    diffusion, plain = load(models["flux"], "taylorseer"), load(models["flux"])
    images = diffusion.sample(TEXTS, SEEDS).images
    assert np.array_equal(images, diffusion.sample(TEXTS, SEEDS).images)  # every batch starts over
    assert np.abs(images.astype(int) - plain.sample(TEXTS, SEEDS).images).max() > 0


@pytest.mark.parametrize(
    ("family", "cache", "expected"),
    [("flux", "deep", "taylorseer"), ("stable_diffusion", "taylorseer", "deep"), ("sd3", "taylorseer", "null")],
)
def test_one_that_the_model_does_not_support(models: dict[str, Path], family: str, cache: str, expected: str) -> None:
    with pytest.raises(AimfairError, match=rf"generate\.step_cache: found {cache}, expected {expected} for this"):
        load(models[family], cache)


def test_a_unet_of_one_level(models: dict[str, Path]) -> None:
    with pytest.raises(AimfairError, match="two levels or more"):
        load(models["sdxl"], "deep")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"step_cache": "deep", "engine": "onnxruntime"}, "found 'onnxruntime', expected eager with step_cache deep"),
        ({"step_cache": "deep", "guidance_interval": [0, 0.5]}, "expected null with a guidance_interval"),
        ({"step_cache_interval": 2}, "found 2, expected 3 without step_cache"),
        ({"channels_last": True, "engine": "onnxruntime"}, "expected eager or compile with channels_last"),
        ({"compile_regions": True}, "found 'auto', expected compile with compile_regions"),
        ({"quantization": "int8", "channels_last": True}, "expected null with step_cache or channels_last"),
    ],
)
def test_refusals(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        GenerateSettings.model_validate(settings)


@pytest.mark.parametrize("family", ["stable_diffusion", "flux"])
def test_channels_last_changes_rounding_only(models: dict[str, Path], family: str) -> None:
    diffusion = load(models[family], channels_last=True)
    convolutions = [one for one in diffusion._pipeline.vae.modules() if isinstance(one, torch.nn.Conv2d)]
    assert all(one.weight.is_contiguous(memory_format=torch.channels_last) for one in convolutions)
    plain = load(models[family]).sample(TEXTS, SEEDS).images
    assert np.abs(diffusion.sample(TEXTS, SEEDS).images.astype(int) - plain).max() <= 1
