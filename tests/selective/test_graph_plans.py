"""The plans of captured CUDA graphs. Nothing is captured on a CPU: what would be recorded is executed, and the calls
are those of tests/cuda/test_graphs.py."""

import copy

import pytest
import torch
from torch import Tensor, nn

import aimfair
from aimfair.selective import launch, ops, plans, statistics

from .models import Toy, random_gradients, same_bits, set_gradients, toy, weights


@pytest.fixture
def model(device) -> Toy:
    return toy(device)


class Graph:
    """Records the plans of the operators that are called in a capture."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.capturing, self.calls, self.plans = False, [], []
        for module in (launch, plans, statistics):
            monkeypatch.setattr(module, "is_capturing", lambda _: self.capturing)
        for name in ("planned_accumulate_", "accumulate_", "set_grads_"):
            monkeypatch.setattr(ops, name, self.recorded(name, getattr(ops, name)))
        operator = aimfair.MaskedAdamW.operator
        recorded = {name: self.recorded(name, getattr(operator, name)) for name in ("masked", "plan", "planned")}
        monkeypatch.setattr(aimfair.MaskedAdamW, "operator", launch.Operator(**recorded))

    def recorded(self, name, operator):
        def call(*arguments, **options):
            if self.capturing:
                self.calls.append(name)
                self.plans.extend(a for a in arguments if isinstance(a, ops.Plan))
            return operator(*arguments, **options)

        return call

    def __enter__(self):
        self.capturing = True
        self.calls.clear()

    def __exit__(self, *_):
        self.capturing = False


@pytest.fixture
def graph(monkeypatch) -> Graph:
    return Graph(monkeypatch)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, gradients: dict[str, Tensor]) -> None:
    set_gradients(model, gradients)
    optimizer.step()


def test_a_graph_takes_over_the_plan_of_the_last_step(model, graph):
    twin = copy.deepcopy(model)
    optimizer, expected = (aimfair.MaskedAdamW(m.named_parameters(), lr=0.1) for m in (model, twin))
    batches = [random_gradients(model) for _ in range(5)]
    for number, gradients in enumerate(batches):
        if number in (2, 3):
            with graph:
                step(optimizer, model, gradients)
            assert graph.calls == ["set_grads_", "planned"]
        else:
            step(optimizer, model, gradients)
        step(expected, twin, gradients)
    assert all(same_bits(found, weights(twin)[name]) for name, found in weights(model).items())
    assert len({id(plan) for plan in graph.plans}) == 1  # of both captures


def test_steps_outside_of_a_graph_leave_its_plan_as_it_is(model, graph):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    step(optimizer, model, random_gradients(model))
    with graph:
        step(optimizer, model, random_gradients(model))
    of_graph = graph.plans[0].memory.clone()
    for _ in range(2):
        step(optimizer, model, random_gradients(model))
    optimizer.state[model.scale] = {name: state.clone() for name, state in optimizer.state[model.scale].items()}
    step(optimizer, model, random_gradients(model))
    assert torch.equal(graph.plans[0].memory, of_graph)
    assert optimizer._launches.of_graphs == [graph.plans[0]]  # kept for as long as the graph may be replayed


def test_state_replaced_before_a_second_capture(model, graph):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    for _ in range(2):
        step(optimizer, model, random_gradients(model))
        with graph:
            step(optimizer, model, random_gradients(model))
        assert graph.calls == ["set_grads_", "planned"]
        optimizer.state[model.scale]["exp_avg"] = optimizer.state[model.scale]["exp_avg"].clone()
    assert optimizer._launches.of_graphs == [graph.plans[0], graph.plans[-1]]
    assert graph.plans[0] is not graph.plans[-1]


def test_a_graph_without_a_step_before_it_copies_the_lists(model, graph):
    optimizer = aimfair.MaskedAdamW(model.named_parameters(), lr=0.1)
    with graph:
        step(optimizer, model, random_gradients(model))
    assert graph.calls == ["masked"]
    assert optimizer._launches.of_graphs == []


@pytest.mark.parametrize("warm", [True, False])
def test_statistics(warm, model, graph):
    probe = aimfair.Sensitivity(model, ("a", "b"))
    for number in range(3):
        set_gradients(model, random_gradients(model))
        if number == 1:
            with graph:
                probe.update("a")
            assert graph.calls == (["set_grads_", "planned_accumulate_"] if warm else ["accumulate_"])
        elif warm:
            probe.update("a")
    assert probe._statistics._of_graphs == graph.plans[:1]
