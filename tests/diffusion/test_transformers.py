"""Small models of the families with transformers, and latent consistency models: images as plain diffusers makes them,
with language models as text encoders, in eager and in an engine."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.diffusion.families import flux2
from aimfair.diffusion.text_to_image import Diffusion, engine_and_source
from aimfair.generation.settings import GenerateSettings
from tests.diffusion.test_families import Recorded, levels

CPU = torch.device("cpu")
PIXELS = 32  # the least that Sana makes
TEXTS, SEEDS = ["a one in green, thin", "a two in red", "seven"], [1, 2, 3]
ALL = ["lcm", "pixart_alpha", "pixart_sigma", "sana", "sana_sprint", "flux2_klein", "qwen_image", "z_image"]
NO_SMALL_DECODER = ("flux2_klein", "qwen_image")
GUIDED = [name for name in ALL if name not in ("lcm", "sana_sprint")]


def quick(*names: str, of: list[str] = ALL) -> list[Any]:
    """Parameters of which only these are not slow: the others differ little from them."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in of]


def settings(**changes: Any) -> GenerateSettings:
    return GenerateSettings(**{"engine": "eager", "steps": 2, "render_size": PIXELS, **changes})


def load(folder: Path, **changes: Any) -> Diffusion:
    return Diffusion(folder, settings(**changes), CPU)


def plain(diffusion: Diffusion, name: str, text: str, seed: int, scale: float, negative: str = "") -> np.ndarray:
    """The image as a user of diffusers would make it."""
    options: dict[str, Any] = {"guidance_scale": scale}
    if name == "qwen_image":
        options = {"true_cfg_scale": scale}
    if name in ("qwen_image", "pixart_alpha", "pixart_sigma", "sana", "z_image"):
        options["negative_prompt"] = negative
    if name == "flux2_klein":
        options["max_sequence_length"] = flux2._LENGTH
    if name.startswith(("pixart", "sana")):
        options["use_resolution_binning"] = False
    images = diffusion._pipeline(
        prompt=text,
        num_inference_steps=2,
        height=PIXELS,
        width=PIXELS,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **options,
    ).images
    return (images * 255).round().astype(np.uint8)[0]


@pytest.fixture(autouse=True)
def fewer_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.2 attends to 512, padding included, which takes long on a CPU."""
    monkeypatch.setattr(flux2, "_LENGTH", 128)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saves a model once."""
    from tests.diffusion.tiny_models import save
    from tests.diffusion.tiny_transformers import TRANSFORMERS

    folder = tmp_path_factory.mktemp("transformers")
    return functools.cache(lambda name: save(TRANSFORMERS[name], folder / name))


@pytest.mark.parametrize("name", quick("lcm", "pixart_sigma", "sana", "flux2_klein", "qwen_image", "z_image"))
def test_images_are_those_of_plain_diffusers_whatever_else_is_in_the_batch(
    models: Callable[[str], Path], name: str
) -> None:
    diffusion = load(models(name), guidance_scale=3.0)
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert (images.shape, diffusion.size) == ((3, PIXELS, PIXELS, 3), PIXELS)
    assert finite.all()
    assert all(image.std() > 5 for image in images)
    alone = diffusion.sample([TEXTS[2]], [SEEDS[2]]).images[0]  # the shortest, which the others pad
    assert levels(images[2], alone) <= 1
    assert levels(alone, plain(diffusion, name, TEXTS[2], SEEDS[2], 3.0)) <= 1


@pytest.mark.parametrize("name", quick("z_image", of=GUIDED))
def test_guidance_and_negative_prompts(models: Callable[[str], Path], name: str) -> None:
    text, seed = TEXTS[:1], SEEDS[:1]
    without = load(models(name), guidance_scale=0.0)
    (image,) = without.sample(text, seed).images
    assert levels(image, plain(without, name, text[0], seed[0], 0.0)) <= 1
    away = load(models(name), guidance_scale=4.0, negative_prompt="red")
    (steered,) = away.sample(text, seed).images
    if name != "flux2_klein":  # which takes it as embeddings only
        assert levels(steered, plain(away, name, text[0], seed[0], 4.0, "red")) <= 1
    (towards,) = load(models(name), guidance_scale=4.0).sample(text, seed).images
    assert levels(steered, towards) > 0
    assert levels(towards, image) > 0


@pytest.mark.parametrize("name", quick("sana_sprint", "qwen_image", "z_image"))
def test_each_text_is_embedded_once_and_an_engine_runs_the_rest(models: Callable[[str], Path], name: str) -> None:
    engine = Recorded(engine_and_source(models(name), settings(), CPU)[1])
    diffusion = load(models(name))
    diffusion._engine = engine
    sizes: list[int] = []
    if name != "lcm":  # its text encoder is in the engine
        diffusion._pipeline.text_encoder.register_forward_hook(lambda *_: sizes.append(1))
    diffusion._family.replace(diffusion._pipeline, engine)
    images = diffusion.sample(TEXTS, SEEDS).images
    assert levels(images[:1], diffusion.sample(TEXTS[:1], SEEDS[:1]).images) <= 1
    assert len(sizes) == (0 if name == "lcm" else len(TEXTS) + (name in GUIDED))
    assert levels(images, load(models(name)).sample(TEXTS, SEEDS).images) <= 1
    assert engine.ran == {part.name for part in engine.source.parts}
    modules = diffusion._pipeline.components
    assert [part for part, one in modules.items() if isinstance(one, torch.nn.Module) and list(one.parameters())] == (
        [] if name == "lcm" else ["text_encoder"]
    )
    with pytest.raises(AimfairError, match="needs mask, which only"):
        getattr(diffusion._pipeline, diffusion._family.denoiser).refuse({"mask": torch.ones(1)})


def test_prompts_that_are_too_long_are_refused_with_their_chat(models: Callable[[str], Path]) -> None:
    diffusion = load(models("z_image"))
    (vocabulary,) = diffusion._family.vocabularies(diffusion._pipeline).values()
    frame = len(vocabulary.tokenizer.tokenize(vocabulary.wrap("")))
    most = 256 - frame
    assert diffusion.sample(["x" * most], [1]).finite.all()
    with pytest.raises(AimfairError, match=rf"has {most + 1} tokens, the text_encoder of generate\.model takes {most}"):
        diffusion.sample(["x" * (most + 1)], [1])


def test_what_a_family_cannot_do(models: Callable[[str], Path]) -> None:
    with pytest.raises(
        AimfairError, match=r"guidance_interval: found \[0\.2, 0\.8\].*Flux2KleinPipeline has guidance in"
    ):
        load(models("flux2_klein"), guidance_interval=(0.2, 0.8))
    with pytest.raises(AimfairError, match=r"decoder: found /small, expected none for a QwenImagePipeline"):
        load(models("qwen_image"), decoder="/small")
    for name in ("lcm", "sana_sprint"):
        with pytest.raises(AimfairError, match=r"negative_prompt: found 'red', expected none"):
            load(models(name), negative_prompt="red")
    with pytest.raises(AimfairError, match=r"render_size: found 48, expected a multiple of 32"):
        load(models("sana"), render_size=48)
    for scheduler in ("as_saved", "unipc"):
        with pytest.raises(AimfairError, match=r"steps: found 1, expected 2 or more: a PixArtAlphaPipeline makes no"):
            load(models("pixart_alpha"), steps=1, scheduler=scheduler)
    assert load(models("pixart_alpha"), steps=1, scheduler="lcm", guidance_scale=1.0).sample(TEXTS, SEEDS).finite.all()


@pytest.mark.parametrize("name", quick("sana", "z_image", of=[name for name in ALL if name not in NO_SMALL_DECODER]))
def test_a_small_decoder(models: Callable[[str], Path], small: Path, name: str) -> None:
    diffusion = load(models(name), guidance_scale=3.0, decoder=str(small))
    (image,) = diffusion.sample(TEXTS[:1], SEEDS[:1]).images
    assert image.std() > 5
    assert levels(image, plain(diffusion, name, TEXTS[0], SEEDS[0], 3.0)) <= 1


@pytest.mark.slow
def test_int8(models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other families differ little from it; see docs/engines.md for what was tried."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = settings(engine="onnxruntime", quantization="int8", guidance_scale=3.0)
    images = Diffusion(models("z_image"), chosen, CPU, prompts=TEXTS).sample(TEXTS, SEEDS).images
    differences = np.abs(images.astype(int) - load(models("z_image"), guidance_scale=3.0).sample(TEXTS, SEEDS).images)
    assert 0 < differences.mean() < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_images_of_onnxruntime_are_eager_s(
    models: Callable[[str], Path], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    diffusion = load(models(name), engine="onnxruntime")
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    assert levels(images, load(models(name)).sample(TEXTS, SEEDS).images) <= 1
    assert levels(images[1], diffusion.sample([TEXTS[1]], [SEEDS[1]]).images[0]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in ALL), ("sana", "float16")])
def test_half_precision_in_the_pipeline_and_in_an_engine(models: Callable[[str], Path], name: str, dtype: str) -> None:
    diffusion = load(models(name), dtype=dtype)
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    assert np.abs(images.astype(int) - load(models(name)).sample(TEXTS, SEEDS).images).mean() < 3
    engine = Recorded(engine_and_source(models(name), settings(dtype=dtype), CPU)[1])
    diffusion._engine = engine
    diffusion._family.replace(diffusion._pipeline, engine)
    assert np.abs(images.astype(int) - diffusion.sample(TEXTS, SEEDS).images).mean() < 1
