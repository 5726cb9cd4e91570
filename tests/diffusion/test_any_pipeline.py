"""A pipeline of no known family: diffusers' own images in eager, and plain refusals of everything else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.any_pipeline import AnyPipeline, load_sampler
from aimfair.diffusion.engines.registry import choose_engine
from aimfair.diffusion.families.registry import is_known
from aimfair.diffusion.model import fingerprint
from aimfair.diffusion.text_to_image import Diffusion
from tests.diffusion.test_families import CPU, SEEDS, TEXTS, levels, plain, settings
from tests.generation.samples import SIZE


def load(folder: Path, **changes: Any) -> AnyPipeline:
    sampler = load_sampler(folder, settings(**changes), CPU)
    assert isinstance(sampler, AnyPipeline)
    return sampler


def test_images_are_those_of_plain_diffusers_whatever_else_is_in_the_batch(unknown: Path) -> None:
    sampler = load(unknown)
    images, finite = sampler.sample(TEXTS, SEEDS)
    assert (images.shape, finite.all()) == ((3, SIZE, SIZE, 3), True)
    assert np.array_equal(images[1], sampler.sample([TEXTS[1]], [SEEDS[1]]).images[0])
    assert levels(images[2], plain(sampler._pipeline, TEXTS[2], SEEDS[2], guidance_scale=3.0)[0]) <= 1
    away = load(unknown, negative_prompt="red").sample(TEXTS[:1], SEEDS[:1]).images
    assert not np.array_equal(away[0], images[0])
    with torch.no_grad():
        sampler._pipeline.vae.decoder.conv_out.bias.fill_(torch.nan)
    assert not sampler.sample(TEXTS[:1], SEEDS[:1]).finite.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "onnxruntime"}, "generate.engine: found onnxruntime, expected eager"),
        ({"scheduler": "lcm", "guidance_scale": 1}, "generate.scheduler: found lcm, expected as_saved"),
        ({"guidance_interval": (0.2, 0.8)}, "generate.guidance_interval: found (0.2, 0.8), expected none"),
    ],
)
def test_what_needs_a_known_family(unknown: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(AimfairError) as error:
        load(unknown, **changes)
    assert str(error.value).startswith(f"{message}: a StableDiffusionPAGPipeline is of no known family")


def test_auto_is_eager(unknown: Path, model: Path) -> None:
    auto = settings(engine="auto")
    assert choose_engine(auto, lambda: CPU, known=lambda: is_known(unknown)).engine == "eager"
    assert choose_engine(auto, lambda: CPU, known=lambda: is_known(model)).engine == "onnxruntime"
    assert isinstance(load_sampler(model, settings(), CPU), Diffusion)


@pytest.mark.parametrize("name", ["StableDiffusionUpscalePipeline", "UNet2DModel", "NoSuchPipeline"])
def test_classes_that_make_no_images_from_prompts(unknown: Path, name: str) -> None:
    index = unknown / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPAGPipeline", name))
    with pytest.raises(AimfairError, match=rf"a {name}, expected one of: .*; or, in engine eager"):
        load(unknown)


def test_the_fingerprint_is_of_all_components(unknown: Path, model: Path) -> None:
    before = fingerprint(unknown)
    index = unknown / "model_index.json"
    for folder in ("prior", "safety_checker"):
        (unknown / folder).mkdir()
        (unknown / folder / "config.json").write_text("{}")
    assert fingerprint(unknown) == before  # the index does not name them
    index.write_text(index.read_text().replace("{", '{"safety_checker": ["a", "b"], "prior": ["a", "b"],', 1))
    named = fingerprint(unknown)
    (unknown / "safety_checker" / "config.json").write_text("{ }")
    assert fingerprint(unknown) == named
    (unknown / "prior" / "config.json").write_text("{ }")
    assert fingerprint(unknown) != named
