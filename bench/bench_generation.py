"""Whole images, from text to pixels: the shipped model in ONNX Runtime against the same model in PyTorch.

Images per second are the number of images over the time of a call. A call reads the weights of the denoiser once a
step and those of the decoder once, which is its floor of bytes; what it does with them is arithmetic, so its share of
the copy bandwidth says little. Run it with ``OMP_WAIT_POLICY=PASSIVE``, which ``aimfair`` itself sets: threads of one
engine that spin take the processors of the other.
"""

from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from aimfair import cli, config_file
from aimfair.generation.diffusion import Diffusion
from aimfair.generation.model import SHIPPED
from bench.harness import Case, Rival, Runner

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

BYTES_OF_A_WEIGHT = 4


def load(engine: str, device: torch.device) -> Diffusion:
    """With the settings of the demo."""
    demo = config_file.load(cli.BUNDLED / "demo.yaml").generate
    return Diffusion(SHIPPED["digits"], demo.model_copy(update={"engine": engine}), device)


@pytest.mark.parametrize("images", [1, 16, 64])
def test_generation(
    images: int, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    if device.type == "cuda":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA provider")
    count = max(1, round(images * shrink))
    texts, seeds = ["a handwritten seven in green ink"] * count, list(range(count))
    eager, ours = load("eager", device), load("onnxruntime", device)
    made: dict[str, Any] = {}

    def sample() -> None:
        made["images"] = ours.sample(texts, seeds).images

    def check() -> None:
        expected = eager.sample(texts, seeds).images.astype(int)
        assert np.abs(made["images"] - expected).max() <= 1

    demo = eager._settings
    case = Case(
        work=f"{demo.steps} steps, guided" if demo.guidance_scale > 1 else f"{demo.steps} steps",
        tensors=f"digits, {count} images",
        numel=count * 3 * eager.size**2,
        floor_bytes=BYTES_OF_A_WEIGHT
        * (demo.steps * weights(eager._pipeline.unet) + weights(eager._pipeline.vae.decoder)),
        ours=sample,
        check=check,
        rivals=[Rival("eager", lambda: eager.sample(texts, seeds))],
        capturable=False,
    )
    result = runner.run(case, benchmark)
    benchmark.extra_info["images_per_s"] = {
        "onnxruntime": count / result.seconds,
        "eager": count / result.rivals[0].seconds,
    }


def weights(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
