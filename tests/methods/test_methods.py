"""Methods: the masks they select and the optimizers that obey them."""

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.methods import Tune, read_method
from aimfair.methods.tune import select_mask
from aimfair.selective.mask import ParameterMask
from aimfair.selective.optim import MaskedAdamW, MaskedSGD
from aimfair.selective.sensitivity import Sensitivity
from aimfair.training.optimizer import build_optimizer
from aimfair.training.sensitivity import SOURCES
from aimfair.training.settings import FinetuneSettings, OptimizerSettings
from tests.training.samples import Net


@pytest.fixture(scope="module")
def probe() -> Sensitivity:
    """Random gradients; those of the fair source are largest in the head."""
    model, generator = Net(), torch.Generator().manual_seed(1)
    probe = Sensitivity(model, SOURCES)
    for source in SOURCES:
        for name, parameter in model.named_parameters():
            scale = 100 if (source, name) == ("synthetic_fair", "head.weight") else 1
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
        probe.update(source)
    return probe


def select(probe: Sensitivity, seed: int = 100, **settings: object) -> ParameterMask:
    return select_mask(probe, "mine", read_method(settings), seed)


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "top_k", "density": 0.1},
        {"rule": "top_k", "criterion": "norm_ratio", "k": 5, "granularity": "row"},
        {"rule": "intersection", "bias_density": 0.5, "domain_density": 0.4},
        {"rule": "intersection", "bias_k": 4, "domain_k": 5, "granularity": "tensor"},
        {"rule": "intersection", "density": 0.1, "criterion": "relative_difference", "domain_criterion": "difference"},
        {"rule": "ratio", "density": 0.2},
        {"rule": "budget", "density": 0.2},
        {"rule": "all"},
        {"rule": "head_only"},
        {"rule": "head_only", "head": "convolution"},
        {"rule": "blocks", "blocks": ["norm", "head.bias"]},
        {"rule": "all", "freeze": ["head"]},
        {"rule": "top_k", "criterion": "cosine", "granularity": "tensor", "k": 3},
    ],
)
def test_it_asks_for_what_the_settings_say(probe, settings):
    assert select(probe, **settings) == probe.select(**settings)


def test_random_masks_follow_the_seed(probe):
    first, again, other = (select(probe, seed, rule="random", density=0.3) for seed in (100, 100, 200))
    assert first == again
    assert first != other
    assert first.nnz == other.nnz == round(0.3 * first.numel)


@pytest.mark.parametrize("criterion", ["fisher", "magnitude"])
def test_criteria_of_one_source_look_at_the_fair_one(probe, criterion):
    k = Net().head.weight.numel() // 2
    mask = select(probe, rule="top_k", criterion=criterion, k=k)
    assert dict(zip(mask.names, mask.nnz_per_tensor, strict=True))["head.weight"] == k
    named = select(probe, rule="top_k", criterion=criterion, k=k, source="real_biased")
    assert named == probe.select("top_k", criterion=criterion, k=k, source="real_biased") != mask


def test_settings_that_select_nothing_are_refused_with_the_name_of_the_method(probe):
    with pytest.raises(AimfairError, match=r"methods\.mine: the top 1 units .*have none in common"):
        select(probe, rule="intersection", bias_k=1, domain_k=1)
    with pytest.raises(AimfairError, match=r"methods\.mine: k=100000"):
        select(probe, rule="top_k", k=100_000)
    with pytest.raises(
        AimfairError, match=r"methods\.mine: no parameter belongs to the module 'hed'; did you mean 'head'"
    ):
        select(probe, rule="blocks", blocks=["hed"])
    with pytest.raises(AimfairError, match=r"methods\.mine: rule 'head_only' selects nothing outside of freeze=head"):
        select(probe, rule="head_only", freeze=["head"])


def test_a_method_may_have_its_own_lr_and_batchnorm():
    common = FinetuneSettings(lr=0.1, batchnorm="freeze", epochs=7)
    assert Tune(rule="all").training_settings(OptimizerSettings(), common) == common
    own = Tune(rule="all", lr=0.5, batchnorm="adapt").training_settings(OptimizerSettings(), common)
    assert own == FinetuneSettings(lr=0.5, batchnorm="adapt", epochs=7)


def test_optimizers():
    model = Net()
    mask = ParameterMask.random(model, 0.3)
    adamw = build_optimizer(model, OptimizerSettings(lr=0.1, weight_decay=0.2))
    assert isinstance(adamw, MaskedAdamW)
    assert (adamw.mask, adamw.compact, adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (None, False, 0.1, 0.2)
    sgd = build_optimizer(model, FinetuneSettings(optimizer="sgd", momentum=0.8, weight_decay=0.2), mask)
    assert isinstance(sgd, MaskedSGD)
    assert (sgd.mask, sgd.compact, sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (mask, True, 0.8, 0.2)
    assert not build_optimizer(model, FinetuneSettings(state="dense"), mask).compact
