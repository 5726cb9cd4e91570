"""Models of torchvision and timm, where these are installed: built, trained, saved as each library reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.training.execution import logits
from aimfair.training.models import build_model, load_model, preprocessing_caution, save_model
from aimfair.training.settings import ModelSettings, OptimizerSettings
from tests.training.samples import state_bits, training

TINY_TIMM_VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
X = torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)

SETTINGS = OptimizerSettings(lr=0.01, epochs=1, batch_size=16)


def settings(**given: Any) -> ModelSettings:
    return ModelSettings(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), **given)


def require_round_trip(model: torch.nn.Module, folder: Path) -> None:
    before = state_bits(model)
    training(model, SETTINGS).fit()
    assert state_bits(model) != before
    save_model(model, folder)
    assert state_bits(load_model(folder)) == state_bits(model)
    from_folder = build_model(settings(pretrained=str(folder)), 2, 300)
    assert state_bits(from_folder) == state_bits(model)
    assert logits(build_model(settings(pretrained=str(folder)), 5, 300), X).shape == (2, 5)


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def models(self):
        reason = "torchvision is not installed, or for another torch"
        try:
            return pytest.importorskip("torchvision.models", reason=reason, exc_type=ImportError)
        except RuntimeError:
            pytest.skip(reason)

    @pytest.fixture
    def published(self, models, tmp_path, monkeypatch):
        """ResNet-18's weights, random ones, where torchvision looks for what it has fetched."""
        monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("asked the network"))
        model = models.resnet18()
        (tmp_path / "checkpoints").mkdir()
        path = tmp_path / "checkpoints" / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
        torch.save(model.state_dict(), path)
        return model, path

    @pytest.mark.parametrize(("name", "config"), [("resnet18", {}), ("mobilenet_v3_small", {"dropout": 0.1})])
    def test_random_weights_through_training_to_a_folder(self, name, config, models, tmp_path):
        chosen = settings(factory=f"torchvision:{name}", config=config)
        model = build_model(chosen, 2, 100)
        assert state_bits(model) == state_bits(build_model(chosen, 2, 100))
        require_round_trip(model, tmp_path)
        values = json.loads((tmp_path / "config.json").read_text())
        theirs = models.get_model(values["name"], num_classes=values["num_classes"], **values["arguments"])
        theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
        x = X.contiguous(memory_format=torch.channels_last)
        assert torch.equal(theirs.eval()(x), logits(model.eval(), x))

    def test_published_weights_with_a_new_head(self, published):
        theirs, path = published
        model, other = (build_model(settings(pretrained="torchvision:resnet18"), 2, seed) for seed in (1, 2))
        body = {name: bits for name, bits in state_bits(theirs).items() if not name.startswith("fc.")}
        assert body.items() <= state_bits(model).items()
        assert state_bits(model)["fc.weight"] != state_bits(other)["fc.weight"]
        named = build_model(settings(pretrained="torchvision:resnet18/IMAGENET1K_V1"), 2, 1)
        assert state_bits(named) == state_bits(model)
        path.unlink()
        with pytest.raises(AimfairError, match=r"no such file; put https.*or fetch it with model\.allow_download"):
            build_model(settings(pretrained="torchvision:resnet18"), 2, 1)

    def test_as_many_classes_keep_the_head(self, published):
        assert state_bits(build_model(settings(pretrained="torchvision:resnet18"), 1000, 1)) == state_bits(published[0])

    def test_a_pickle_that_holds_more_than_tensors_is_refused(self, published):
        torch.save({"fc.weight": Path("x")}, published[1])
        with pytest.raises(AimfairError, match=r"torchvision:resnet18: not usable: .*[Ww]eights"):
            build_model(settings(pretrained="torchvision:resnet18"), 2, 1)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"factory": "torchvision:resnt18"}, "model.factory: torchvision knows no image classifier 'resnt18'"),
            ({"factory": "torchvision:resnet18", "config": {"depth": 3}}, "torchvision cannot make resnet18: .*depth"),
            ({"pretrained": "torchvision:resnet18/V9"}, "no weights 'V9' of resnet18; it has IMAGENET1K_V1"),
        ],
    )
    def test_what_torchvision_does_not_know_is_refused(self, given, message):
        with pytest.raises(AimfairError, match=message):
            build_model(settings(**given), 2, 1)

    def test_other_normalisation_is_told(self):
        assert preprocessing_caution(settings(pretrained="torchvision:resnet18")) is None
        caution = preprocessing_caution(ModelSettings(pretrained="torchvision:resnet18"))
        assert caution is not None
        assert "[0.485, 0.456, 0.406]" in caution


class TestTimm:
    @pytest.fixture(autouse=True)
    def timm(self):
        reason = "timm is not installed, or its torchvision is for another torch"
        try:
            return pytest.importorskip("timm", reason=reason, exc_type=ImportError)
        except RuntimeError:
            pytest.skip(reason)

    @pytest.fixture
    def published(self, timm, tmp_path, monkeypatch):
        """A model's weights, random ones, in the hub's cache."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
        model = timm.create_model("resnet18")
        repository = timm.get_pretrained_cfg("resnet18").hf_hub_id
        entry = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text("0" * 40)
        folder = entry / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
        return model, folder / "model.safetensors"

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("resnet18", {}),
            ("vit_small_patch16_224", TINY_TIMM_VIT),
            ("convnext_atto", {"depths": [1, 1, 2, 1], "dims": [8, 8, 8, 8], "patch_size": 1}),
        ],
    )
    def test_random_weights_through_training_to_a_folder(self, name, config, timm, tmp_path):
        chosen = settings(factory=f"timm:{name}", config=config)
        model = build_model(chosen, 2, 100)
        assert state_bits(model) == state_bits(build_model(chosen, 2, 100))
        require_round_trip(model, tmp_path)
        theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        x = X.contiguous(memory_format=torch.channels_last)
        assert torch.equal(theirs(x), logits(model.eval(), x))

    def test_published_weights_with_a_new_head(self, published):
        theirs, path = published
        model, other = (build_model(settings(pretrained="timm:resnet18"), 2, seed) for seed in (1, 2))
        body = {name: bits for name, bits in state_bits(theirs).items() if not name.startswith("fc.")}
        assert body.items() <= state_bits(model).items()
        assert state_bits(model)["fc.weight"] != state_bits(other)["fc.weight"]
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(AimfairError, match="not a usable safetensors file"):
            build_model(settings(pretrained="timm:resnet18"), 2, 1)
        path.unlink()
        with pytest.raises(AimfairError, match=r"is not in the hub's cache, .*; download it with --model\.allow"):
            build_model(settings(pretrained="timm:resnet18"), 2, 1)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"factory": "timm:resnt18"}, "model.factory: timm knows no model 'resnt18'"),
            ({"factory": "timm:hf-hub:someone/model"}, "model.factory: timm knows no model"),
            ({"factory": "timm:resnet18", "config": {"depth": 3}}, "timm cannot make resnet18: .*depth"),
            ({"pretrained": "timm:no_such"}, "model.pretrained: timm knows no model"),
        ],
    )
    def test_what_timm_does_not_know_is_refused(self, given, message):
        with pytest.raises(AimfairError, match=message):
            build_model(settings(**given), 2, 1)

    def test_other_normalisation_is_told(self, tmp_path):
        assert preprocessing_caution(settings(pretrained="timm:resnet18")) is None
        assert preprocessing_caution(ModelSettings(pretrained="timm:resnet18")) is not None
        save_model(build_model(settings(factory="timm:resnet18"), 2, 1), tmp_path)
        assert preprocessing_caution(settings(pretrained=str(tmp_path))) is None
        assert preprocessing_caution(ModelSettings(pretrained=str(tmp_path))) is not None
