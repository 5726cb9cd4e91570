"""What the methods of the field are for: on made-up images with a strong shortcut they lift the worst group."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from aimfair.data.images import Splits
from aimfair.methods import read_method
from aimfair.methods.work import Work
from aimfair.training.models import build_model
from aimfair.training.predict import predict
from aimfair.training.settings import FinetuneSettings, OptimizerSettings
from tests.training.samples import MODEL, images

SPLITS = Splits(
    images(1000, 1, bias=0.98, bar=22),
    images(160, 2, bias=0.9, bar=22),
    images(400, 3, bar=22),
    ("level", "upright"),
    ("red", "blue"),
)
BALANCED = images(200, 4, bar=22)
TRAIN = OptimizerSettings(lr=0.003, epochs=3, batch_size=32)
FINETUNE = FinetuneSettings(lr=0.01, epochs=10, batch_size=32)


def trained(folder: Path, biased: nn.Module | None = None, **settings: object) -> nn.Module:
    method = read_method(settings)
    work = Work(
        name="",
        settings=method.training_settings(TRAIN, FINETUNE),
        preprocessing=MODEL,
        seed=100,
        folder=folder,
        splits=lambda: SPLITS,
        balanced=lambda: BALANCED,
        initial=lambda: build_model(MODEL, 2, 100),
        biased=lambda: copy.deepcopy(biased),
        mask=lambda _: pytest.fail("no mask here"),
    )
    return method.run(work)[0]


def worst_group(model: nn.Module) -> float:
    test = SPLITS.test
    right = predict(model, test, MODEL, batch_size=200, device=torch.device("cpu")).argmax(1) == test.target
    return min(right[(test.target == y) & (test.protected == a)].mean() for y in (0, 1) for a in (0, 1))


@pytest.fixture(scope="module")
def erm(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    model = trained(tmp_path_factory.mktemp("erm"), kind="erm")
    assert worst_group(model) < 0.5
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "real_and_synthetic"},
        {"kind": "balanced_resampling"},
        {"kind": "group_dro", "step_size": 0.1},
        {"kind": "jtt", "first_epochs": 2, "upweight": 8},
        {"kind": "last_layer_retrain"},
        {"kind": "last_layer_retrain", "balanced_from": "synthetic"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_worst_group_is_better_than_with_erm(tmp_path, erm, settings):
    assert worst_group(trained(tmp_path, erm, **settings)) > worst_group(erm) + 0.15
