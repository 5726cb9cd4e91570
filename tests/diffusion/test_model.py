"""Finding a model, and telling it from others."""

import os
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from aimfair.base.errors import AimfairError
from aimfair.diffusion.model import fingerprint, model_folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "copy"))


def test_a_folder(model: Path) -> None:
    assert model_folder(str(model), allow_download=False) == model


def test_a_url(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy = model_folder(f"file://{model}", allow_download=False)
    assert copy.is_relative_to(tmp_path / "cache")
    assert fingerprint(copy) == fingerprint(model)
    with pytest.raises(AimfairError, match=rf"^generate\.model: file://{tmp_path}/nowhere: "):
        model_folder(f"file://{tmp_path}/nowhere", allow_download=False)


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"generate\.model: .* has no model_index\.json"):
        model_folder(str(tmp_path), allow_download=True)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(AimfairError, match=r"generate\.model: .*nowhere: no such folder, expected a folder in"):
        model_folder(str(tmp_path / "nowhere"), allow_download=True)
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(AimfairError, match=r"generate\.model: .*model\.bin: .*pickle"):
        model_folder(str(tmp_path / "model.bin"), allow_download=True)
    (tmp_path / "model.txt").write_bytes(b"")
    with pytest.raises(AimfairError, match=r"generate\.model: .*model\.txt: is a file, expected a folder in"):
        model_folder(str(tmp_path / "model.txt"), allow_download=True)


@pytest.mark.parametrize("name", ["digit", "a/b/c", "../models", "-x/y", ""])
def test_what_cannot_be_on_the_hub_is_refused(name: str) -> None:
    with pytest.raises(AimfairError, match=r"generate\.model: found .*, expected 'digits', a folder .* or a hub id"):
        model_folder(name, allow_download=True)


def test_offline_only_the_cache_is_read(hub: Path, model: Path) -> None:
    with pytest.raises(
        AimfairError, match=r"'owner/tiny' is not in the hub's cache, .*hub; .*--generate\.allow_download true"
    ):
        model_folder("owner/tiny", allow_download=False)
    snapshot = hub / "models--owner--tiny" / "snapshots" / ("0" * 40)
    shutil.copytree(model, snapshot)
    refs = hub / "models--owner--tiny" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert model_folder("owner/tiny", allow_download=False) == snapshot


def test_what_cannot_be_fetched_is_refused(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AimfairError, match=r"'owner/tiny' cannot be downloaded; HF_HUB_OFFLINE is set"):
        model_folder("owner/tiny", allow_download=True)


def test_the_fingerprint_is_of_what_is_read(copy: Path, model: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, (0, 0))
    shutil.copy(weights, weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    (copy / "safety_checker").mkdir()
    (copy / "safety_checker" / "config.json").write_text("{}")
    (copy / "sd-ema.safetensors").write_bytes(b"all in one")
    assert fingerprint(copy) == fingerprint(model)


@pytest.mark.parametrize(
    "name", ["model_index.json", "tokenizer/tokenizer.json", "vae/diffusion_pytorch_model.safetensors"]
)
def test_any_change_gives_another_fingerprint(copy: Path, model: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(data)
    assert fingerprint(copy) != fingerprint(model)


@pytest.mark.parametrize(
    "name",
    ["transformer/diffusion_pytorch_model.safetensors", "text_encoder_2/config.json", "tokenizer_3/tokenizer.json"],
)
def test_the_fingerprint_is_of_every_part_that_a_family_has(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(models["sd3"], tmp_path / "copy"))
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    assert fingerprint(folder) != fingerprint(models["sd3"])
