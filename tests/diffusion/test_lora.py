"""Low-rank adaptations, fused into a small model: the images of plain diffusers with the same adapters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.diffusion.families.registry import family_of
from aimfair.diffusion.load import load_pipeline
from aimfair.diffusion.lora import lora_facts
from aimfair.diffusion.text_to_image import Diffusion, load_source
from aimfair.generation.provenance import Provenance
from aimfair.generation.settings import GenerateSettings
from aimfair.prompts.settings import PromptSettings
from tests.diffusion.test_families import CPU, levels, plain
from tests.generation.samples import SIZE

pytest.importorskip("peft")

PROMPTS = PromptSettings(targets=[["one"], ["two"]], protected=[["in red"], ["in green"]])
TEXT, SEED = "a one in green, thin", 1


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of two adaptations of the UNet's attention, with random weights."""
    import diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    folders = []
    for number, targets in enumerate((["to_q", "to_v"], ["to_k", "to_out.0"])):
        unet = diffusers.StableDiffusionPipeline.from_pretrained(model).unet
        unet.add_adapter(LoraConfig(r=2, init_lora_weights="gaussian", target_modules=targets))
        generator = torch.Generator().manual_seed(number)
        for name, weights in unet.named_parameters():
            if "lora_B" in name:
                weights.data = 3 * torch.randn(weights.shape, generator=generator)
        folder = tmp_path_factory.mktemp("lora")
        diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
        folders.append(folder)
    return folders


@pytest.fixture
def any_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers can ask for a version of peft that is not out yet."""
    import transformers

    monkeypatch.setattr(transformers.integrations.peft, "check_peft_version", lambda **_: None)


@pytest.fixture
def of_transformer(models: dict[str, Path], tmp_path: Path, any_peft: None) -> Path:
    """Folder of an adaptation of Flux: of its transformer and of CLIP, with random weights."""
    import diffusers
    from peft import LoraConfig, get_peft_model_state_dict

    pipeline = diffusers.FluxPipeline.from_pretrained(models["flux"])
    generator, layers = torch.Generator().manual_seed(0), {}
    for part, targets in (("transformer", ["to_q", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        module = getattr(pipeline, part)
        module.add_adapter(LoraConfig(r=2, init_lora_weights="gaussian", target_modules=targets))
        for name, weights in module.named_parameters():
            if "lora_B" in name:
                weights.data = 3 * torch.randn(weights.shape, generator=generator)
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(module)
    diffusers.FluxPipeline.save_lora_weights(tmp_path, **layers)
    return tmp_path


def settings(*loras: dict[str, Any], **changes: Any) -> GenerateSettings:
    return GenerateSettings.model_validate(
        {"engine": "eager", "steps": 3, "render_size": SIZE, "loras": list(loras), **changes}
    )


def image(model: Path, *loras: dict[str, Any]) -> np.ndarray:
    (pixels,) = Diffusion(model, settings(*loras), CPU).sample([TEXT], [SEED]).images
    return pixels


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_images_are_those_of_adapters_in_diffusers(model: Path, adapters: list[Path]) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for number, folder in enumerate(adapters):
        pipeline.load_lora_weights(folder, adapter_name=f"adapter{number}")
    pipeline.set_adapters(["adapter0", "adapter1"], [0.8, -0.5])
    (expected,) = plain(pipeline, TEXT, SEED, guidance_scale=3.0)
    found = image(
        model,
        {"weights": str(adapters[0]), "scale": 0.8},
        {"weights": str(adapters[1] / "pytorch_lora_weights.safetensors"), "scale": -0.5},
    )
    assert levels(found, expected) <= 1
    assert levels(found, image(model)) > 1
    assert levels(found, image(model, {"weights": str(adapters[0]), "scale": 0.8})) > 1


def test_text_encoders_of_transformers_are_adapted_too(models: dict[str, Path], of_transformer: Path) -> None:
    """Weight + scale * up @ down, in every adapted layer of both components."""
    after, before = (
        load_pipeline(models["flux"], family_of(models["flux"]), settings(*loras), CPU)
        for loras in ([{"weights": str(of_transformer), "scale": 0.5}], [])
    )
    adapted = load_file(of_transformer / "pytorch_lora_weights.safetensors")
    layers = [name.removesuffix(".lora_B.weight") for name in adapted if name.endswith(".lora_B.weight")]
    assert {layer.partition(".")[0] for layer in layers} == {"transformer", "text_encoder"}
    for layer in layers:
        part, _, name = layer.partition(".")
        found, own = (getattr(pipeline, part).get_parameter(f"{name}.weight") for pipeline in (after, before))
        added = 0.5 * adapted[f"{layer}.lora_B.weight"] @ adapted[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(found, own + added)


def test_images_and_engines_depend_on_weights_and_scale(model: Path, adapters: list[Path]) -> None:
    def digests(*loras: dict[str, Any]) -> tuple[Any, Any]:
        chosen = settings(*loras)
        facts = Provenance.generated(chosen, PROMPTS, model).facts
        return facts.get("loras"), load_source(model, chosen, CPU)[0].facts().get("loras")

    assert digests() == (None, None)
    one, other = (
        digests({"weights": str(folder), "scale": scale}) for folder, scale in ((adapters[0], 1), (adapters[1], 1))
    )
    half = digests({"weights": str(adapters[0]), "scale": 0.5})
    assert one[0] == one[1] == lora_facts(settings({"weights": str(adapters[0])}))
    assert one != other
    assert one != half
    assert "loras" not in Provenance.generated(settings(), PROMPTS, model).facts["generate"]


def of_another_model(folder: Path) -> None:
    path = folder / "pytorch_lora_weights.safetensors"
    save_file({key.replace("attn2", "attn7"): value for key, value in load_file(path).items()}, path)


def of_other_sizes(folder: Path) -> None:
    path = folder / "pytorch_lora_weights.safetensors"
    save_file({key: torch.cat([value, value], -1) for key, value in load_file(path).items()}, path)


def pickled(folder: Path) -> None:
    (folder / "pytorch_lora_weights.safetensors").rename(folder / "lora.bin")


def two(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"")


def of_a_part_that_takes_none(folder: Path) -> None:
    path = folder / "pytorch_lora_weights.safetensors"
    weights = load_file(path)
    save_file(weights | {"vae.decoder.conv_in.lora_A.weight": torch.zeros(2, 4)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (of_another_model, r"has weights for modules that this StableDiffusionPipeline does not have"),
        (of_other_sizes, r"not usable with a StableDiffusionPipeline: "),
        (of_a_part_that_takes_none, r"it has weights for vae, expected only for unet, text_encoder"),
        (pickled, r"found none, expected one \.safetensors file"),
        (two, r"found other\.safetensors, pytorch_lora_weights\.safetensors, expected one"),
    ],
)
def test_adaptations_that_cannot_be_used(
    model: Path, adapters: list[Path], tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "pytorch_lora_weights.safetensors"
    path.write_bytes((adapters[0] / path.name).read_bytes())
    damage(tmp_path)
    with pytest.raises(AimfairError, match=rf"generate\.loras\.0: .*({message})"):
        image(model, {"weights": str(tmp_path)})


def test_the_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"generate\.loras\.0\.weights: .*no such file or folder"):
        lora_facts(settings({"weights": str(tmp_path / "none.safetensors")}))
    with pytest.raises(AimfairError, match=r"'nobody/nothing' is not in the hub's cache"):
        lora_facts(settings({"weights": "nobody/nothing"}))
    (tmp_path / "lora.ckpt").touch()
    with pytest.raises(AimfairError, match=r"lora\.ckpt: found \.ckpt, expected \.safetensors: pickled weights"):
        lora_facts(settings({"weights": str(tmp_path / "lora.ckpt")}))
