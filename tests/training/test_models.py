"""Classifiers: made from settings, saved, loaded, and refused."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aimfair.base.errors import AimfairError
from aimfair.training.execution import logits
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.settings import ModelSettings
from tests.training.samples import MODEL, RESNET, SIZE, state_bits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(build_model(MODEL, 2, 100), tmp_path)
    return tmp_path


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def repeat_a_name(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    text = f"{header[:-1]},{header[1:]}".encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))


def test_initial_weights_are_a_function_of_the_seed():
    state = torch.get_rng_state()
    first, again, other = (build_model(MODEL, 2, seed) for seed in (100, 100, 200))
    assert torch.equal(torch.get_rng_state(), state)
    assert state_bits(first) == state_bits(again)
    weights = [dict(model.named_parameters())["classifier.1.weight"] for model in (first, other)]
    assert not torch.equal(*weights)


def test_logits_have_a_column_for_each_class():
    assert logits(build_model(MODEL, 7, 100), torch.zeros(3, 3, SIZE, SIZE)).shape == (3, 7)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "resnt"}, "transformers knows no architecture 'resnt'"),
        ({**RESNET, "hidden_size": [4]}, "model.config.hidden_size: .*did you mean hidden_sizes"),
        ({**RESNET, "hidden_sizes": "wide"}, "model.config: not usable for resnet"),
        ({"model_type": "bert"}, "transformers has no image classifier of the architecture"),
    ],
)
def test_settings_that_name_no_classifier_are_refused(config, message):
    with pytest.raises(AimfairError, match=message) as refusal:
        build_model(ModelSettings(config=config), 2, 100)
    assert "\n" not in str(refusal.value)


def test_a_saved_model_comes_back_to_the_last_bit(folder):
    model = build_model(MODEL, 2, 100)
    model.train()
    logits(model, torch.randn(8, 3, SIZE, SIZE))  # moves the running statistics
    save_model(model, folder)
    assert state_bits(load_model(folder)) == state_bits(model)


def test_transformers_reads_what_is_saved(folder):
    from transformers import AutoModelForImageClassification

    x = torch.randn(4, 3, SIZE, SIZE)
    theirs = AutoModelForImageClassification.from_pretrained(folder, local_files_only=True).eval()
    assert torch.equal(theirs(x).logits, load_model(folder).eval()(x).logits)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(AimfairError, match=r"config.json: no such file, expected a model folder"):
        load_model(tmp_path)


def test_pickled_weights_are_never_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(AimfairError, match=r"model\.safetensors: no such file; found pytorch_model\.bin, but pickles"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(AimfairError, match=r"model.safetensors: no such file; weights are read from safetensors alone"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(AimfairError, match="not a usable safetensors file"):
        load_model(folder)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_weights_are_refused(folder, length):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(AimfairError, match=r"model.safetensors: not a usable safetensors file"):
        load_model(folder)


def test_trailing_bytes_and_repeated_names_are_refused(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    with pytest.raises(AimfairError, match="not a usable safetensors file"):
        load_model(folder)
    repeat_a_name(path)
    with pytest.raises(AimfairError, match="holds 'a' twice"):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    edit_weights(folder, lambda weights: weights["classifier.1.weight"].view(-1)[3:4].fill_(value))
    with pytest.raises(AimfairError, match=r"NaN or infinite weights in classifier\.1\.weight"):
        load_model(folder)


def test_another_architecture_is_refused_with_the_names(folder):
    def change(weights):
        del weights["classifier.1.bias"]
        weights["extra"] = torch.zeros(1)
        weights["classifier.1.weight"] = torch.zeros(3, 8)

    edit_weights(folder, change)
    with pytest.raises(AimfairError) as refusal:
        load_model(folder)
    for text in ("missing: classifier.1.bias", "unexpected: extra", "classifier.1.weight torch.float32 (3, 8) instead"):
        assert text in str(refusal.value)


def test_a_full_disk_leaves_the_old_model(folder, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = state_bits(load_model(folder))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(build_model(MODEL, 2, 200), folder)
    assert state_bits(load_model(folder)) == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


class TestPretrained:
    def test_keeps_everything_if_the_classes_are_the_same(self, folder):
        model = build_model(ModelSettings(pretrained=str(folder)), 2, 200)
        assert state_bits(model) == state_bits(load_model(folder))

    def test_makes_a_new_head_for_other_classes(self, folder):
        settings = ModelSettings(pretrained=str(folder))
        model, again, other = (build_model(settings, 5, seed) for seed in (200, 200, 300))
        body = {name: value for name, value in state_bits(load_model(folder)).items() if "classifier" not in name}
        assert body.items() <= state_bits(model).items()
        assert logits(model, torch.zeros(1, 3, SIZE, SIZE)).shape == (1, 5)
        assert state_bits(model) == state_bits(again)
        assert state_bits(model) != state_bits(other)

    def test_refuses_weights_that_leave_more_than_the_head_without_a_value(self, folder):
        edit_weights(folder, lambda weights: weights.pop("resnet.embedder.embedder.convolution.weight"))
        with pytest.raises(AimfairError, match=r"missing or of another shape: resnet\.embedder\.embedder\.convolution"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)

    def test_refuses_nan(self, folder):
        edit_weights(folder, lambda weights: weights["classifier.1.bias"].fill_(float("nan")))
        with pytest.raises(
            AimfairError, match=r"^model\.pretrained: .*: NaN or infinite weights in classifier\.1\.bias"
        ):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"hidden_act": "nope"}, r"transformers cannot load it: hidden_act: 'nope' is not known to it"),
            ({"hidden_sizes": "x"}, r"'hidden_sizes': TypeError: .* got str \(value: 'x'\)"),  # several lines
            ({"model_type": None, "architecture": "resnet18"}, r"config\.json: num_classes is None"),
        ],
    )
    def test_names_the_setting_where_the_configuration_is_wrong(self, folder, changes, message):
        path = folder / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        with pytest.raises(AimfairError, match=rf"^model\.pretrained: {re.escape(str(folder))}.*{message}") as refusal:
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)
        assert "\n" not in str(refusal.value)

    def test_names_the_setting_where_files_are_wrong(self, folder):
        where = rf"^model\.pretrained: {re.escape(str(folder))}"
        (folder / "model.safetensors").rename(folder / "weights.pt")
        with pytest.raises(AimfairError, match=rf"{where}: found weights\.pt, but pickles .* save_pretrained"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)
        (folder / "config.json").write_text("[]")
        with pytest.raises(AimfairError, match=rf"{where}/config\.json: .* expected a JSON object, found a list"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)
        (folder / "config.json").unlink()
        with pytest.raises(AimfairError, match=rf"{where}/config\.json: no such file"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)
        (folder / "config.json").mkdir()
        with pytest.raises(AimfairError, match=rf"{where}/config\.json: is a folder"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)

    def test_refuses_repeated_names(self, folder):
        repeat_a_name(folder / "model.safetensors")
        with pytest.raises(AimfairError, match="holds 'a' twice"):
            build_model(ModelSettings(pretrained=str(folder)), 2, 100)

    def test_refuses_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(
            AimfairError, match=r"^model\.pretrained: .*nowhere: no such folder, expected one with config"
        ):
            build_model(ModelSettings(pretrained=str(tmp_path / "nowhere")), 2, 100)

    def test_reads_the_hubs_cache_and_asks_nobody(self, folder, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("asked the network"))
        settings = ModelSettings(pretrained="someone/resnet")
        with pytest.raises(
            AimfairError, match=r"someone/resnet: .*no model of this name in the hub's cache, .*hub; give a folder"
        ):
            build_model(settings, 2, 100)
        entry = tmp_path / "hub" / "models--someone--resnet"
        (entry / "refs").mkdir(parents=True)
        (entry / "refs" / "main").write_text("0" * 40)
        save_model(build_model(MODEL, 2, 300), entry / "snapshots" / ("0" * 40))
        assert state_bits(build_model(settings, 2, 100)) == state_bits(build_model(MODEL, 2, 300))
