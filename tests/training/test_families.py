"""Every family of transformers' backbones, tiny and with random weights: from a configuration or a pretrained body,
through a step and sensitivity, to a folder that transformers reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from aimfair.base.errors import AimfairError
from aimfair.data.settings import DataSettings
from aimfair.export import model_files
from aimfair.training.execution import logits
from aimfair.training.feed import Normalize
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
DEIT = {"model_type": "deit", **TOWER, "architectures": ["DeiTForImageClassificationWithTeacher"]}
LEVIT = {
    "model_type": "levit", "image_size": SIZE, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 1, 2],
    "depths": [1, 1, 1], "key_dim": [8, 8, 8], "architectures": ["LevitForImageClassificationWithTeacher"],
}  # fmt: skip
POOLFORMER = {"model_type": "poolformer", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16]}
SWIFTFORMER = {"model_type": "swiftformer", "depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16]}
UNUSUAL = {"deit": DEIT, "levit": LEVIT, "poolformer": POOLFORMER, "swiftformer": SWIFTFORMER}
"""Two heads, whose logits are averaged (but of PoolFormer), and layers between backbone and head."""
ALL = {**FAMILIES, **UNUSUAL}
HEADS = {
    "resnet": {"classifier.1"},
    "resnet-bottleneck": {"classifier.1"},
    "deit": {"cls_classifier", "distillation_classifier"},
    "levit": {"classifier.linear", "classifier_distill.linear"},
    "swiftformer": {"head", "dist_head"},
}
"""Modules whose weights depend on the number of classes, of those where it is not only the classifier."""
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


@pytest.mark.parametrize("family", [*FAMILIES, "deit", "levit", "poolformer"])
def test_from_a_configuration_through_training_and_sensitivity_to_a_folder(family, tmp_path):
    from transformers import AutoModelForImageClassification

    preprocessing = settings(config=ALL[family])
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


def test_a_pretrained_body_at_a_url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_body(FAMILIES["resnet"], tmp_path / "body")
    how = settings(pretrained=f"file://{tmp_path}/body")
    model = build_model(settings(pretrained=str(tmp_path / "body")), CLASSES, 100)
    assert state_bits(build_model(how, CLASSES, 100)) == state_bits(model)
    assert preprocessing_caution(how) is None
    with pytest.raises(AimfairError, match=rf"^model\.pretrained: file://{tmp_path}/nowhere: "):
        build_model(settings(pretrained=f"file://{tmp_path}/nowhere"), CLASSES, 100)


@pytest.mark.parametrize("family", [*FAMILIES, *UNUSUAL])
def test_a_classifier_of_another_task_becomes_one_of_this(family, tmp_path):
    """Several labels at once, tuples, half precision, another number of classes: transformers' pipeline then gives the
    probabilities of our evaluation."""
    from transformers import AutoConfig, AutoModelForImageClassification, pipeline

    values = dict(ALL[family])
    old = {"problem_type": "multi_label_classification", "return_dict": False, "output_hidden_states": True}
    config = AutoConfig.for_model(values.pop("model_type"), **values, num_labels=7, **old)
    theirs = AutoModelForImageClassification.from_config(config, dtype=torch.float16)
    theirs.save_pretrained(tmp_path / "pretrained")

    how = settings(pretrained=str(tmp_path / "pretrained"))
    model = build_model(how, CLASSES, 100).eval()
    kept = {name for name, tensor in model.state_dict().items() if tensor.shape == theirs.state_dict()[name].shape}
    assert {name.rsplit(".", 1)[0] for name in model.state_dict().keys() - kept} == HEADS.get(family, {"classifier"})
    assert all(torch.equal(model.state_dict()[name], theirs.state_dict()[name].to(torch.float32)) for name in kept)

    save_model(model, tmp_path / "made")
    (tmp_path / "exported").mkdir()
    model_files.copy_model(tmp_path / "made", tmp_path / "exported", ("zero", "one", "two"))
    model_files.write(tmp_path / "exported", DataSettings(kind="table", root=tmp_path, image_size=SIZE), how)
    image = images(1).images[0]
    found = pipeline("image-classification", str(tmp_path / "exported"))(Image.fromarray(image))
    with torch.no_grad():
        expected = logits(model, Normalize(how, torch.device("cpu"))(image[None])).softmax(1)[0]
    assert {row["label"]: row["score"] for row in found} == pytest.approx(
        dict(zip(("zero", "one", "two"), expected.tolist(), strict=True)), abs=1e-5
    )


def test_an_architecture_without_a_classifier_is_refused(tmp_path):
    save_body({"model_type": "vit_mae", **TOWER}, tmp_path)
    with pytest.raises(AimfairError, match="no image classifier of the architecture 'vit_mae'; put a head on its"):
        build_model(settings(pretrained=str(tmp_path)), CLASSES, 100)


@pytest.mark.parametrize("key", ["num_labels", "problem_type", "return_dict"])
def test_what_follows_from_the_data_is_no_setting(key):
    with pytest.raises(AimfairError, match=rf"^model\.config\.{key}: it follows from the data and the task"):
        build_model(settings(config={**RESNET, key: 5}), CLASSES, 100)


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
    for mean, std in (("[0.5]", "[0.5]"), ("0.5", "0.5"), ("null", "[1, 1, 1]"), ('["x", 0, 0]', "[1, 1, 1]")):
        (tmp_path / "preprocessor_config.json").write_text(f'{{"image_mean": {mean}, "image_std": {std}}}')
        assert preprocessing_caution(settings(pretrained=str(tmp_path))) is None, "of grey images, or of nothing"
