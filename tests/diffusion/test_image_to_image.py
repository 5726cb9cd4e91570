"""Images from images: those of diffusers' own pipelines, each independent of its batch, and settings in the way."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.image_to_image import ImageToImage
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import SIZE

TEXTS, SEEDS, NAMES = ["a one in green, thin", "a two in red", "a one in green, thin"], [1, 2, 1], ["x", "y", "y"]


def images(size: int = SIZE) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.integers(0, 256, (size, size, 3), dtype=np.uint8) for name in ("x", "y")}


def load(
    model: Path, strength: float = 0.5, real: dict[str, np.ndarray] | None = None, **settings: Any
) -> ImageToImage:
    chosen = GenerateSettings(**{"engine": "eager", "steps": 4, "render_size": SIZE, **settings})
    return ImageToImage(model, chosen, torch.device("cpu"), strength, (real or images()).__getitem__)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_images_are_those_of_plain_diffusers(models: dict[str, Path], name: str) -> None:
    editor = load(models[name], guidance_scale=3.0)
    found = editor.edit(TEXTS, SEEDS, NAMES)
    assert (found.images.shape, found.images.dtype, found.finite.tolist()) == ((3, SIZE, SIZE, 3), np.uint8, [True] * 3)
    plain = diffusers.AutoPipelineForImage2Image.from_pipe(editor._pipeline)
    size = {"height": SIZE, "width": SIZE} if name == "flux" else {}
    for k in (0, 1):
        expected = plain(
            TEXTS[k],
            image=torch.from_numpy(images()[NAMES[k]]).permute(2, 0, 1)[None] / 255,
            strength=0.5,
            guidance_scale=3.0,
            num_inference_steps=4,
            generator=torch.Generator("cpu").manual_seed(SEEDS[k]),
            output_type="np",
            **size,
        ).images
        assert levels(found.images[k], (expected[0] * 255).round().astype(np.uint8)) <= 1


def test_an_image_depends_on_text_seed_and_source_alone(model: Path) -> None:
    editor = load(model)
    together = editor.edit(TEXTS, SEEDS, NAMES).images
    for k in (2, 0, 1):
        assert levels(together[k], editor.edit([TEXTS[k]], [SEEDS[k]], [NAMES[k]]).images[0]) <= 1
    assert levels(together[0], together[2]) > 1  # another source, all else the same
    assert levels(together[0], editor.edit(TEXTS[1:2], SEEDS[:1], NAMES[:1]).images[0]) > 1
    assert levels(together[0], editor.edit(TEXTS[:1], [7], NAMES[:1]).images[0]) > 1


def test_the_strength_is_the_share_of_the_steps_that_are_done(model: Path) -> None:
    runs: list[int] = []
    for strength in (0.25, 0.5, 1.0):
        editor = load(model, strength)
        editor._pipeline.unet.register_forward_hook(lambda *_: runs.append(0))
        editor.edit(TEXTS[:1], SEEDS[:1], NAMES[:1])
        runs.append(1)
    steps = [len(part) for part in "".join(map(str, runs)).split("1")[:-1]]
    assert steps == [1, 2, 4]


def test_sources_of_another_size_are_resized(model: Path) -> None:
    large = {name: image.repeat(3, 0).repeat(3, 1) for name, image in images().items()}
    found = load(model, real=large).edit(TEXTS, SEEDS, NAMES).images
    assert found.shape == (3, SIZE, SIZE, 3)
    assert np.abs(found.astype(int) - load(model).edit(TEXTS, SEEDS, NAMES).images).mean() < 8


def test_a_model_of_no_known_family_is_refused(unknown: Path) -> None:
    with pytest.raises(AimfairError, match=r"^generate\.pairs\.strength: a StableDiffusionPAGPipeline is of no known"):
        load(unknown)


def test_a_family_without_such_a_pipeline_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("AutoPipeline can't find a pipeline linked to X")

    monkeypatch.setattr(diffusers.AutoPipelineForImage2Image, "from_pipe", refuse)
    with pytest.raises(AimfairError, match=r"generate\.pairs\.strength: a StableDiffusionPipeline cannot start from"):
        load(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "onnxruntime"}, "expected eager"),
        ({"guidance_interval": (0.0, 0.5)}, "guidance in every step"),
        ({"decoder": "./tiny"}, "plain model"),
        ({"steps": 3, "pairs": {"strength": 0.3}}, r"at least 0\.333"),
    ],
)
def test_settings_that_cannot_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateSettings.model_validate({"pairs": {"strength": 0.5}, **changes})
