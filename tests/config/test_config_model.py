"""Settings of the classifier: which library's model a string names, and strings that name none."""

import pytest

from aimfair.base.errors import ConfigError
from aimfair.config import load as config_file
from aimfair.training.settings import ModelSettings
from tests.config.test_config import DEMO


@pytest.mark.parametrize(
    ("given", "source"),
    [
        ({"pretrained": "microsoft/resnet-18"}, ("hf", "microsoft/resnet-18")),
        ({"pretrained": "hf:microsoft/resnet-18"}, ("hf", "microsoft/resnet-18")),
        ({"pretrained": "/models/mine"}, ("folder", "/models/mine")),
        ({"pretrained": "hf:/models/mine"}, ("folder", "/models/mine")),
        ({"pretrained": "/models/odd:name"}, ("folder", "/models/odd:name")),
        ({"pretrained": "timm:resnet18.a1_in1k"}, ("timm", "resnet18.a1_in1k")),
        ({"pretrained": "torchvision:resnet18/IMAGENET1K_V1"}, ("torchvision", "resnet18/IMAGENET1K_V1")),
        ({"factory": "timm:resnet18"}, ("timm", "resnet18")),
        ({"factory": "torchvision:resnet18"}, ("torchvision", "resnet18")),
        ({"factory": "package.module:make"}, ("own", "package.module:make")),
    ],
)
def test_whose_model_a_text_means(given, source):
    assert ModelSettings(**given).source == source


def test_folders_are_absolute_with_and_without_prefix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("./mine", "hf:./mine"):
        assert ModelSettings(pretrained=text).source == ("folder", str(tmp_path / "mine"))


def refusal(**flags: str) -> str:
    base = {"model.config": "{}"} if "model.pretrained" in flags or "model.factory" in flags else {}
    with pytest.raises(ConfigError) as caught:
        config_file.load(DEMO, {**base, **flags})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.factory", "timm", "expected a name after timm:; a folder goes without it"),
        ("model.factory", "timm:", "expected a name after timm:"),
        ("model.factory", "os.system('x'):y", "expected timm:<name>, torchvision:<name> or module:function"),
        ("model.factory", "../x:make", "expected timm:<name>, torchvision:<name> or module:function"),
        ("model.pretrained", "tim:resnet18", "expected hf:, timm: or torchvision: before the colon"),
        ("model.pretrained", "timm:./folder", "a folder goes without it"),
    ],
)
def test_texts_that_mean_no_model(key, text, message):
    said = refusal(**{key: text})
    assert said.startswith(f"--{key}: ")
    assert message in said


def test_compiling_and_checkpointing_exclude_each_other():
    said = refusal(**{"model.compile": "true", "model.checkpointing": "true"})
    assert "torch.compile decides itself what to recompute" in said


@pytest.mark.parametrize(
    ("criterion", "statistics", "message"),
    [
        ("fisher", "sum", "found 'sum', but criterion 'fisher' of methods.mine needs 'all'"),
        ("magnitude", "signed", "criterion 'magnitude' of methods.mine needs 'all' or 'sum'"),
        ("difference", "signed", None),
        ("relative_difference", "sum", None),
    ],
)
def test_statistics_that_are_too_few_for_a_method(criterion, statistics, message):
    methods = f"{{mine: {{rule: top_k, density: 0.1, criterion: {criterion}}}}}"
    flags = {"methods": methods, "default_method": "mine", "sensitivity.statistics": statistics}
    if message is None:
        assert config_file.load(DEMO, flags).sensitivity.statistics == statistics
    else:
        assert message in refusal(**flags)
