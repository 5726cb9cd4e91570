"""Deltas of an optimizer's steps."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import aimfair
from aimfair import Delta


def model_of(dtype):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 5)).to(dtype)


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.randn(8, 30, dtype=next(model.parameters()).dtype)).square().mean().backward()
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
def test_deltas_follow_the_training(tmp_path, dtype, options, kind):
    model, follower = model_of(dtype), model_of(dtype)
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


def test_without_a_mask():
    model, follower = model_of(torch.float32), model_of(torch.float32)
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    recorder = optimizer.record_delta()
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
