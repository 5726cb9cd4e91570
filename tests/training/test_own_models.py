"""Models that a function of the user makes, and model folders that would like to run something."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.training.execution import logits
from aimfair.training.head import head_names
from aimfair.training.models import build_model, load_model, save_model
from aimfair.training.settings import ModelSettings, OptimizerSettings
from tests.training.samples import SIZE, Net, state_bits, training

OWN = "tests.training.test_own_models:make"


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.first = nn.Linear(3, width)
        self.second = nn.Linear(width, 3)
        self.second.weight = nn.Parameter(self.first.weight.t().contiguous())
        self.third = nn.Linear(3, width)
        self.third.weight = self.first.weight
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x.mean((2, 3))))))


def make(num_classes: int, width: int = 5) -> nn.Module:
    return Tied(width, num_classes)


def make_with_object(num_classes: int) -> nn.Module:
    class Output:
        def __init__(self, scores):
            self.logits = scores

    class Wrapped(Tied):
        def forward(self, x):
            return Output(super().forward(x))

    return Wrapped(4, num_classes)


def make_number(num_classes: int) -> int:
    return num_classes


def make_broken(num_classes: int) -> nn.Module:
    raise RuntimeError("no such luck")


def make_not_contiguous(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 3).to(memory_format=torch.channels_last)


def make_wrong_output(num_classes: int) -> nn.Module:
    return nn.Conv2d(3, num_classes, 3)


def own(name: str = "make", **config: object) -> ModelSettings:
    return ModelSettings(factory=f"{__name__}:{name}", config=config)


def test_a_function_of_the_user_makes_a_model_that_is_trained_saved_and_loaded(tmp_path):
    settings = own(width=7)
    model = build_model(settings, 2, 100)
    assert state_bits(model) == state_bits(build_model(settings, 2, 100))
    assert state_bits(model) != state_bits(build_model(settings, 2, 200))
    training(model, OptimizerSettings(lr=0.01, epochs=1, batch_size=16)).fit()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path, settings)
    assert state_bits(loaded) == state_bits(model)
    assert loaded.third.weight is loaded.first.weight
    save_model(loaded, tmp_path / "again")  # it still knows where it came from
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
    assert logits(build_model(own("make_with_object"), 4, 1), torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 4)


def test_the_folder_says_without_aimfair_how_to_make_the_module(tmp_path):
    from safetensors.torch import load_file

    model = build_model(own(width=7), 2, 100)
    save_model(model, tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values == {"factory": "own", "name": f"{__name__}:make", "arguments": {"width": 7}, "num_classes": 2}
    theirs = make(num_classes=values["num_classes"], **values["arguments"])
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    x = torch.randn(2, 3, SIZE, SIZE)
    assert torch.equal(theirs(x), model(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (ModelSettings(factory="no_such_module:make"), "no_such_module:make: cannot be imported: No module named"),
        (own("missing"), "cannot be imported: .*missing.*PYTHONPATH"),
        (own("make_broken"), "failed: RuntimeError: no such luck"),
        (own("make_number"), "returned int, expected a torch.nn.Module"),
        (own("make_not_contiguous"), "parameter 'weight' is not contiguous"),
        (own(depth=3), "failed: TypeError: .*depth"),
        (own(weights="x.pt"), r"model.config.weights: not a valid argument"),
        (own(width={1, 2}), r"model.config.width: .* cannot be kept in a model folder"),
    ],
)
def test_what_is_no_model_is_refused(settings, message):
    with pytest.raises(AimfairError, match=message) as refusal:
        build_model(settings, 2, 100)
    assert "\n" not in str(refusal.value)


def test_an_output_that_is_no_logits_is_refused():
    with pytest.raises(AimfairError, match=r"returned \[2, 3, 14, 14\] for 2 images, expected logits of shape \[2, cl"):
        logits(build_model(own("make_wrong_output"), 3, 1), torch.zeros(2, 3, SIZE, SIZE))


class TestFoldersOfStrangers:
    """Whatever a model folder holds, loading it runs nothing that the settings do not name."""

    @pytest.fixture
    def trap(self, tmp_path: Path, monkeypatch) -> Path:
        """A module that leaves a trace when it is imported, and a model folder that names it."""
        (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\ndef make(**_): ...\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "trap", raising=False)
        save_model(build_model(own(), 2, 100), tmp_path / "model")
        self.edit(tmp_path / "model", name="trap:make")
        return tmp_path / "model"

    @staticmethod
    def edit(folder: Path, **changes: object) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    @pytest.mark.parametrize("settings", [None, ModelSettings(), own()])
    def test_functions_are_not_imported(self, trap, settings):
        with pytest.raises(AimfairError, match=r"made by 'trap:make', which is imported only if the settings'"):
            load_model(trap, settings)
        assert not (trap.parent / "sprung").exists()

    def test_nor_as_pretrained(self, trap):
        with pytest.raises(AimfairError, match="made by the function 'trap:make', which is not run"):
            build_model(ModelSettings(pretrained=str(trap)), 2, 100)
        assert not (trap.parent / "sprung").exists()

    @pytest.mark.parametrize(
        "changes",
        [{"factory": "trap:make"}, {"factory": None}, {"num_classes": "2"}, {"arguments": []}, {"name": 3}],
    )
    def test_other_descriptions_are_refused(self, trap, changes):
        self.edit(trap, **changes)
        with pytest.raises(AimfairError, match=r"config\.json: expected factory torchvision or own, a name"):
            load_model(trap, own())

    @pytest.mark.parametrize("text", ["", "[]", "{", "nonsense"])
    def test_what_is_no_description_is_refused(self, trap, text):
        (trap / "config.json").write_text(text)
        with pytest.raises(AimfairError, match=r"config\.json: not a usable model configuration"):
            load_model(trap)

    def test_nothing_of_timm_is_followed(self, trap):
        pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
        for name in ("hf-hub:someone/model", "local-dir:/somewhere", "../resnet18"):
            (trap / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 2}))
            with pytest.raises(AimfairError, match="timm knows no model"):
                load_model(trap)

    def test_arguments_that_would_read_a_pickle_are_refused(self, trap):
        description = {"architecture": "resnet18", "num_classes": 2, "model_args": {"checkpoint_path": "weights.pt"}}
        (trap / "config.json").write_text(json.dumps(description))
        with pytest.raises(AimfairError, match=r"model_args\.checkpoint_path: not a valid argument"):
            load_model(trap)
        self.edit(trap, factory="torchvision", name="resnet18", arguments={"weights": "DEFAULT"})
        with pytest.raises(AimfairError, match=r"arguments\.weights: not a valid argument"):
            load_model(trap)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("key", ["pretrained", "factory"])
def test_a_library_that_is_missing_is_named(library, key, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(AimfairError, match=f"{library} is not installed; this model needs: pip install {library}"):
        build_model(ModelSettings(**{key: f"{library}:resnet18"}), 2, 100)


def test_a_model_of_unknown_origin_is_not_saved(tmp_path):
    with pytest.raises(AimfairError, match="a Net of unknown origin cannot be saved"):
        save_model(Net(), tmp_path)


def test_the_documented_head_on_a_backbone_without_a_classifier(tmp_path, monkeypatch):
    import transformers

    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**tower, image_size=SIZE, patch_size=8))
    transformers.utils.logging.disable_progress_bar()
    backbone.save_pretrained(tmp_path / "backbone")
    guide = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    (program,) = re.findall(r"^```python\n(# heads\.py.*?)^```$", guide, re.MULTILINE | re.DOTALL)
    (tmp_path / "heads.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ModelSettings(factory="heads:build", config={"folder": str(tmp_path / "backbone")})
    model = build_model(settings, 2, 100)
    training(model, OptimizerSettings(lr=0.01, epochs=1, batch_size=16)).fit()
    assert head_names(model, SIZE, "") == ["head.weight", "head.bias"]
    save_model(model, tmp_path / "made")
    assert state_bits(load_model(tmp_path / "made", settings)) == state_bits(model)
