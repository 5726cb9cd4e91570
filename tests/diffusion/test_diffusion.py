"""A small Stable Diffusion: each image its own, whole models only, memory that runs out."""

import gc
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.diffusion.text_to_image import Diffusion
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import SIZE

TEXTS = ["a one in green, thin", "a two in red", "a one in green, thin", "seven"]
SEEDS = [1, 2, 3, 2**62]
UNET = "unet/diffusion_pytorch_model.safetensors"


def load(model: Path, **settings: Any) -> Diffusion:
    return Diffusion(model, GenerateSettings(**{"engine": "eager", "steps": 3, **settings}), torch.device("cpu"))


@pytest.fixture(scope="module")
def diffusion(model: Path) -> Diffusion:
    return load(model)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


def test_images_of_the_asked_form(diffusion: Diffusion) -> None:
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert (images.shape, images.dtype, diffusion.size) == ((4, SIZE, SIZE, 3), np.uint8, SIZE)
    assert finite.tolist() == [True] * 4
    assert all(image.std() > 10 for image in images)


@pytest.mark.parametrize("scheduler", ["as_saved", "ddim", "dpmpp_2m", "unipc", "lcm", "tcd"])
def test_an_image_does_not_depend_on_its_batch(model: Path, scheduler: str) -> None:
    scale = 2.0  # at most, for lcm and tcd
    diffusion = load(model, scheduler=scheduler, guidance_scale=scale)
    together = diffusion.sample(TEXTS, SEEDS).images
    for k in (3, 1, 0, 2):
        assert levels(together[k], diffusion.sample([TEXTS[k]], [SEEDS[k]]).images[0]) <= 1
    assert np.array_equal(together, diffusion.sample(TEXTS, SEEDS).images)
    again = load(model, scheduler=scheduler, guidance_scale=scale)
    assert np.array_equal(together, again.sample(TEXTS, SEEDS).images)


def test_noise_of_each_step_is_the_image_s_own_too(copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    config = {**json.loads(path.read_text()), "_class_name": "EulerAncestralDiscreteScheduler"}
    path.write_text(json.dumps(config))
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", config["_class_name"]))
    diffusion = load(copy)
    together = diffusion.sample(TEXTS, SEEDS).images
    assert levels(together[1], diffusion.sample([TEXTS[1]], [SEEDS[1]]).images[0]) <= 1


def test_text_seed_and_settings_matter(model: Path, diffusion: Diffusion) -> None:
    image = diffusion.sample([TEXTS[0]], [1]).images
    others = {
        "text": diffusion.sample([TEXTS[1]], [1]).images,
        "seed": diffusion.sample([TEXTS[0]], [2]).images,
        **{
            name: load(model, **{name: value}).sample([TEXTS[0]], [1]).images
            for name, value in {"steps": 4, "guidance_scale": 8.0, "negative_prompt": "red"}.items()
        },
    }
    assert [name for name, other in others.items() if np.array_equal(image, other)] == []


def test_guidance_of_one_asks_the_model_once(model: Path) -> None:
    sizes: list[int] = []
    for scale in (1.0, 3.0):
        diffusion = load(model, guidance_scale=scale)
        diffusion._pipeline.unet.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        diffusion.sample(TEXTS, SEEDS)
    assert sizes == [4] * 3 + [8] * 3


def test_each_text_is_embedded_once_and_alone(model: Path) -> None:
    diffusion = load(model)
    sizes: list[int] = []
    diffusion._pipeline.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(kwargs.get("input_ids", *args))), with_kwargs=True
    )
    for _ in range(2):
        diffusion.sample(TEXTS, SEEDS)
    assert sizes == [1] * 4  # three texts and the negative one


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_interval": (0.0, 0.5)}, {"step_cache": "deep"}], ids=["plain", "interval", "cache"]
)
def test_a_model_leaves_memory_with_the_last_reference(model: Path, changes: dict[str, Any]) -> None:
    """On a GPU there is often no memory for a second one, and nothing makes Python look for cycles."""
    gc.collect()
    gc.disable()
    try:
        diffusion = load(model, steps=2, **changes)
        diffusion.sample(TEXTS[:1], SEEDS[:1])
        parts = diffusion._engine._modules.values()  # type: ignore[attr-defined]  # eager's
        kept = [weakref.ref(diffusion), *(weakref.ref(module) for part in parts for module in part.modules())]
        del diffusion, parts
        assert not [one() for one in kept if one() is not None]
    finally:
        gc.enable()


def test_render_size(model: Path) -> None:
    assert load(model, render_size=24).sample(["one"], [1]).images.shape == (1, 24, 24, 3)
    with pytest.raises(AimfairError, match=rf"generate\.render_size: found 20, expected a multiple of 8.*is {SIZE}\)"):
        load(model, render_size=20)


def test_bfloat16(model: Path) -> None:
    diffusion = load(model, dtype="bfloat16")
    assert diffusion._pipeline.unet.dtype == torch.bfloat16
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    exact = load(model).sample(TEXTS, SEEDS).images
    assert np.abs(images.astype(int) - exact).mean() < 8  # the same noise, and nearly the same image


@pytest.mark.parametrize("part", ["unet", "vae.decoder"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_told(model: Path, part: str, value: float) -> None:
    diffusion = load(model, guidance_scale=1.0)

    def spoil(_: torch.nn.Module, __: object, output: Any) -> None:
        (output[0] if isinstance(output, tuple) else output)[1, 0, 0, 0] = value

    owner, *names = part.split(".")
    getattr(diffusion._pipeline, owner).get_submodule(".".join(names)).register_forward_hook(spoil)
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.tolist() == [True, False, True, True]
    assert images[[0, 2, 3]].std() > 10


def test_decoding_is_the_pipeline_s(diffusion: Diffusion) -> None:
    image = diffusion.sample([TEXTS[0]], [7]).images
    expected = diffusion._pipeline(
        TEXTS[0],
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images
    assert levels(image, (expected * 255).round().astype(np.uint8)) <= 1


def test_out_of_memory_halves_the_batch(model: Path, diffusion: Diffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load(model, batch_size=4)
    sizes: list[int] = []

    def limit(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 2 * 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = small._pipeline.unet.register_forward_pre_hook(limit)
    images = small.sample(TEXTS, SEEDS).images
    assert sizes[:2] == [8, 4]
    assert set(sizes[2:]) == {2}
    assert levels(images, diffusion.sample(TEXTS, SEEDS).images) <= 1
    hook.remove()
    small._pipeline.unet.register_forward_pre_hook(limit)
    sizes.clear()
    small.sample(TEXTS, SEEDS)
    assert set(sizes) == {2}  # it has learned

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    small._pipeline.unet.register_forward_pre_hook(full)
    with pytest.raises(AimfairError, match="out of memory with a single image"):
        small.sample(TEXTS, SEEDS)


def test_texts_that_the_model_cannot_read(diffusion: Diffusion) -> None:
    with pytest.raises(AimfairError, match=r"has 76 tokens, the text_encoder of generate\.model takes 75"):
        diffusion.sample(["x" * 76], [1])
    assert diffusion.sample(["x" * 75], [1]).finite.all()
    with pytest.raises(
        AimfairError,
        match=r"'drei ß zwei': the text_encoder of generate\.model does not know the words 'ß'; use others",
    ):
        diffusion.sample(["drei ß zwei"], [1])


def test_a_negative_prompt_that_the_model_cannot_read(model: Path) -> None:
    with pytest.raises(
        AimfairError, match=r"^generate\.negative_prompt 'x{76}' has 76 tokens, .* takes 75; shorten it"
    ):
        load(model, negative_prompt="x" * 76)
    with pytest.raises(AimfairError, match=r"^generate\.negative_prompt 'drei ß': .* does not know the words 'ß'"):
        load(model, negative_prompt="drei ß")


def test_a_negative_prompt_without_guidance(model: Path) -> None:
    with pytest.warns(UserWarning, match=r"generate\.negative_prompt: 'red' is not used: .*guidance_scale 1\.0"):
        load(model, negative_prompt="red", guidance_scale=1.0)


@pytest.mark.parametrize("scheduler", ["as_saved", "ddim", "dpmpp_2m", "unipc"])
def test_more_steps_than_noise_levels(model: Path, scheduler: str) -> None:
    with pytest.raises(AimfairError, match=r"generate\.steps: found 1001, expected at most 1000, with which"):
        load(model, steps=1001, scheduler=scheduler)


def test_steps_that_a_scheduler_refuses(copy: Path) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "LCMScheduler"}))
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "LCMScheduler"))
    with pytest.raises(AimfairError, match=r"generate\.steps: found 60, which the LCMScheduler .* refuses: .*60"):
        load(copy, steps=60)


def test_nothing_is_printed(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(model).sample(TEXTS[:1], SEEDS[:1])
    assert capfd.readouterr() == ("", "")


def nan_weights(folder: Path) -> None:
    weights = load_file(folder / UNET)
    weights["conv_in.bias"][3] = torch.nan
    save_file(weights, folder / UNET, {"format": "pt"})


def truncated(folder: Path) -> None:
    (folder / UNET).write_bytes((folder / UNET).read_bytes()[:-100])


def one_name_twice(folder: Path) -> None:
    whole = (folder / UNET).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + length].rstrip()
    first = re.match(rb'\{("[^"]+":\{[^}]*\})', header.replace(b'{"__metadata__":{"format":"pt"},', b"{"))
    assert first is not None
    header = header[:-1] + b"," + first[1] + b"}"
    (folder / UNET).write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + length :])


def other_shape(folder: Path) -> None:
    weights = load_file(folder / UNET)
    weights["conv_in.bias"] = weights["conv_in.bias"][:3].clone()
    save_file(weights, folder / UNET, {"format": "pt"})


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / UNET), (folder / UNET).with_suffix(".bin"))
    (folder / UNET).unlink()


def fp16_only(folder: Path) -> None:
    for path in list(folder.rglob("*.safetensors")):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))


def no_vocabulary(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()


def other_family(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "StableDiffusionUpscalePipeline"))


def no_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def no_index(folder: Path) -> None:
    (folder / "model_index.json").write_text("<html>")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (nan_weights, r"unet: conv_in\.bias holds NaN or infinite weights"),
        (truncated, "not a usable StableDiffusionPipeline: "),
        (one_name_twice, "the header holds '.*' twice"),
        (other_shape, "not a usable StableDiffusionPipeline: "),
        (pickled, r"unet: no usable weights: found diffusion_pytorch_model\.bin, expected \.safetensors files"),
        (fp16_only, r"text_encoder: no usable weights: found model\.fp16\.safetensors, .*without \.fp16.*; rename"),
        (no_vocabulary, r"tokenizer: has no vocabulary, expected one of: tokenizer\.json, vocab\.json"),
        (other_family, r"a StableDiffusionUpscalePipeline, expected one of: StableDiffusionPipeline \("),
        (no_vae, "incomplete: vae missing"),
        (no_index, r"model_index\.json: not the index of a model"),
    ],
)
def test_damaged_models_are_refused(copy: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(copy)
    with pytest.raises(AimfairError, match=message) as error:
        load(copy)
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)
