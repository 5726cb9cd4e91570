"""Masks with optimizers that know nothing of masks, and the check of what an optimizer has changed."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import aimfair
from tests.selective.models import assert_unselected_unchanged, backward, batch, toy, weights

STEPS = 4

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.1, momentum=0.5, weight_decay=0.1),
    "adafactor": partial(torch.optim.Adafactor, lr=0.1, weight_decay=0.1),
    "asgd": partial(torch.optim.ASGD, lr=0.1, lambd=0.1),
}


def mask_of(model: nn.Module) -> aimfair.ParameterMask:
    """Part of every tensor but two: ``head.weight`` is unselected, ``head.bias`` selected as a whole."""
    mask = aimfair.ParameterMask.random(model, 0.4, seed=1)
    bools = mask.to_bool()
    bools["head.weight"][:] = False
    bools["head.bias"][:] = True
    return aimfair.ParameterMask.from_bool(bools)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    torch.manual_seed(3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        backward(model, *batch())
        optimizer.step()


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer_changes_selected_elements_alone(make: Callable[..., torch.optim.Optimizer]) -> None:
    model = toy()
    mask, before = mask_of(model), weights(model)
    applied = aimfair.apply_mask(model, mask)
    train(model, make(model.parameters()))
    assert_unselected_unchanged(model, before, mask.to_bool())
    report = aimfair.verify_frozen(model, mask, before)
    assert report.intact
    assert 0 < report.changed <= report.selected == mask.nnz

    applied.remove()
    train(model, make(model.parameters()))
    report = aimfair.verify_frozen(model, mask, before)
    assert report.moved.keys() >= {"conv.weight", "body.0.weight"}
    assert "head.weight" not in report.moved, "it stays frozen"


def test_selected_elements_are_tuned_as_by_the_masked_optimizer() -> None:
    slow, fast = toy(), toy()
    fast.load_state_dict(slow.state_dict())
    mask = mask_of(slow)
    with aimfair.apply_mask(slow, mask):
        train(slow, torch.optim.SGD(slow.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1))
    train(fast, aimfair.MaskedSGD(fast.named_parameters(), mask, lr=0.01, momentum=0.9, weight_decay=0.1))
    for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_selected_elements() -> None:
    """Clipping by their norm is then of the selected ones, also after several backward passes."""
    model = toy()
    mask = mask_of(model)
    aimfair.apply_mask(model, mask)
    for _ in range(2):
        backward(model, *batch())
    for name, selected in mask.to_bool().items():
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is None or not gradient[~selected].any()
    assert model.conv.weight.grad is not None
    assert model.conv.weight.grad.any()


def test_momentum_of_before_moves_nothing() -> None:
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    mask, before = mask_of(model), weights(model)
    with aimfair.apply_mask(model, mask):
        train(model, optimizer)
    assert_unselected_unchanged(model, before, mask.to_bool())


def test_what_moved_is_named(tmp_path: Path) -> None:
    model = toy()
    mask = mask_of(model)
    save_file(model.state_dict(), tmp_path / "before.safetensors")
    report = aimfair.verify_frozen(model, mask, tmp_path / "before.safetensors")
    assert str(report) == f"no unselected element changed, 0 of {mask.nnz:,} selected elements changed"
    with pytest.raises(ValueError, match=r"^no unselected element changed, 0 of "):  # a mask that does nothing
        report.require()

    place = tuple(torch.nonzero(~mask.bool_of("conv.weight"))[2].tolist())
    with torch.no_grad():
        model.conv.bias[mask.bool_of("conv.bias")] += 1
        model.conv.weight[place] = -0.0
        model.head.weight[1, 2] = float("nan")
    report = aimfair.verify_frozen(model, mask, tmp_path / "before.safetensors")
    assert report.moved == {"conv.weight": 1, "head.weight": 1}
    assert report.first["conv.weight"][0] == place
    assert report.first["head.weight"][0] == (1, 2)
    assert report.changed == int(mask.bool_of("conv.bias").sum())
    assert str(report).startswith("2 unselected elements changed, ")
    assert f"\n  conv.weight: 1, the first at {list(place)}: " in str(report)
    with pytest.raises(ValueError, match="2 unselected elements changed"):
        report.require()


def test_minus_zero_and_nan_are_compared_by_their_bits() -> None:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0], model.weight[1, 1] = 0.0, float("nan")
    before = weights(model)
    mask = aimfair.ParameterMask.empty(model)
    assert aimfair.verify_frozen(model, mask, before).intact
    with torch.no_grad():
        model.weight[0, 0] = -0.0
    assert aimfair.verify_frozen(model, mask, before).moved == {"weight": 1}


def test_parameters_that_the_mask_lacks_are_unselected() -> None:
    model = toy()
    model.body.requires_grad_(False)
    mask, before = aimfair.ParameterMask.full(model), weights(model)
    with torch.no_grad():
        model.body[1].bias.add_(1)
        model.norm.bias.add_(1)
    assert aimfair.verify_frozen(model, mask, before).moved == {"body.1.bias": 33}


def _lacks(before: dict[str, Tensor]) -> Any:
    return {name: tensor for name, tensor in before.items() if name != "head.bias"}


def _of_16_bits(before: dict[str, Tensor]) -> Any:
    return {name: tensor.bfloat16() for name, tensor in before.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [(_lacks, "only in the model: head.bias"), (_of_16_bits, r"in before: .*conv.weight BF16 .* instead of F32")],
)
def test_another_model_before_is_refused(change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    model = toy()
    with pytest.raises(ValueError, match=message):
        aimfair.verify_frozen(model, mask_of(model), change(weights(model)))


def test_a_mask_of_another_model_is_refused() -> None:
    mask = mask_of(toy())
    with pytest.raises(ValueError, match="the mask is for another model"):
        aimfair.apply_mask(nn.Linear(2, 2), mask)
    with pytest.raises(ValueError, match="'scale' is on cpu, the mask on meta"):
        aimfair.apply_mask(toy(), mask.to("meta"))
