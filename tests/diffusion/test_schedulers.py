"""Schedulers for few steps: the images of plain diffusers, and warnings about settings that a model is not made for."""

from pathlib import Path
from typing import Any

import pytest

from aimfair.base.errors import AimfairError
from aimfair.diffusion.schedulers import advice
from tests.diffusion.test_families import levels, load, plain, settings

TEXT, SEED = "a one in green, thin", 1


@pytest.mark.parametrize(
    ("name", "kind", "changes", "call"),
    [
        ("lcm", "LCMScheduler", {}, {}),
        ("tcd", "TCDScheduler", {}, {"eta": 0.3}),
        ("euler_trailing", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, {}),
        ("ddim_trailing", "DDIMScheduler", {"timestep_spacing": "trailing"}, {}),
    ],
)
def test_images_are_those_of_plain_diffusers(
    model: Path, name: str, kind: str, changes: dict[str, Any], call: dict[str, Any]
) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = getattr(diffusers, kind).from_config(pipeline.scheduler.config, **changes)
    (expected,) = plain(pipeline, TEXT, SEED, guidance_scale=1.0, **call)
    (found,) = load(model, scheduler=name, guidance_scale=1.0).sample([TEXT], [SEED]).images
    assert levels(found, expected) <= 1


@pytest.mark.parametrize("name", ["lcm", "tcd"])
def test_more_steps_than_consistency_models_know(model: Path, name: str) -> None:
    with pytest.raises(AimfairError, match=r"steps: found 51, which the (LCM|TCD)Scheduler of .* refuses: .*50"):
        load(model, scheduler=name, steps=51)


@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"steps": 50, "guidance_scale": 7.5}, []),
        ({"scheduler": "lcm", "steps": 4, "guidance_scale": 1.5}, []),
        ({"scheduler": "tcd", "steps": 4, "guidance_scale": 3.0}, ["guidance_scale: found 3.0, tcd is made for 2.0"]),
        (
            {"model": "stabilityai/sdxl-turbo", "steps": 20, "guidance_scale": 7.5},
            ["steps: found 20, sdxl-turbo is made for 10", "guidance_scale: found 7.5, sdxl-turbo is made for 1.0"],
        ),
        (
            {
                "loras": [{"weights": "ByteDance/SDXL-Lightning", "file": "sdxl_lightning_4step_lora.safetensors"}],
                "steps": 4,
                "guidance_scale": 5,
            },
            ["guidance_scale: found 5.0, sdxl-lightning is made for 1.0"],
        ),
    ],
)
def test_settings_that_a_model_is_not_made_for(changes: dict[str, Any], warnings: list[str]) -> None:
    found = list(advice(settings(**changes)))
    assert [line.split(" or ")[0] for line in found] == [f"generate.{line}" for line in warnings]


def test_warnings_are_in_the_log(model: Path) -> None:
    from aimfair.base.log import Log
    from aimfair.diffusion.text_to_image import Diffusion
    from tests.diffusion.test_families import CPU

    shown: list[str] = []
    Diffusion(model, settings(scheduler="lcm", guidance_scale=5), CPU, Log(None, show=shown.append))
    assert any("generate.guidance_scale: found 5.0, lcm is made for 2.0 or less" in line for line in shown)
