"""Masks that change during training: what stays keeps its state, what is new begins with nothing."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair import ParameterMask

from .models import Toy, backward, batch, random_gradients, same_bits, set_gradients, toy, weights

CASES: list[tuple[type, dict[str, Any]]] = [
    (aimfair.MaskedAdamW, {"lr": 0.05, "amsgrad": True}),
    (aimfair.MaskedSGD, {"lr": 0.05, "momentum": 0.9}),
    *((aimfair.MaskedAdamW, {"lr": 0.05, "moment_bits": bits}) for bits in (32, 16, 8)),
]
every_case = pytest.mark.parametrize(("kind", "options"), CASES)
layouts = pytest.mark.parametrize("state", ["dense", "compact"])


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


def masks(model: nn.Module) -> tuple[ParameterMask, ParameterMask]:
    """They overlap; one tensor is selected in the first only, another in the second."""
    bools = [ParameterMask.random(model, 0.4, seed=seed).to_bool() for seed in (1, 2)]
    bools[0]["body.0.bias"][:] = False
    bools[1]["head.bias"][:] = False
    return tuple(map(ParameterMask.from_bool, bools))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, gradients: dict[str, Tensor]) -> None:
    set_gradients(model, gradients)
    optimizer.step()


def values(optimizer: Any, parameter: nn.Parameter) -> dict[str, Tensor]:
    """The state of a parameter as float32 over all elements."""
    form = aimfair.MaskedAdamW([("x", parameter)])._kept
    slot = optimizer._slots[parameter]
    form = type(form)(optimizer.moments, (), False, 32, optimizer.master_weights, False)
    return form.converted(optimizer.state[parameter], parameter, slot)


@every_case
@layouts
def test_what_stays_keeps_its_state(model, kind, options, state):
    first, second = masks(model)
    optimizer = kind(model.named_parameters(), first, state=state, **options)
    for _ in range(3):
        step(model, optimizer, random_gradients(model))
    before = {name: values(optimizer, p) for name, p in model.named_parameters() if optimizer.state.get(p)}
    unchanged = weights(model)
    optimizer.update_mask(second)
    assert optimizer.mask is second
    assert all(same_bits(value, unchanged[name]) for name, value in weights(model).items())
    for name, parameter in model.named_parameters():
        old, new = first.bool_of(name), second.bool_of(name)
        if not (old.any() and new.any()):
            assert not optimizer.state.get(parameter)
            continue
        after = values(optimizer, parameter)
        assert after["step"] == 3
        for moment in set(after) - {"step"}:
            assert same_bits(after[moment][old & new], before[name][moment][old & new]), (name, moment)
            assert not after[moment][new & ~old].any(), (name, moment)


@pytest.mark.parametrize(("kind", "options"), CASES[:3])
def test_steps_go_on_as_from_that_state(model, kind, options):
    """Dense and compact alike, and as an optimizer of all elements whose other weights are put back."""
    first, second = masks(model)
    models = [model, copy.deepcopy(model), copy.deepcopy(model)]
    masked = [
        kind(each.named_parameters(), first, state=state, **options)
        for each, state in zip(models[:2], ("dense", "compact"), strict=True)
    ]
    whole = kind(models[2].named_parameters(), None, **options)
    for number in range(6):
        selected = (first if number < 3 else second).to_bool()
        if number == 3:
            for optimizer in masked:
                optimizer.update_mask(second)
            for name, parameter in models[2].named_parameters():
                if not selected[name].any() or not first.bool_of(name).any():
                    whole.state.pop(parameter, None)
                for key, value in whole.state.get(parameter, {}).items():
                    if key != "step":
                        value.masked_fill_(~(selected[name] & first.bool_of(name)), 0)
        gradients, before = random_gradients(model), weights(models[2])
        for each, optimizer in zip(models, [*masked, whole], strict=True):
            step(each, optimizer, gradients)
        with torch.no_grad():
            for name, parameter in models[2].named_parameters():
                parameter.copy_(torch.where(selected[name], parameter, before[name]))
        for name, value in weights(models[2]).items():
            assert all(same_bits(weights(each)[name], value) for each in models[:2]), (number, name)


@layouts
def test_master_weights(model, state):
    """Those of elements that stay are kept; the others begin with the weight."""
    model = model.bfloat16()
    first, second = masks(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), first, lr=1e-4, master_weights=True, state=state)
    for _ in range(3):
        step(model, optimizer, random_gradients(model))
    weight = model.body[0].weight
    before = values(optimizer, weight)["master"]
    optimizer.update_mask(second)
    after = values(optimizer, weight)["master"]
    old, new = first.bool_of("body.0.weight"), second.bool_of("body.0.weight")
    assert same_bits(after[old & new], before[old & new])
    assert same_bits(after[new & ~old], weight.detach().float()[new & ~old])
    assert not torch.equal(before[old & new], weight.detach().float()[old & new])


@layouts
def test_in_the_backward_pass_and_in_checkpoints(model, state, device):
    first, second = masks(model)
    twin = copy.deepcopy(model)
    inside, after = (aimfair.MaskedAdamW(m.named_parameters(), first, lr=0.05, state=state) for m in (model, twin))
    with inside.step_in_backward(max_norm=0.3) as steps:
        for number, accumulated in itertools.product(range(2), (False, True)):
            data = batch(device)
            after.zero_grad()
            if accumulated:
                with steps.accumulate():
                    backward(model, *data)
                backward(twin, *data)
            backward(model, *data)
            backward(twin, *data)
            nn.utils.clip_grad_norm_(twin.parameters(), 0.3, foreach=False)
            after.step()
            if number == 0 and accumulated:
                for optimizer in (inside, after):
                    optimizer.update_mask(second)
    for name, value in weights(model).items():
        assert same_bits(value, weights(twin)[name]), name
    fresh = aimfair.MaskedAdamW(model.named_parameters(), second, state=state)
    fresh.load_state_dict(inside.state_dict())
    with pytest.raises(ValueError, match="the state is for mask"):
        aimfair.MaskedAdamW(model.named_parameters(), first, state=state).load_state_dict(inside.state_dict())


def test_refusals_and_deltas(model, device):
    first, second = masks(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), first, lr=0.05, state="compact")
    recorder = optimizer.record_delta(keep_copy=True)
    step(model, optimizer, random_gradients(model))
    for mask, error, message in (
        (None, TypeError, "takes a ParameterMask in place of another"),
        (0.1, TypeError, "expected a ParameterMask"),
        (ParameterMask.random(nn.Linear(3, 3), 0.5), ValueError, "not in the mask"),
    ):
        with pytest.raises(error, match=message):
            optimizer.update_mask(mask)
    assert optimizer.mask is first
    recorder.delta()
    with optimizer.step_in_backward() as steps:
        with steps.accumulate():
            backward(model, *batch(device))
        with pytest.raises(RuntimeError, match="gradients are accumulated under the old mask"):
            optimizer.update_mask(second)
        backward(model, *batch(device))
    optimizer.update_mask(second)
    with pytest.raises(RuntimeError, match="update_mask has changed the mask"):
        recorder.delta()
    follower, recorder = copy.deepcopy(model), optimizer.record_delta()
    step(model, optimizer, random_gradients(model))
    recorder.delta().apply_(follower)
    assert all(same_bits(value, weights(model)[name]) for name, value in weights(follower).items())


def test_groups_with_masks_of_their_own_keep_them(model):
    first, second = masks(model)
    named = list(model.named_parameters())
    own = ParameterMask.random(model, 0.2, seed=5)
    optimizer = aimfair.MaskedAdamW([{"params": named[::2]}, {"params": named[1::2], "mask": own}], first, lr=0.05)
    step(model, optimizer, random_gradients(model))
    optimizer.update_mask(second)
    before = weights(model)
    step(model, optimizer, random_gradients(model))
    for number, (name, parameter) in enumerate(named):
        selected = (own if number % 2 else second).bool_of(name)
        assert torch.equal(parameter.detach() != before[name], selected), name
