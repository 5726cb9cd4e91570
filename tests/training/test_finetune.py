"""Fine-tuning moves what the mask selects and nothing else."""

import pytest
import torch

from aimfair.base.errors import AimfairError
from aimfair.selective.mask import ParameterMask
from aimfair.training.loop import Training, require_unselected_unchanged, unselected_digests
from aimfair.training.settings import FinetuneSettings
from tests.training.samples import MODEL, TRAIN, VALIDATION, Net, state_bits

SETTINGS = FinetuneSettings(lr=0.01, weight_decay=0.1, epochs=2, batch_size=16)


def tune(model, mask, settings=SETTINGS):
    return Training(model, TRAIN, VALIDATION, settings, MODEL, 100, mask).fit()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("state", ["dense", "compact"])
def test_unselected_weights_keep_every_bit(optimizer, state):
    model, before = Net(), Net().state_dict()
    mask = ParameterMask.random(model, 0.3)
    history = tune(model, mask, SETTINGS.model_copy(update={"optimizer": optimizer, "state": state}))
    assert len(history.epochs) == 2
    for name, selected in mask.to_bool().items():
        moved = model.state_dict()[name] != before[name]
        assert not (moved & ~selected).any()
        assert moved[selected].float().mean() > 0.5


def test_dense_and_compact_state_give_the_same_bits():
    results = []
    for state in ("dense", "compact"):
        model = Net()
        tune(model, ParameterMask.random(model, 0.3), SETTINGS.model_copy(update={"state": state}))
        results.append(state_bits(model))
    assert results[0] == results[1]


def test_tensors_without_a_selected_element_have_no_backward():
    model = Net()
    tune(model, ParameterMask.from_names(model, ["head.weight", "head.bias"]))
    asked = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert asked == {"head.weight", "head.bias"}


@pytest.mark.parametrize("batchnorm", ["freeze", "adapt"])
def test_running_statistics(batchnorm):
    model, before = Net(), Net().norm.running_mean
    tune(model, ParameterMask.full(model), SETTINGS.model_copy(update={"batchnorm": batchnorm}))
    assert torch.equal(model.norm.running_mean, before) == (batchnorm == "freeze")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_a_single_bit_elsewhere_is_found(dtype):
    parameters = {"a": torch.zeros(4, 3, dtype=dtype), "b": torch.ones(5, dtype=dtype)}
    selected = {"a": torch.tensor([[True, False, False]] * 4), "b": torch.zeros(5, dtype=torch.bool)}
    mask = ParameterMask.from_bool(selected)
    after = {name: parameter.clone() for name, parameter in parameters.items()}
    before = unselected_digests(mask, parameters)
    after["a"][:, 0] = 7
    require_unselected_unchanged(mask, before, after)
    after["a"][2, 1] = -0.0
    with pytest.raises(AimfairError, match="unselected elements of a have changed"):
        require_unselected_unchanged(mask, before, after)
    after["b"][4] = 2
    with pytest.raises(AimfairError, match="unselected elements of a, b have changed"):
        require_unselected_unchanged(mask, before, after)


def test_a_mask_for_another_model_is_refused():
    with pytest.raises(ValueError, match=r"the mask is for another model: missing: norm\.weight"):
        tune(Net(batchnorm=False), ParameterMask.full(Net()))
