"""Generating: whole images in each engine against plain diffusers, encoding files, writing prompts.

The shipped model, and one whose UNet has the layers of Stable Diffusion 2.1 at a fifth of the channels, with random
weights. Run these with ``OMP_WAIT_POLICY=PASSIVE``, which ``aimfair`` itself sets: threads of one engine that spin take
the processors of the other.
"""

import itertools
import random
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture

from aimfair.commands.settings import BUNDLED
from aimfair.config import load as config_file
from aimfair.diffusion.model import SHIPPED
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.manifest import IMAGES, Format
from aimfair.generation.settings import GenerateSettings
from aimfair.generation.store import FileStore
from aimfair.generation.writer import Writer, encode
from aimfair.prompts.grammar import Prompt, write_prompts
from bench.harness import Case, Rival, Runner
from bench.targets import ENCODE, GENERATE, PLAIN_DIFFUSERS, PROMPTS, USUAL

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning"),  # Inductor
]

DIGITS = SHIPPED["digits"]
TEXT = "a handwritten seven in green ink"
ENGINES = ("eager", "compile", "onnxruntime", "tensorrt", "tensorrt-rtx")

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
    settings = config_file.load(BUNDLED / "demo.yaml").generate
    run(DIGITS, "digits", settings, engine, max(1, round(images * shrink)), device, runner, benchmark)


@pytest.mark.parametrize("engine", ENGINES)
def test_sd21_like(
    sd21_like: Path, engine: str, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    settings = GenerateSettings(steps=4, guidance_scale=9.0)
    run(sd21_like, "SD2.1 / 5", settings, engine, max(1, round(8 * shrink)), device, runner, benchmark)


SHORTCUTS: dict[str, dict[str, Any]] = {
    "int8": {"engine": "onnxruntime", "quantization": "int8"},
    "4 steps": {"engine": "onnxruntime", "steps": 4},
    "int8, 4 steps": {"engine": "onnxruntime", "quantization": "int8", "steps": 4},
    "int8, 3 steps": {"engine": "onnxruntime", "quantization": "int8", "steps": 3},
    "guidance in half": {"engine": "onnxruntime", "guidance_interval": (0.0, 0.5)},
    "int8, 4 steps, guidance in half": {
        "engine": "onnxruntime",
        "quantization": "int8",
        "steps": 4,
        "guidance_interval": (0.0, 0.5),
    },
    "small decoder": {"engine": "onnxruntime"},  # of random weights: for its time alone
    "step cache": {"engine": "eager", "step_cache": "deep"},
    "channels last": {"engine": "eager", "channels_last": True},
}


@pytest.fixture(scope="session")
def small_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the latents of the shipped model, with the widths of TAESD."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    decoder = AutoencoderTiny(
        encoder_block_out_channels=(64, 64, 64),
        decoder_block_out_channels=(64, 64, 64),
        num_encoder_blocks=(1, 3, 3),
        num_decoder_blocks=(3, 3, 1),
    )
    decoder.save_pretrained(folder := tmp_path_factory.mktemp("decoder"))
    return folder


@pytest.mark.parametrize("name", SHORTCUTS)
def test_shortcuts(
    name: str, small_decoder: Path, device: torch.device, shrink: float, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    """Images of the shipped model with settings that trade likeness for speed, against 8 steps without, in the best
    engine here."""
    changes = dict(SHORTCUTS[name])
    if name == "small decoder":
        changes["decoder"] = str(small_decoder)
    engine = "onnxruntime" if device.type == "cpu" else "eager"
    for one in (engine, changes["engine"]):
        skip_without(one, device)
    settings = config_file.load(BUNDLED / "demo.yaml").generate.model_copy(update={"steps": 8})
    count = max(8, round(64 * shrink))
    words = ("two", "five", "seven", "nine")
    texts, seeds = [f"a handwritten {words[k % 4]} in green ink" for k in range(count)], list(range(count))
    fast, usual = (
        Diffusion(DIGITS, settings.model_copy(update=values), device, prompts=texts[:4])
        for values in (changes, {"engine": engine})
    )
    made: dict[str, Any] = {}

    def sample() -> None:
        made["images"] = fast.sample(texts, seeds).images

    def check() -> None:
        differences = np.abs(made["images"].astype(int) - usual.sample(texts, seeds).images)
        # Other digits differ by 60; a decoder of random weights draws nothing.
        assert name == "small decoder" or differences.mean() < 30, f"{differences.mean():.1f} grey levels"

    runner.run(
        Case(
            work=GENERATE,
            tensors=f"digits, {count} images",
            state=name,
            numel=count * 3 * fast.size**2,
            floor_bytes=0,
            ours=sample,
            check=check,
            rivals=[Rival(USUAL, lambda: usual.sample(texts, seeds))],
            capturable=False,
            items=count,
        ),
        benchmark,
    )


@pytest.mark.parametrize("image_format", ["webp", "png"])
@pytest.mark.parametrize("size", [32, 256, 512])
def test_encoding(
    size: int, image_format: Format, device: torch.device, tmp_path: Path, runner: Runner, benchmark: BenchmarkFixture
) -> None:
    """Images to files that are on disk. Pixels have the spectrum of photographs, 1/f."""
    skip_on_a_gpu(device)
    images = photographs(64 if size < 256 else 8, size)

    store = FileStore(tmp_path)
    (tmp_path / IMAGES).mkdir()

    def write(k: int, image: np.ndarray) -> None:
        store.put(f"{k}.{image_format}", encode(image, image_format))

    def ours() -> None:
        writer = Writer(lambda _: None, lambda _: None)
        with writer:
            writer.put([partial(write, k, image) for k, image in enumerate(images)])  # type: ignore[misc]

    def check() -> None:
        for k, image in enumerate(images):
            assert np.array_equal(np.asarray(Image.open(tmp_path / IMAGES / f"{k}.{image_format}")), image)

    def pillow(name: str, **options: Any) -> None:
        for k, image in enumerate(images):
            Image.fromarray(image).save(tmp_path / f"{k}{name}", **options)

    runner.run(
        Case(
            work=ENCODE,
            tensors=f"{size} x {size}, {len(images)} images",
            state=image_format,
            numel=images.size,
            floor_bytes=0,
            ours=ours,
            check=check,
            rivals=[
                Rival("Pillow's PNG", partial(pillow, ".pillow.png")),
                Rival("Pillow's lossless WebP", partial(pillow, ".pillow.webp", lossless=True)),
            ],
            capturable=False,
            items=len(images),
        ),
        benchmark,
    )


def photographs(count: int, size: int) -> npt.NDArray[np.uint8]:
    """Noise [count, size, size, 3] whose amplitudes fall as 1/f."""
    rng = np.random.default_rng(0)
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((count, 3, size, size))) / frequencies
    noise = np.fft.irfft2(spectrum, s=(size, size))
    noise /= noise.std((2, 3), keepdims=True)
    return np.ascontiguousarray((noise * 48 + 128).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1))


@pytest.mark.parametrize("per_group", [50, 1250])
def test_prompts(per_group: int, device: torch.device, runner: Runner, benchmark: BenchmarkFixture) -> None:
    """Balanced contexts, shared by all groups, against words taken at random and written into the same template."""
    skip_on_a_gpu(device)
    settings = config_file.load(BUNDLED / "celeba-smiling-male.yaml").prompts
    settings = settings.model_copy(update={"per_group": per_group})
    made: list[Prompt] = []

    def ours() -> None:
        made[:] = write_prompts(settings)

    def at_random() -> list[str]:
        rng, texts = random.Random(0), []
        for target, protected in itertools.product(settings.targets, settings.protected):
            for _ in range(per_group):
                contexts = rng.sample(sorted(settings.contexts), settings.contexts_per_prompt)
                words = ", ".join(rng.choice(settings.contexts[name]) for name in contexts)
                texts.append(
                    settings.template.format(target=rng.choice(target), protected=rng.choice(protected), contexts=words)
                )
        return texts

    def check() -> None:
        assert len({prompt.text for prompt in made}) == len(made) == 4 * per_group

    runner.run(
        Case(
            work=PROMPTS,
            tensors=f"{4 * per_group} prompts",
            state="grammar",
            numel=4 * per_group,
            floor_bytes=0,
            ours=ours,
            check=check,
            rivals=[Rival("at random", at_random)],
            capturable=False,
            items=4 * per_group,
        ),
        benchmark,
    )


def skip_on_a_gpu(device: torch.device) -> None:
    if device.type == "cuda":
        pytest.skip("this is the processor's work")


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
    if engine.startswith("tensorrt"):
        if device.type != "cuda":
            pytest.skip(f"{engine} runs on NVIDIA GPUs")
        pytest.importorskip(engine.replace("-", "_"))
    if engine == "onnxruntime":
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device.type]
        if provider not in pytest.importorskip("onnxruntime").get_available_providers():
            pytest.skip(f"this onnxruntime has no {provider}")
