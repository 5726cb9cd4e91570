"""Calls go to the current stream of the tensors' device, and a step does not wait for the device."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import aimfair
from aimfair.selective.masked_optimizer import MaskedOptimizer
from tests.kernels import cases, valid_calls

from .device import CUDA, needs_cuda, waiting_refused

pytestmark = needs_cuda

every_operator = pytest.mark.parametrize("build", list(valid_calls.OPERATORS), ids=lambda build: build.__name__)

LONG = 200_000_000
"""Clock cycles: about a tenth of a second, in which the host must be done with a step."""


@every_operator
def test_the_current_stream_is_used(build):
    """What a call reads is there only when its stream has slept: on any other stream it would be too early."""
    operator, ready = valid_calls.OPERATORS[build], build(CUDA)
    inputs, expected = cases.clone(ready), cases.clone(ready)
    operator(**expected)
    for tensor in cases.tensors_in(inputs):
        tensor.zero_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG // 10)
        for tensor, value in zip(cases.tensors_in(inputs), cases.tensors_in(ready), strict=True):
            tensor.copy_(value)
        operator(**inputs)
    stream.synchronize()
    cases.assert_same(inputs, expected)


@every_operator
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_device_than_the_current_one(build):
    operator, inputs = valid_calls.OPERATORS[build], build(CUDA)
    first, second = cases.clone(inputs, "cuda:0"), cases.clone(inputs, "cuda:1")
    with torch.cuda.device(0):
        operator(**first)
        operator(**second)
        assert torch.cuda.current_device() == 0
    cases.assert_same(second, first)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_in_one_call_are_refused():
    inputs = valid_calls.accumulate(torch.device("cuda:0"))
    inputs["sums"][1] = inputs["sums"][1].to("cuda:1")
    with pytest.raises(RuntimeError, match=r"sums\[1\]"):
        valid_calls.OPERATORS[valid_calls.accumulate](**inputs)


@pytest.fixture
def model() -> nn.Module:
    model = nn.Sequential(nn.Linear(300, 70), nn.Linear(70, 9)).to(CUDA)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def assert_does_not_wait(call: Callable[[], object]) -> None:
    """Neither torch's waits, which it can refuse, nor ours: the stream sleeps longer than the host takes."""
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG)
    slept = torch.cuda.Event()
    slept.record()
    with waiting_refused():
        call()
    assert not slept.query(), "the host waited for the device"
    torch.cuda.synchronize()


@pytest.mark.parametrize("state", ["dense", "compact"])
@pytest.mark.parametrize("masked", [aimfair.MaskedAdamW, aimfair.MaskedSGD])
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_a_step_does_not_wait(model, masked: type[MaskedOptimizer], state, scaled):
    """Not even if learning rate and addresses of gradients are new, as with a schedule."""
    mask = aimfair.ParameterMask.random(model, 0.3)
    optimizer = masked(model.named_parameters(), mask, state=state)
    if scaled:  # as torch.amp.GradScaler does it
        optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0, device=CUDA), torch.zeros((), device=CUDA)
    optimizer.step()
    before = model[0].weight.detach().clone()
    assert_does_not_wait(optimizer.step)
    optimizer.param_groups[0]["lr"] = 0.02
    for parameter in model.parameters():
        parameter.grad = parameter.grad.clone()
    assert_does_not_wait(optimizer.step)
    assert not torch.equal(model[0].weight, before)


def test_statistics_do_not_wait(model):
    probe = aimfair.Sensitivity(model, ("a",))
    probe.update("a", zero_grads=False)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    probe.update("a", zero_grads=False, grad_scale=scaler)
    assert_does_not_wait(lambda: probe.update("a", zero_grads=False, grad_scale=scaler))
    assert_does_not_wait(lambda: probe.update("a"))
    assert probe.batches == {"a": 4}
    assert probe.mean("a")["0.weight"].any()


class Late(torch.autograd.Function):
    """The identity, whose gradient comes late."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        torch.cuda._sleep(LONG // 10)
        return grad.clone()


@pytest.mark.parametrize("captured", [False, True], ids=["update", "capture"])
def test_statistics_wait_for_gradients_of_a_forward_pass_on_another_stream(model, captured):
    """backward() is called on the current stream, but the gradients are made where the forward pass ran."""
    model.zero_grad(set_to_none=True)
    expected, probe = (aimfair.Sensitivity(model, ("a",)) for _ in range(2))
    data = [torch.randn(5, 300, device=CUDA) for _ in range(3)]
    for x in data:
        model(x).square().sum().backward()
        expected.update("a")
    model.zero_grad(set_to_none=True)
    side = torch.cuda.Stream()
    with probe.capture("a") if captured else nullcontext():
        for x in data:
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                loss = Late.apply(model(Late.apply(x.requires_grad_()))).square().sum()
            loss.backward()
            if not captured:
                probe.update("a")
            with torch.cuda.stream(side):  # takes the memory of gradients that were freed
                used_again = [torch.full_like(parameter, torch.nan) for parameter in model.parameters()]
            del used_again
    torch.cuda.synchronize()
    for name, mean in expected.mean("a").items():
        torch.testing.assert_close(probe.mean("a")[name], mean)
