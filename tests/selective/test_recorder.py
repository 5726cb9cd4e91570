"""Deltas of an optimizer's steps."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import aimfair
from aimfair import Delta
from aimfair.selective import recorder as recorder_module


def model_of(dtype, device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)).to(device, dtype)


def step(model, optimizer):
    optimizer.zero_grad()
    weight = model[0].weight
    model(torch.randn(8, 30).to(weight.device, weight.dtype)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {"state": "compact"}),
        (torch.float32, {}),
        (torch.bfloat16, {"master_weights": True}),
        (torch.bfloat16, {"stochastic_rounding": True}),
        (torch.float16, {}),
    ],
)
@pytest.mark.parametrize("kind", [aimfair.MaskedAdamW, aimfair.MaskedSGD])
def test_deltas_follow_the_training(tmp_path, device, dtype, options, kind):
    model, follower = model_of(dtype, device), model_of(dtype, device)
    mask = aimfair.ParameterMask.random(model, 0.1)
    optimizer = kind(model.named_parameters(), mask, lr=0.1, **options)
    recorder = optimizer.record_delta()
    for steps in (1, 3):
        for _ in range(steps):
            step(model, optimizer)
        delta = recorder.delta()
        delta.save(tmp_path / "delta.safetensors")
        Delta.load(tmp_path / "delta.safetensors").apply_(follower)
        assert all(torch.equal(follower.state_dict()[name], value) for name, value in model.state_dict().items())
    assert delta.nnz == mask.nnz
    delta.revert_(follower)
    assert any(not torch.equal(follower.state_dict()[name], value) for name, value in model.state_dict().items())
    assert recorder.delta().nnz == mask.nnz  # of no step: the same values again


def same_bits(one, other):
    one, other = one.state_dict(), other.state_dict()
    return all(torch.equal(one[name].view(torch.uint8), other[name].view(torch.uint8)) for name in one)


@pytest.mark.parametrize("keep_copy", [False, True])
def test_without_a_mask(monkeypatch, device, keep_copy):
    monkeypatch.setattr(recorder_module, "_PIECE", 250)  # the biases together, each weight alone
    model, follower = model_of(torch.float32, device), model_of(torch.float32, device)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1, state="compact")
    recorder = optimizer.record_delta(keep_copy=keep_copy)
    step(model, optimizer)
    recorder.delta().apply_(follower)
    assert all(torch.equal(follower.state_dict()[name], value) for name, value in model.state_dict().items())


def test_what_needs_digests_is_refused(tmp_path):
    model = model_of(torch.float32)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    delta = optimizer.record_delta().delta()
    assert delta.base is delta.result is None
    with pytest.raises(ValueError, match="has no digests of whole tensors: make it of two models to verify one"):
        delta.verify(model)
    with pytest.raises(ValueError, match="delta 1 has no digests"):
        Delta.merge([delta], model)
    save_file(model.state_dict(), tmp_path / "file.safetensors")
    with pytest.raises(ValueError, match="no digests of whole tensors: apply_ it to a model in memory"):
        delta.apply(tmp_path / "file.safetensors", tmp_path / "to")


KEEPING = [
    (torch.float32, {}),
    (torch.float32, {"moment_bits": 8}),
    (torch.bfloat16, {"master_weights": True}),
    (torch.float16, {"master_weights": True}),
]


def pair(dtype, options, device="cpu", *, keep_copy):
    model = model_of(dtype, device)
    mask = aimfair.ParameterMask.random(model, 0.1)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), mask, lr=0.1, state="compact", **options)
    return model, optimizer, optimizer.record_delta(keep_copy=keep_copy)


def gathers(monkeypatch):
    """Counts the parameters whose selected elements are gathered."""
    found = []
    gather = recorder_module._Tracked.gather
    monkeypatch.setattr(recorder_module._Tracked, "gather", lambda one: (found.append(one.name), gather(one))[1])
    return found


@pytest.mark.parametrize(("dtype", "options"), KEEPING)
def test_copies_change_no_bit_and_save_the_gather(monkeypatch, device, dtype, options):
    plain, plain_optimizer, _ = pair(dtype, options, device, keep_copy=False)
    model, optimizer, recorder = pair(dtype, options, device, keep_copy=True)
    follower = model_of(dtype, device)
    for seed in range(3):
        for one, its in ((plain, plain_optimizer), (model, optimizer)):
            torch.manual_seed(seed)
            step(one, its)
        gathered = gathers(monkeypatch)
        recorder.delta().apply_(follower)
        assert gathered == []
        assert same_bits(model, plain)
        assert same_bits(model, follower)
    assert all("master" not in state for state in optimizer.state.values()) or dtype != torch.float32


@pytest.mark.parametrize(("dtype", "options"), KEEPING)
def test_weights_that_others_write_are_taken_again(dtype, options):
    model, optimizer, recorder = pair(dtype, options, keep_copy=True)
    follower = model_of(dtype)
    step(model, optimizer)
    recorder.delta().apply_(follower)
    with torch.no_grad():
        model[0].weight.fill_(2)
        model[2].weight.fill_(torch.nan)
    recorder.delta().apply_(follower)  # between the write and the next step
    selected = optimizer.mask.to_bool()
    for name, value in model.state_dict().items():
        assert torch.equal(follower.state_dict()[name][selected[name]].isnan(), value[selected[name]].isnan())
        finite = selected[name] & ~value.isnan()
        assert torch.equal(follower.state_dict()[name][finite], value[finite])
    optimizer.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    if dtype == torch.float32:
        assert (model[0].weight[selected["0.weight"]] > 1.5).all()  # a step from 2
    recorder.delta().apply_(follower)
    for name, value in model.state_dict().items():
        assert torch.equal(follower.state_dict()[name][selected[name]], value[selected[name]]) or value.isnan().any()


@pytest.mark.parametrize(("dtype", "options"), KEEPING)
def test_copies_outlive_loaded_state(monkeypatch, dtype, options):
    model, optimizer, recorder = pair(dtype, options, keep_copy=True)
    follower = model_of(dtype)
    step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    step(model, optimizer)
    optimizer.load_state_dict(saved)
    recorder.delta().apply_(follower)
    assert same_bits(model, follower)  # the weights, not the master weights that were loaded
    step(model, optimizer)
    gathered = gathers(monkeypatch)
    recorder.delta().apply_(follower)
    assert gathered == []
    assert same_bits(model, follower)
    assert copy.deepcopy(optimizer)._copies is None


def test_nan_bits_are_those_of_the_parameter():
    model = model_of(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.view(torch.int16).fill_(0x7F91)  # a signalling NaN with a payload
    follower = copy.deepcopy(model)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), state="compact", master_weights=True)
    recorder = optimizer.record_delta(keep_copy=True)
    optimizer.found_inf = torch.tensor(1.0)  # a step that GradScaler skips
    step(model, optimizer)
    recorder.delta().apply_(follower)
    assert same_bits(model, follower)


@pytest.mark.parametrize(
    ("dtype", "options", "said"),
    [
        (torch.float32, {"state": "dense"}, 'keep_copy needs state="compact"'),
        (torch.float32, {"stochastic_rounding": True}, "keep_copy is not valid with stochastic_rounding"),
        (torch.bfloat16, {}, "keep_copy needs master_weights=True for weights of 16 bits: 0.weight, 0.bias, 2.weight"),
    ],
)
def test_what_cannot_keep_copies(dtype, options, said):
    model = model_of(dtype)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), **{"state": "compact"} | options)
    with pytest.raises(ValueError, match=said):
        optimizer.record_delta(keep_copy=True)
