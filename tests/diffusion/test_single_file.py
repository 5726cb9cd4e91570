"""Models in a single file: converted once, with what the file lacks from another model, and never with the network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.diffusion import single_file
from aimfair.diffusion.model import fingerprint, model_folder
from tests.diffusion.test_families import SEEDS, TEXTS, load

PART = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(models: dict[str, Path], tmp_path: Path) -> Path:
    """A denoiser with other weights than the model's."""
    weights = {name: 1.1 * tensor for name, tensor in load_file(models["flux"] / PART).items()}
    save_file(weights, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors"


def test_a_denoiser_takes_the_place_of_the_base_s(models: dict[str, Path], file: Path, tmp_path: Path) -> None:
    folder = model_folder(str(file), False, str(models["flux"]))
    same = Path(shutil.copytree(models["flux"], tmp_path / "same"))
    shutil.copy(file, same / PART)
    images = load(folder).sample(TEXTS, SEEDS).images
    assert np.array_equal(images, load(same).sample(TEXTS, SEEDS).images)
    assert not np.array_equal(images, load(models["flux"]).sample(TEXTS, SEEDS).images)


def test_it_is_converted_once_and_known_by_what_it_was_made_from(models: dict[str, Path], file: Path) -> None:
    folder = model_folder(str(file), False, str(models["flux"]))
    (folder / "model_index.json").touch()
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert model_folder(str(file), False, str(models["flux"])) == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before
    known = fingerprint(folder)
    shutil.rmtree(folder)
    assert fingerprint(model_folder(str(file), False, str(models["flux"]))) == known
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    assert fingerprint(model_folder(str(file), False, str(models["flux"]))) != known


def test_what_cannot_be_converted(models: dict[str, Path], file: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(AimfairError, match=r"as a whole FluxPipeline: .*as the transformer of one, with the rest in"):
        model_folder(str(tmp_path / "other.safetensors"), False, str(models["flux"]))
    with pytest.raises(AimfairError, match=r"generate\.base: '.+/.+' is not in the hub's cache"):
        model_folder(str(file), False)
    with pytest.raises(AimfairError, match=r"none\.safetensors: no such file"):
        model_folder(str(tmp_path / "none.safetensors"), False)
    (tmp_path / "text.safetensors").write_text("no weights at all")
    with pytest.raises(AimfairError, match=r"text\.safetensors: not a \.safetensors file"):
        model_folder(str(tmp_path / "text.safetensors"), False)
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(AimfairError, match=r"model\.ckpt: found \.ckpt, expected \.safetensors: pickled weights"):
        model_folder(str(tmp_path / "model.ckpt"), False)


# -- a whole model as Stability AI and others publish it ---------------------------------------------------------------

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RESNET |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def of_unet(name: str) -> str:
    """The name in such a file, for blocks of one layer."""
    first, *rest = name.split(".")
    if first in ("down_blocks", "up_blocks", "mid_block"):
        block = int(rest.pop(0)) if first != "mid_block" else 0
        kind, layer = rest.pop(0), int(rest.pop(0))
        if kind == "resnets":
            rest[0] = RESNET[rest[0]]
        tail = ".".join(rest)
        if first == "mid_block":
            return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{tail}"
        if kind == "downsamplers":
            return f"input_blocks.{2 * block + 2}.0.{tail.replace('conv', 'op')}"
        if kind == "upsamplers":
            return f"output_blocks.{2 * block + 1}.{2 if block == 0 else 1}.{tail}"
        place = f"input_blocks.{2 * block + 1}" if first == "down_blocks" else f"output_blocks.{2 * block + layer}"
        return f"{place}.{1 if kind == 'attentions' else 0}.{tail}"
    whole = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    whole |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    return next(name.replace(here, there) for here, there in whole.items() if name.startswith(here))


def of_vae(name: str) -> str:
    for here, there in {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "mid_block.attentions.0": "mid.attn_1",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "down_blocks": "down",
        "resnets": "block",
        "up_blocks.0": "up.1",
        "up_blocks.1": "up.0",
        **(ATTENTION if "attentions" in name else {}),
    }.items():
        name = name.replace(here, there)
    return name


@pytest.fixture
def whole(model: Path, tmp_path: Path) -> Path:
    """The small Stable Diffusion as a single file."""
    weights = {}
    for part, prefix, rename in (
        ("unet", "model.diffusion_model.", of_unet),
        ("vae", "first_stage_model.", of_vae),
        ("text_encoder", "cond_stage_model.transformer.text_model.", str),
    ):
        (path,) = (model / part).glob("*.safetensors")
        for name, tensor in load_file(path).items():
            weights[prefix + rename(name)] = tensor
    save_file(weights, tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


@pytest.fixture
def bare(model: Path, tmp_path: Path) -> Path:
    """The small Stable Diffusion without weights."""
    return Path(shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")))


def test_a_whole_model(model: Path, whole: Path, bare: Path) -> None:
    folder = model_folder(str(whole), False, str(bare))
    assert np.array_equal(load(folder).sample(TEXTS, SEEDS).images, load(model).sample(TEXTS, SEEDS).images)


def test_weights_of_a_recognised_model_do_not_matter(
    model: Path, whole: Path, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the hub's cache they appear once somebody downloads them."""
    monkeypatch.setattr(single_file, "_recognised", lambda *_: bare)
    folder = model_folder(str(whole), False)
    known = fingerprint(folder)
    shutil.copytree(model, bare, dirs_exist_ok=True)
    assert model_folder(str(whole), False) == folder
    shutil.rmtree(folder)
    assert fingerprint(model_folder(str(whole), False)) == known
    assert np.array_equal(load(folder).sample(TEXTS, SEEDS).images, load(model).sample(TEXTS, SEEDS).images)
    denoiser = {name: tensor for name, tensor in load_file(whole).items() if "first_stage" not in name}
    save_file(denoiser, tmp_path / "part.safetensors")
    with pytest.raises(AimfairError, match=r"not a whole StableDiffusionPipeline: .*--generate\.base"):
        model_folder(str(tmp_path / "part.safetensors"), False)
