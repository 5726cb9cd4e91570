"""Captured in a CUDA graph and replayed, calls and whole training steps give the bits of eager ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective.masked_optimizer import MaskedOptimizer
from tests.kernels import cases, valid_calls

from .device import CUDA, needs_cuda

pytestmark = needs_cuda

CAPTURABLE = [build for build in valid_calls.OPERATORS if build not in valid_calls.WAITING]


def captured(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


@pytest.mark.parametrize("build", CAPTURABLE, ids=lambda build: build.__name__)
def test_operators(build):
    """A replay reads what is in memory then, not what was there at the capture."""
    operator, inputs = valid_calls.OPERATORS[build], build(CUDA)
    operator(**cases.clone(inputs))  # kernels are loaded
    graph = captured(lambda: operator(**inputs))
    for _ in range(3):
        fresh = build(CUDA)
        for tensor, value in zip(cases.tensors_in(inputs), cases.tensors_in(fresh), strict=True):
            tensor.copy_(value)
        graph.replay()
        graph.replay()
        operator(**fresh)
        operator(**fresh)
        cases.assert_same(inputs, fresh)


@pytest.mark.parametrize("build", valid_calls.WAITING, ids=lambda build: build.__name__)
def test_what_the_host_must_read_is_refused_and_the_capture_goes_on(build):
    operator, inputs = valid_calls.OPERATORS[build], build(CUDA)
    counter = torch.zeros((), device=CUDA)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counter += 1
        with pytest.raises(RuntimeError, match="the host reads its result, which a CUDA graph cannot hold"):
            operator(**inputs)
        counter += 1
    graph.replay()
    assert counter.item() == 2
    operator(**inputs)


class Training:
    """A loss of many tensors whose backward pass is exact whatever the device does, and a step on what it leaves.

    All that changes from step to step is in device memory: the input, learning rate, loss scale and found_inf.
    """

    def __init__(self, masked: type[MaskedOptimizer], dtype: torch.dtype, **options: object):
        generator = torch.Generator(CUDA).manual_seed(5)
        shapes = [(3000,), (70, 33), (), (1024,), (9, 3, 3)]
        self.parameters = [
            nn.Parameter(torch.randn(shape, device=CUDA, generator=generator).to(dtype)) for shape in shapes
        ]
        named = [(f"p{i}", parameter) for i, parameter in enumerate(self.parameters)]
        mask = aimfair.ParameterMask.random(dict(named), 0.4, seed=1)
        self.x, self.lr, self.scale = (torch.ones((), device=CUDA) for _ in range(3))
        self.lr.fill_(0.01)
        self.optimizer = masked(named, mask, lr=self.lr, **options)
        self.optimizer.grad_scale, self.optimizer.found_inf = self.scale, torch.zeros((), device=CUDA)

    def set(self, number: int) -> None:
        """Before a step: another input, learning rate and loss scale; the third step overflows."""
        self.x.fill_(1.0 + number / 8)
        self.lr.fill_(0.01 / (1 + number))
        self.scale.fill_(2.0**number)
        self.optimizer.found_inf.fill_(float(number == 2))

    def step(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        loss = sum((parameter.float() * self.x).sin().sum() for parameter in self.parameters)
        (loss * self.scale).backward()
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        states = [entry[name] for entry in self.optimizer.state.values() for name in sorted(entry)]
        return [parameter.detach() for parameter in self.parameters] + states


@pytest.mark.parametrize(("masked", "dtype", "options"), [
    (aimfair.MaskedAdamW, torch.float32, {"state": "dense"}),
    (aimfair.MaskedAdamW, torch.float32, {"state": "compact", "amsgrad": True}),
    (aimfair.MaskedAdamW, torch.bfloat16, {"state": "compact", "master_weights": True}),
    (aimfair.MaskedAdamW, torch.bfloat16, {"stochastic_rounding": True, "seed": 3}),
    (aimfair.MaskedSGD, torch.float32, {"state": "compact", "momentum": 0.9}),
], ids=lambda value: getattr(value, "__name__", str(value)))  # fmt: skip
def test_a_whole_training_step(masked, dtype, options):
    eager, replayed = (Training(masked, dtype, **options) for _ in range(2))
    warm_up = torch.cuda.Stream()
    for training in (eager, replayed):  # makes the state; on a stream of its own, as torch asks for
        training.set(0)
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            for _ in range(3):
                training.step()
        torch.cuda.current_stream().wait_stream(warm_up)
    graph = captured(replayed.step)
    cases.assert_same(replayed.tensors(), eager.tensors())  # capturing does nothing
    for number in range(1, 6):
        before = cases.clone(eager.tensors())
        for training in (eager, replayed):
            training.set(number)
        eager.step()
        graph.replay()
        cases.assert_same(replayed.tensors(), eager.tensors())
        moved = any(not torch.equal(x, y) for x, y in zip(before, eager.tensors(), strict=True))
        assert moved == (number != 2)


def test_an_eager_step_after_replays_goes_on_from_there():
    eager, replayed = (Training(aimfair.MaskedAdamW, torch.float32) for _ in range(2))
    for training in (eager, replayed):
        training.step()
    graph = captured(replayed.step)
    graph.replay()
    eager.step()
    for training in (eager, replayed):
        training.set(1)
        training.step()
    graph.replay()
    eager.step()
    cases.assert_same(replayed.tensors(), eager.tensors())
