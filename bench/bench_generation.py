"""Whole images, from text to pixels: the engines against plain diffusers with the same settings.

The shipped model, and one whose UNet has the layers of Stable Diffusion 2.1 at a fifth of the channels, with random
weights. Run these with ``OMP_WAIT_POLICY=PASSIVE``, which ``aimfair`` itself sets: threads of one engine that spin take
the processors of the other.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from aimfair import cli, config_file
from aimfair.config import GenerateSettings
from aimfair.generation.diffusion import Diffusion
from aimfair.generation.model import SHIPPED
from bench.harness import Case, Rival, Runner
from bench.targets import GENERATE, PLAIN_DIFFUSERS

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

DIGITS = SHIPPED["digits"]
TEXT = "a handwritten seven in green ink"
ENGINES = ("eager", "onnxruntime")

SD21_UNET = {
    "block_out_channels": (64, 128, 256, 256),  # a fifth of Stable Diffusion 2.1's
    "attention_head_dim": [1, 2, 4, 4],
    "layers_per_block": 2,
    "use_linear_projection": True,
    "cross_attention_dim": 64,  # of the shipped text encoder
    "sample_size": 16,
}


@pytest.fixture(scope="session")
def sd21_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with another UNet; 64 x 64 pixels."""
    from diffusers import UNet2DConditionModel

    folder = tmp_path_factory.mktemp("model") / "sd21-like"
    shutil.copytree(DIGITS, folder, ignore=shutil.ignore_patterns("unet"))
    torch.manual_seed(0)
    UNet2DConditionModel(**SD21_UNET).save_pretrained(folder / "unet")
    return folder


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("images", [1, 16, 64])
def test_shipped_model(
    images: int, engine: str, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    settings = config_file.load(cli.BUNDLED / "demo.yaml").generate
    run(DIGITS, "digits", settings, engine, max(1, round(images * shrink)), device, runner, benchmark)


@pytest.mark.parametrize("engine", ENGINES)
def test_sd21_like(
    sd21_like: Path, engine: str, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    settings = GenerateSettings(steps=4, guidance_scale=9.0)
    run(sd21_like, "SD2.1 / 5", settings, engine, max(1, round(8 * shrink)), device, runner, benchmark)


def run(
    folder: Path,
    name: str,
    settings: GenerateSettings,
    engine: str,
    count: int,
    device: torch.device,
    runner: Runner,
    benchmark: BenchmarkFixture,
) -> None:
    skip_without(engine, device)
    texts, seeds = [TEXT] * count, list(range(count))
    ours, plain = (Diffusion(folder, settings.model_copy(update={"engine": engine}), device), pipeline(folder, device))
    made: dict[str, Any] = {}

    def sample() -> None:
        made["images"] = ours.sample(texts, seeds).images

    def diffusers() -> Any:
        return plain(
            texts,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance_scale,
            output_type="np",
        ).images

    def check() -> None:
        differences = np.abs(made["images"] - np.round(diffusers() * 255))
        assert differences.max() <= 1

    runner.run(
        Case(
            work=GENERATE,
            tensors=f"{name}, {count} images",
            state=engine,
            numel=count * 3 * ours.size**2,
            floor_bytes=0,
            ours=sample,
            check=check,
            rivals=[Rival(PLAIN_DIFFUSERS, diffusers)],
            capturable=False,
            items=count,
        ),
        benchmark,
    )


def pipeline(folder: Path, device: torch.device) -> Any:
    """As the documentation of diffusers loads it."""
    from diffusers import StableDiffusionPipeline

    loaded = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    loaded.set_progress_bar_config(disable=True)
    return loaded.to(device)


def skip_without(engine: str, device: torch.device) -> None:
    if engine == "onnxruntime":
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.type]
        if provider not in pytest.importorskip("onnxruntime").get_available_providers():
            pytest.skip(f"this onnxruntime has no {provider}")
