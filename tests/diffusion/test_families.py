"""Small models of every family: images as plain diffusers makes them, the same ones in ONNX Runtime, early refusals."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.diffusion.engines.agreement import compare, example
from aimfair.diffusion.engines.engine import Eager, Engine, Source
from aimfair.diffusion.families import sd3
from aimfair.diffusion.families.flux import pack, unpack
from aimfair.diffusion.text_to_image import Diffusion, engine_and_source
from aimfair.generation.settings import GenerateSettings
from tests.generation.samples import SIZE

CPU = torch.device("cpu")
TEXTS, SEEDS = ["a one in green, thin", "a two in red", "seven"], [1, 2, 3]
ALL = ["stable_diffusion", "sdxl", "sd3", "flux"]
EXPORTED = [pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl", "sd3", "flux")]
"""An export takes ten seconds or more; test_onnx_runtime.py makes one of a Stable Diffusion 2.x, the shipped model."""
ENCODERS = {"stable_diffusion": 1, "sdxl": 2, "sd3": 3, "flux": 2}


def settings(**changes: Any) -> GenerateSettings:
    return GenerateSettings(**{"engine": "eager", "steps": 3, "render_size": SIZE, **changes})


def load(folder: Path, **changes: Any) -> Diffusion:
    return Diffusion(folder, settings(**changes), CPU)


def levels(a: np.ndarray, b: np.ndarray) -> int:
    """Grey levels between the two images, at most."""
    return int(np.abs(a.astype(int) - b).max())


def plain(pipeline: Any, text: str, seed: int, **options: Any) -> np.ndarray:
    """The image as a user of diffusers would make it."""
    images = pipeline(
        text,
        num_inference_steps=3,
        height=SIZE,
        width=SIZE,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **options,
    ).images
    return (images * 255).round().astype(np.uint8)


@pytest.fixture
def variant(tmp_path: Path) -> Callable[..., Path]:
    """Saves a model of :mod:`tests.diffusion.tiny_models` with other options."""
    from tests.diffusion import tiny_models

    def make(name: str, **options: Any) -> Path:
        return tiny_models.save(functools.partial(tiny_models.FAMILIES[name], **options), tmp_path / name)

    return make


# -- eager -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [3.0, 1.0])
@pytest.mark.parametrize("name", ALL)
def test_images_are_those_of_plain_diffusers(models: dict[str, Path], name: str, scale: float) -> None:
    diffusion = load(models[name], guidance_scale=scale)
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert (images.shape, images.dtype, diffusion.size) == ((3, SIZE, SIZE, 3), np.uint8, SIZE)
    assert finite.all()
    assert all(image.std() > 10 for image in images)
    for k in (0, 1):
        assert levels(images[k], plain(diffusion._pipeline, TEXTS[k], SEEDS[k], guidance_scale=scale)[0]) <= 1


@pytest.mark.parametrize("name", ["sdxl", "sd3"])
def test_a_negative_prompt_is_that_of_plain_diffusers(models: dict[str, Path], name: str) -> None:
    diffusion = load(models[name], negative_prompt="red")
    image = diffusion.sample(TEXTS[:1], SEEDS[:1]).images
    expected = plain(diffusion._pipeline, TEXTS[0], SEEDS[0], guidance_scale=3.0, negative_prompt="red")
    assert levels(image, expected) <= 1
    assert levels(image, load(models[name]).sample(TEXTS[:1], SEEDS[:1]).images) > 1


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_depend_on_its_batch(models: dict[str, Path], name: str) -> None:
    diffusion = load(models[name])
    together = diffusion.sample(TEXTS, SEEDS).images
    for k in (2, 0):
        assert levels(together[k], diffusion.sample([TEXTS[k]], [SEEDS[k]]).images[0]) <= 1


@pytest.mark.parametrize("name", ALL)
def test_each_text_is_embedded_once_by_every_encoder(models: dict[str, Path], name: str) -> None:
    diffusion = load(models[name])
    sizes: list[int] = []
    for part, module in diffusion._pipeline.components.items():
        if part.startswith("text_encoder"):
            module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for _ in range(2):
        diffusion.sample([*TEXTS, TEXTS[0]], [*SEEDS, 4])
    negative = 0 if name == "flux" else 1
    assert sizes == [1] * ENCODERS[name] * (3 + negative)


def test_guidance_is_an_input_of_flux_dev_and_schnell_has_none(
    models: dict[str, Path], variant: Callable[..., Path]
) -> None:
    def image(folder: Path, scale: float) -> np.ndarray:
        return load(folder, guidance_scale=scale).sample(TEXTS[:1], SEEDS[:1]).images

    assert not np.array_equal(image(models["flux"], 1.0), image(models["flux"], 5.0))
    schnell = variant("flux", guidance_embeds=False)
    assert np.array_equal(image(schnell, 1.0), image(schnell, 5.0))


def test_patches_of_flux_are_those_of_diffusers() -> None:
    from diffusers import FluxPipeline

    latents = torch.randn(2, 4, 6, 8)
    packed = FluxPipeline._pack_latents(latents, 2, 4, 6, 8)
    assert torch.equal(pack(latents), packed)
    assert torch.equal(unpack(packed, (4, 6, 8)), latents)


@pytest.mark.parametrize("name", ALL)
def test_float16(models: dict[str, Path], name: str) -> None:
    diffusion = load(models[name], dtype="float16")
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    assert np.abs(images.astype(int) - load(models[name]).sample(TEXTS, SEEDS).images).mean() < 3
    upcast = name == "sdxl"  # its autoencoder overflows in half precision
    assert diffusion._pipeline.vae.dtype == (torch.float32 if upcast else torch.float16)


# -- an engine in the place of the modules -----------------------------------------------------------------------------


class Recorded(Eager):
    """Eager as an engine that takes the modules' place."""

    def __init__(self, source: Source):
        super().__init__(source)
        self.source, self.ran = source, set[str]()

    def run(self, part: str, inputs: Any) -> tuple[torch.Tensor, ...]:
        (here,) = (there for there in self.source.parts if there.name == part)
        self.ran.add(part)
        outputs = super().run(part, inputs)
        for ends, tensors in ((here.inputs, inputs), (here.outputs, outputs)):
            for end, tensor in zip(ends.values(), tensors, strict=True):
                assert (tensor.shape[1:], tensor.dtype) == (end.shape, end.dtype)
        return outputs


def replaced(folder: Path, **changes: Any) -> tuple[Diffusion, Recorded]:
    """A sampler whose modules have been replaced by :class:`Recorded`."""
    engine = Recorded(engine_and_source(folder, settings(**changes), CPU)[1])
    diffusion = load(folder, **changes)
    diffusion._engine = engine
    diffusion._family.replace(diffusion._pipeline, engine)
    return diffusion, engine


@pytest.mark.parametrize("name", ALL)
def test_an_engine_runs_all_and_the_pipeline_keeps_no_weights(models: dict[str, Path], name: str) -> None:
    diffusion, engine = replaced(models[name])
    assert np.array_equal(diffusion.sample(TEXTS, SEEDS).images, load(models[name]).sample(TEXTS, SEEDS).images)
    assert engine.ran == {part.name for part in engine.source.parts}
    assert len(engine.ran) == 2 + ENCODERS[name]
    modules = [module for module in diffusion._pipeline.components.values() if isinstance(module, torch.nn.Module)]
    assert [weights for module in modules for weights in module.parameters()] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [("sd3", {"t5": False}), ("flux", {"guidance_embeds": False}), ("stable_diffusion", {"time_cond_proj_dim": 8})],
    ids=str,
)
def test_models_that_lack_an_input_or_have_one_more(
    variant: Callable[..., Path], name: str, options: dict[str, Any]
) -> None:
    folder = variant(name, **options)
    diffusion, engine = replaced(folder)
    eager = load(folder)
    images = diffusion.sample(TEXTS, SEEDS).images
    assert np.array_equal(images, eager.sample(TEXTS, SEEDS).images)
    length = {"max_sequence_length": 256} if name == "flux" else {}  # what schnell was trained with
    assert levels(images[0], plain(eager._pipeline, TEXTS[0], SEEDS[0], guidance_scale=3.0, **length)[0]) <= 1
    assert ("timestep_cond" in engine.source.parts[0].inputs) == (name == "stable_diffusion")
    assert len(engine.ran) == 2 + ENCODERS[name] - (name == "sd3")


@pytest.mark.parametrize("name", ALL)
def test_what_an_engine_does_not_take_is_refused(models: dict[str, Path], name: str) -> None:
    diffusion, _ = replaced(models[name])
    family, pipeline = diffusion._family, diffusion._pipeline
    shown: dict[str, Any] = {}
    getattr(pipeline, family.denoiser).register_forward_pre_hook(
        lambda _, args, kwargs: shown.update(args=args, kwargs=kwargs), with_kwargs=True
    )
    diffusion.sample(TEXTS[:1], SEEDS[:1])
    with pytest.raises(AimfairError, match=r"needs mask, which only --generate\.engine eager takes"):
        getattr(pipeline, family.denoiser)(*shown["args"], **shown["kwargs"], mask=torch.ones(1))
    with pytest.raises(AimfairError, match=r"needs attention_mask, which only --generate\.engine eager takes"):
        pipeline.text_encoder(torch.zeros(1, 77, dtype=torch.int64), attention_mask=torch.ones(1, 77))


# -- ONNX Runtime ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request: pytest.FixtureRequest, models: dict[str, Path], cache_home: Path) -> Iterator[tuple[Path, str]]:
    """A model, exported once for the tests below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        engine_and_source(models[request.param], settings(engine="onnxruntime"), CPU)
        yield models[request.param], request.param


@pytest.fixture(scope="module")
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def both(folder: Path, **changes: Any) -> tuple[Engine, Engine, Source]:
    engine, source = engine_and_source(folder, settings(engine="onnxruntime", **changes), CPU)
    return engine, Eager(source), source


def differences(folder: Path, batch: int, **changes: Any) -> dict[str, float]:
    """Largest ones between the two engines, part by part and output by output, as shares of eager's largest value."""
    engine, eager, source = both(folder, **changes)
    generator, found = torch.Generator().manual_seed(7), {}
    with torch.inference_mode():
        for part in source.parts:
            inputs = [example(tensors, batch, generator) for tensors in part.inputs.values()]
            results = zip(part.outputs, engine.run(part.name, inputs), eager.run(part.name, inputs), strict=True)
            for name, ours, theirs in results:
                assert ours.shape == theirs.shape == (batch, *part.outputs[name].shape)
                assert ours.dtype == theirs.dtype == part.outputs[name].dtype
                found[f"{part.name}.{name}"] = float((ours - theirs).abs().max() / theirs.abs().max())
    return found


@pytest.mark.parametrize("batch", [1, 5])  # 2 was traced
def test_parts_are_eager_s_at_any_batch(exported: tuple[Path, str], batch: int) -> None:
    found = differences(exported[0], batch)
    assert len(found) >= 2 + ENCODERS[exported[1]]
    assert {name: value for name, value in found.items() if not value <= 1e-4} == {}


def test_every_input_of_a_part_matters_to_its_own_image_alone(exported: tuple[Path, str]) -> None:
    engine, _, source = both(exported[0])
    generator = torch.Generator().manual_seed(7)
    for part in source.parts:
        inputs = [example(tensors, 3, generator) for tensors in part.inputs.values()]
        others = [example(tensors, 3, generator) for tensors in part.inputs.values()]
        right = engine.run(part.name, inputs)[0]
        for k, name in enumerate(part.inputs):
            changed = [tensor.clone() for tensor in inputs]
            changed[k][1] = others[k][1]
            result = engine.run(part.name, changed)[0]
            same = [bool(torch.allclose(result[image], right[image], atol=1e-5)) for image in range(3)]
            assert (name, same) == (name, [True, False, True])


def test_images_of_onnxruntime_are_eager_s(exported: tuple[Path, str]) -> None:
    diffusion = load(exported[0], engine="onnxruntime")
    images, finite = diffusion.sample(TEXTS, SEEDS)
    assert finite.all()
    assert levels(images, load(exported[0]).sample(TEXTS, SEEDS).images) <= 1
    assert levels(images[1], diffusion.sample([TEXTS[1]], [SEEDS[1]]).images[0]) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_parts_in_half_precision(models: dict[str, Path], cache_home: Path, name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache_home))
        found = differences(models[name], 5, dtype="float16", render_size=2 * SIZE)
        assert {part: value for part, value in found.items() if not value <= 3e-2} == {}
        images = load(models[name], engine="onnxruntime", dtype="float16", render_size=2 * SIZE)
        assert images.sample(TEXTS, SEEDS).finite.all()


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("stable_diffusion", 20, rf"found 20, expected a multiple of 8 .*is {SIZE}\)"),
        ("sdxl", 20, rf"found 20, expected a multiple of 8 .*is {SIZE}\)"),
        ("sd3", 18, rf"found 18, expected a multiple of 4 .*is {SIZE}\)"),
        ("sd3", 36, "found 36, expected at most 32"),
        ("flux", 18, r"found 18, expected a multiple of 4 .*is 256\)"),
    ],
)
def test_sizes_that_a_model_cannot_make(models: dict[str, Path], name: str, size: int, message: str) -> None:
    with pytest.raises(AimfairError, match=rf"generate\.render_size: {message}"):
        load(models[name], render_size=size)


@pytest.mark.parametrize("name", ["sd3", "flux"])
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m", "unipc"])
def test_schedulers_that_a_model_was_not_trained_for(models: dict[str, Path], name: str, scheduler: str) -> None:
    with pytest.raises(AimfairError, match=rf"generate\.scheduler: found '{scheduler}', expected as_saved: .*flow"):
        load(models[name], scheduler=scheduler)


def test_flux_cannot_be_steered_away(models: dict[str, Path]) -> None:
    with pytest.raises(AimfairError, match=r"generate\.negative_prompt: found 'red', expected none: a FluxPipeline"):
        load(models["flux"], negative_prompt="red")


@pytest.mark.parametrize(("name", "encoder"), [("sd3", "text_encoder_3"), ("flux", "text_encoder_2")])
def test_words_that_only_one_encoder_does_not_know(models: dict[str, Path], name: str, encoder: str) -> None:
    diffusion = load(models[name])
    with pytest.raises(AimfairError, match=rf"the {encoder} of generate\.model does not know the words 'queen'"):
        diffusion.sample(["a queen"], [1])


def test_texts_that_are_too_long_for_one_encoder(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    diffusion = load(models["sd3"])
    with pytest.raises(AimfairError, match=r"has 76 tokens, the text_encoder of generate\.model takes 75"):
        diffusion.sample(["x" * 76], [1])
    monkeypatch.setattr(sd3, "_T5_LENGTH", 20)
    assert diffusion.sample(["x" * 18], [1]).finite.all()  # a mark of the word's beginning, and one of the end
    with pytest.raises(AimfairError, match=r"has 20 tokens, the text_encoder_3 of generate\.model takes 19"):
        diffusion.sample(["x" * 19], [1])


def test_damage_of_any_part_is_seen(models: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(models["sdxl"], tmp_path / "copy"))
    path = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    weights["text_projection.weight"][0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(AimfairError, match=r"text_encoder_2: text_projection\.weight holds NaN or infinite weights"):
        load(folder)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(AimfairError, match="incomplete: tokenizer_2 missing"):
        load(folder)


# -- the real size -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_unet_of_the_size_of_stable_diffusion_2(tmp_path: Path) -> None:
    """866 million random weights in half precision: they can be exported, and the file can be loaded."""
    import diffusers

    from aimfair.base.interrupt import NEVER
    from aimfair.diffusion.engines.engine import Part, Tensors
    from aimfair.diffusion.engines.export import export, path_of
    from aimfair.diffusion.engines.onnx_runtime import OnnxRuntime
    from aimfair.diffusion.families.stable_diffusion import Denoiser

    half = torch.float16
    config = {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
    torch.set_default_dtype(half)
    try:
        unet = diffusers.UNet2DConditionModel(**config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    assert round(sum(weights.numel() for weights in unet.parameters()) / 1e6) == 866
    latents = Tensors((4, 16, 16), half)  # a quarter of the images' width, for a CPU's sake
    part = Part(
        "denoiser",
        Denoiser(unet),
        inputs={
            "sample": latents,
            "timestep": Tensors((), torch.float32, below=1000),
            "embeddings": Tensors((77, 1024), half),
        },
        outputs={"predicted": latents},
    )
    source = Source(tmp_path, (part,), half, CPU)
    export(source, tmp_path, NEVER)
    assert 1.7e9 < path_of(tmp_path, "denoiser").with_suffix(".onnx.data").stat().st_size < 1.8e9
    agreement = compare(OnnxRuntime(tmp_path, source.parts, CPU), source)
    assert agreement.good, agreement
