"""The last layer of a classifier is found by what its logits come from, whatever its name and place."""

import pytest
import torch
from torch import nn

from aimfair.base.errors import AimfairError
from aimfair.training.execution import prepare
from aimfair.training.head import head_names
from aimfair.training.models import build_model
from aimfair.training.settings import ModelSettings
from tests.training.samples import SIZE, state_bits
from tests.training.test_families import FAMILIES

CLASSES = 3


class HeadFirst(nn.Module):
    """The classifier is set up before what comes before it."""

    def __init__(self, num_classes: int = CLASSES):
        super().__init__()
        self.classifier = nn.Linear(4, num_classes)
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        return self.classifier(self.norm(self.convolution(x).mean((2, 3))))


class TwoHeads(HeadFirst):
    """Their mean, as of SwiftFormer and of distilled DeiT."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(4, CLASSES, bias=False)

    def forward(self, x):
        x = self.norm(self.convolution(x).mean((2, 3)))
        return (self.classifier(x) + self.other(x)) / 2


class Convolution(HeadFirst):
    """A convolution to the classes and a mean over places, as of SqueezeNet; after it a module without use."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(4, CLASSES, 1)
        self.unused = nn.Linear(5, CLASSES)

    def forward(self, x):
        return torch.relu(self.classifier(self.convolution(x))).mean((2, 3))


class Bare(HeadFirst):
    """Parameters without a module of their own."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(4, CLASSES))
        self.b = nn.Parameter(torch.ones(CLASSES))

    def forward(self, x):
        return self.convolution(x).mean((2, 3)) @ self.w + self.b


class Tokens(HeadFirst):
    """The classifier works on every place."""

    def forward(self, x):
        return self.classifier(self.norm(self.convolution(x).flatten(2).transpose(1, 2))).mean(1)


class Temperature(HeadFirst):
    def __init__(self, num_classes: int = CLASSES):
        super().__init__(num_classes)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * super().forward(x)


class Embedding(HeadFirst):
    """Logits are distances, which no layer with the classes as a dimension gives."""

    def forward(self, x):
        x = self.norm(self.convolution(x).mean((2, 3))) @ self.classifier.weight.T[:, :1]
        return torch.cat([x, -x], 1)


class Detached(HeadFirst):
    def forward(self, x):
        with torch.no_grad():
            x = self.convolution(x).mean((2, 3))
        return self.classifier(x)


HEADS = {
    HeadFirst: ["classifier.weight", "classifier.bias"],
    TwoHeads: ["classifier.weight", "classifier.bias", "other.weight"],
    Convolution: ["classifier.weight", "classifier.bias"],
    Bare: ["w", "b"],
    Tokens: ["classifier.weight", "classifier.bias"],
}


@pytest.mark.parametrize("make", HEADS)
@pytest.mark.parametrize("frozen", [False, True])
def test_it_is_what_the_logits_come_from(make, frozen):
    model = make().requires_grad_(not frozen).train()
    before = state_bits(model)
    assert head_names(model, SIZE, "here") == HEADS[make]
    assert state_bits(model) == before
    assert model.training
    assert {parameter.requires_grad for parameter in model.parameters()} == {not frozen}
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", [*FAMILIES, "swiftformer"])
def test_families_of_transformers(family):
    small = {"model_type": "swiftformer", "image_size": 64, "embed_dims": [8, 8], "depths": [1, 1]}
    small |= {"downsamples": [True, True]}
    config = FAMILIES.get(family, small)
    model = build_model(ModelSettings(config=config), CLASSES, 1)
    heads = {"resnet": ["classifier.1"], "resnet-bottleneck": ["classifier.1"], "swiftformer": ["head", "dist_head"]}
    expected = [f"{head}.{kind}" for head in heads.get(family, ["classifier"]) for kind in ("weight", "bias")]
    assert head_names(model, 64 if family == "swiftformer" else SIZE, "here") == expected


def test_the_way_a_model_is_run_makes_no_difference():
    model = build_model(ModelSettings(config=FAMILIES["vit"]), CLASSES, 1)
    prepare(model, ModelSettings(checkpointing=True, autocast="bfloat16"))
    assert head_names(model, SIZE, "here") == ["classifier.weight", "classifier.bias"]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (Temperature, "classifier.bias, classifier.weight, scale"),
        (Embedding, "classifier.weight"),
        (Detached, "no weights"),
    ],
)
def test_what_cannot_be_told_is_refused(make, found):
    expected = rf"^here: the head of the {make.__name__} cannot be determined: its \d logits come from {found}"
    with pytest.raises(AimfairError, match=expected + ", .*; name it as the method's head$"):
        head_names(make(), SIZE, "here")
