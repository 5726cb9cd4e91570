"""The engines that a GPU runs, against eager, on the shipped model: python -m tools.gpu_check --generation."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.diffusion.engines import store
from aimfair.diffusion.model import SHIPPED
from aimfair.generation.settings import GenerateSettings

from .device import CUDA

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(find_spec("diffusers") is None, reason="needs diffusers"),
]

TEXTS = [f"a handwritten {digit} in {ink} ink" for digit in ("two", "seven", "nine") for ink in ("green", "red")]
SEEDS = list(range(len(TEXTS)))
TOLERANCES = {"float32": 2, "float16": 12, "bfloat16": 40}
"""Grey levels. Eight steps with guidance make of a rounding in half precision what one step does not show."""


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def load(engine: str, device: torch.device = CUDA, **settings: Any) -> Any:
    from aimfair.diffusion.text_to_image import Diffusion

    wanted = {"steps": 8, "guidance_scale": 2.0, "batch_size": 4, **settings}
    return Diffusion(SHIPPED["digits"], GenerateSettings(engine=engine, **wanted), device)


def skip_without(engine: str) -> None:
    if engine.startswith("tensorrt"):
        pytest.importorskip(engine.replace("-", "_"))
    if engine == "tensorrt-rtx" and torch.cuda.get_device_capability()[0] == 9:
        pytest.skip("tensorrt-rtx has no code for this GPU")
    if engine == "onnxruntime":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA provider")


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


def test_eager_makes_the_images_of_the_cpu() -> None:
    images = load("eager").sample(TEXTS, SEEDS).images
    assert levels(images, load("eager", torch.device("cpu")).sample(TEXTS, SEEDS).images) <= TOLERANCES["float32"]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("engine", ["compile", "onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_engines_make_the_images_of_eager(engine: str, dtype: str) -> None:
    """Six images in batches of four: one whole, one that must be filled up; twice, the second time from graphs."""
    skip_without(engine)
    if engine == "onnxruntime" and dtype == "bfloat16":
        pytest.skip("onnxruntime does not run bfloat16")
    expected = load("eager", dtype=dtype).sample(TEXTS, SEEDS).images
    diffusion = load(engine, dtype=dtype)
    first, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    assert levels(first, expected) <= TOLERANCES[dtype]
    assert np.array_equal(diffusion.sample(TEXTS, SEEDS).images, first)


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("settings", [{"profile": "dynamic"}, {"cuda_graphs": False}], ids=str)
def test_tensorrt_in_other_ways(engine: str, settings: dict[str, Any]) -> None:
    skip_without(engine)
    expected = load("eager").sample(TEXTS, SEEDS).images
    assert levels(load(engine, tensorrt=settings).sample(TEXTS, SEEDS).images, expected) <= TOLERANCES["float32"]
    ((_, entry),) = store.entries()
    assert isinstance(entry, store.Entry)
    assert entry.agreement is not None
    assert entry.agreement.good
