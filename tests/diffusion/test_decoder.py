"""A small decoder in place of the model's, and the comparison with the plain model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.base.log import Log
from aimfair.diffusion.comparison import compare_with_plain
from aimfair.diffusion.text_to_image import Diffusion, load_source
from aimfair.generation.settings import GenerateSettings
from tests.diffusion.tiny_models import small_decoder
from tests.generation.samples import SIZE

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a one in green", "a two in red"], [1, 2]


def load(model: Path, **changes: Any) -> Diffusion:
    settings = {"steps": 3, "render_size": SIZE, "engine": "eager", **changes}
    return Diffusion(model, GenerateSettings.model_validate(settings), CPU)


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "sd3", "flux"])
def test_images_are_those_of_diffusers(models: dict[str, Path], small: Path, family: str) -> None:
    diffusion = load(models[family], decoder=str(small))
    images = diffusion.sample(TEXTS, SEEDS).images
    pipeline, noise = diffusion._pipeline, [torch.randn(diffusion._latents, generator=_seeded(s)) for s in SEEDS]
    shapes = {"latents": diffusion._family.arrange(torch.stack(noise)), "height": SIZE, "width": SIZE}
    with torch.inference_mode():
        given = diffusion._embeddings(TEXTS)
        expected = pipeline(**given, **shapes, num_inference_steps=3, guidance_scale=3.0, output_type="np").images
    assert np.abs(images - expected * 255).max() <= 1
    assert not np.array_equal(images, load(models[family]).sample(TEXTS, SEEDS).images)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def test_an_engine_of_another_decoder_is_another_engine(model: Path, small: Path) -> None:
    facts = [load_source(model, GenerateSettings(decoder=decoder), CPU)[0].facts() for decoder in (None, str(small))]
    assert "decoder" not in facts[0]
    assert facts[1]["decoder"]


@pytest.mark.parametrize(("channels", "levels"), [(16, 2), (4, 4)])
def test_one_for_other_latents_is_refused(model: Path, tmp_path: Path, channels: int, levels: int) -> None:
    message = rf"generate\.decoder: .* decodes {channels} channels to {2 ** (levels - 1)} x .*expected 4 and 2 x 2"
    with pytest.raises(AimfairError, match=message):
        load(model, decoder=str(small_decoder(tmp_path, channels, levels)))


def test_damaged_ones_are_refused(model: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"generate\.decoder: .*found no config\.json"):
        load(model, decoder=str(tmp_path))
    (tmp_path / "config.json").write_bytes((small / "config.json").read_bytes())
    with pytest.raises(AimfairError, match=r"generate\.decoder: .*not a usable AutoencoderTiny"):
        load(model, decoder=str(tmp_path))
    (weights,) = small.glob("*.safetensors")
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(AimfairError, match=r"generate\.decoder: .*not a usable AutoencoderTiny"):
        load(model, decoder=str(tmp_path))


def test_the_comparison_is_logged(model: Path, small: Path, tmp_path: Path) -> None:
    settings = GenerateSettings(engine="eager", steps=2, render_size=SIZE, decoder=str(small))
    diffusion = Diffusion(model, settings, CPU)
    log = Log(tmp_path / "log.jsonl")
    found = compare_with_plain(diffusion, model, settings, CPU, TEXTS, SEEDS, log)
    log.close()
    plain, fast = (Diffusion(model, one, CPU).sample(TEXTS, SEEDS).images for one in (settings.plain, settings))
    differences = np.abs(plain.astype(int) - fast)
    assert found is not None
    assert (found.images, found.largest, found.mean) == (2, differences.max(), pytest.approx(differences.mean()))
    assert found.ratio > 0
    assert found.shortcuts == {"decoder": str(small)}
    event, _ = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert event.items() >= {"event": "comparison", **found.model_dump()}.items()
    assert not diffusion.seconds  # of the job alone


def test_without_memory_for_both_the_comparison_is_left_out(
    model: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = GenerateSettings(engine="eager", steps=2, render_size=SIZE, decoder=str(small))
    diffusion = Diffusion(model, settings, CPU)

    def full(self: Diffusion, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Diffusion, "_sample", full)
    log = Log(tmp_path / "log.jsonl")
    assert compare_with_plain(diffusion, model, settings, CPU, TEXTS, SEEDS, log) is None
    log.close()
    assert "not compared with the plain model: there is no memory for both" in (tmp_path / "log.jsonl").read_text()
