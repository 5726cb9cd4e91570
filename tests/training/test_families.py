"""Every family of transformers' backbones, tiny and with random weights: from a configuration or a pretrained body,
through a step and sensitivity, to a folder that transformers reads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.training.execution import logits
from aimfair.training.models import build_model, load_model, preprocessing_caution, save_model
from aimfair.training.sensitivity import SOURCES, measure_sensitivity
from aimfair.training.settings import ModelSettings, OptimizerSettings, SensitivitySettings
from tests.training.samples import RESNET, SIZE, images, state_bits, training

TOWER = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": SIZE, "patch_size": 8,
}  # fmt: skip
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}

FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": RESNET,
    "resnet-bottleneck": {**RESNET, "layer_type": "bottleneck", "hidden_sizes": [8, 16]},
    "vit": {"model_type": "vit", **TOWER},
    "dinov2": {"model_type": "dinov2", **{key: TOWER[key] for key in TOWER if key != "intermediate_size"}},
    "convnext": {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2},
    "clip": {"model_type": "clip", "vision_config": TOWER, "text_config": TEXT},
    "siglip": {"model_type": "siglip", "vision_config": TOWER, "text_config": TEXT},
}
CLASSES = 3


def settings(**given: Any) -> ModelSettings:
    return ModelSettings(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), **given)


def save_body(config: dict[str, Any], folder: Path) -> torch.nn.Module:
    """What the makers of such models publish: the class without a head, of images alone or of images and texts."""
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    values = dict(config)
    logging.disable_progress_bar()
    body = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    body.save_pretrained(folder)
    return body


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_configuration_through_training_and_sensitivity_to_a_folder(family, tmp_path):
    from transformers import AutoModelForImageClassification

    preprocessing = settings(config=FAMILIES[family])
    model = build_model(preprocessing, 2, 100)
    before = state_bits(model)
    training(model, OptimizerSettings(lr=0.01, epochs=1, batch_size=16)).fit()
    assert state_bits(model) != before

    sets = dict(zip(SOURCES, (images(8, 1), images(8, 2), images(8, 3)), strict=True))
    probe = measure_sensitivity(model, sets, SensitivitySettings(batch_size=4), preprocessing, seed=1)
    assert 0 < probe.select("top_k", density=0.1).nnz < sum(p.numel() for p in model.parameters())

    save_model(model, tmp_path)
    assert state_bits(load_model(tmp_path)) == state_bits(model)
    theirs = AutoModelForImageClassification.from_pretrained(tmp_path, local_files_only=True).eval()
    x = torch.randn(2, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(theirs(x).logits, logits(model, x))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_body_gets_a_new_head(family, tmp_path):
    body = save_body(FAMILIES[family], tmp_path)
    model, again, other = (build_model(settings(pretrained=str(tmp_path)), CLASSES, seed) for seed in (100, 100, 200))
    assert logits(model, torch.zeros(2, 3, SIZE, SIZE)).shape == (2, CLASSES)
    assert state_bits(model) == state_bits(again)

    theirs = {value.numpy().tobytes() for value in body.state_dict().values()}
    new = [name for name, bits in state_bits(model).items() if bits not in theirs and "num_batches" not in name]
    assert {name.split(".")[0] for name in new} <= {"classifier"}
    assert any("weight" in name for name in new)
    assert any(state_bits(model)[name] != state_bits(other)[name] for name in new)
    assert not any("text_model" in name for name, _ in model.named_parameters())


def test_a_body_without_a_part_of_its_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_body(FAMILIES["clip"], tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["vision_model.encoder.layers.1.mlp.fc1.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(AimfairError, match=r"missing or of another shape: .*layers\.1\.mlp\.fc1\.weight"):
        build_model(settings(pretrained=str(tmp_path)), 2, 100)


def test_other_normalisation_than_the_pretrained_models_is_told(tmp_path):
    assert preprocessing_caution(settings(config=RESNET)) is None
    assert preprocessing_caution(settings(pretrained=str(tmp_path))) is None
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}'
    )
    caution = preprocessing_caution(settings(pretrained=str(tmp_path)))
    assert caution is not None
    assert "[0.485, 0.456, 0.406]" in caution
    assert "set model.mean and model.std" in caution
    same = ModelSettings(pretrained=str(tmp_path), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert preprocessing_caution(same) is None
