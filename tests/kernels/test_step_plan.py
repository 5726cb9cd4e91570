"""Steps in two parts: a plan of the lists, made once, and the steps that use it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from aimfair._C import PlanMemory
from aimfair.selective import ops, reference

from . import cases
from .cases import MIXED, Inputs

LISTS = {
    "params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "momentum_buffers", "masters", "steps",
    "bits", "rank", "first_blocks", "compact", "stochastic_rounding",
}  # fmt: skip
"""Arguments that belong to the plan; the others come with every step."""


def split(inputs: Inputs) -> tuple[Inputs, Inputs]:
    lists = {name: value for name, value in inputs.items() if name in LISTS}
    return lists, {name: value for name, value in inputs.items() if name not in LISTS}


class Case(NamedTuple):
    plan: Callable[..., ops.StepPlan]
    planned: Callable[..., None]
    specification: Callable[..., None]
    build: Callable[..., Inputs]
    options: dict[str, Any]

    def inputs(self, *arguments: Any, **options: Any) -> Inputs:
        return self.build(*arguments, **self.options, **options)


def adamw(**options: Any) -> Case:
    return Case(ops.plan_adamw, ops.planned_adamw_, reference.masked_adamw_, cases.adamw_inputs, options)


def sgd(**options: Any) -> Case:
    return Case(ops.plan_sgd, ops.planned_sgd_, reference.masked_sgd_, cases.sgd_inputs, options)


CASES = {
    "adamw": adamw(),
    "amsgrad": adamw(amsgrad=True, masters=True, maximize=True),
    "adamw_stochastic": adamw(stochastic_rounding=True, seed=7),
    "sgd": sgd(momentum=0.0),
    "momentum": sgd(masters=True, nesterov=True),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_steps_with_one_plan(dtype, compact, case, device):
    """What lies in memory may change between steps: gradients, the learning rate, the loss scale."""
    inputs = case.inputs(MIXED, dtype, device, cases.random_bools(MIXED, 0.3, device), compact=compact)
    inputs |= {"grad_scale": torch.ones((), device=device), "found_inf": torch.zeros((), device=device)}
    lists, settings = split(inputs)
    plan = case.plan(**lists)
    for step in range(3):
        for grad in inputs["grads"]:
            grad.copy_(torch.randn_like(grad))
        inputs["lr"].mul_(0.5)
        inputs["grad_scale"].fill_(1024.0 if step == 1 else 3.0)
        inputs["found_inf"].fill_(float(step == 1))
        expected = cases.clone(inputs, "cpu")
        case.specification(**expected)
        case.planned(plan, **settings)
        cases.assert_same(inputs, expected)


@every_case
def test_without_mask(case, device):
    inputs = case.inputs([(33,), (0,), (4, 500)], torch.bfloat16, device)
    expected = cases.clone(inputs, "cpu")
    case.specification(**expected)
    lists, settings = split(inputs)
    case.planned(case.plan(**lists), **settings)
    cases.assert_same(inputs, expected)


@every_case
@pytest.mark.parametrize("other", [-1, 2])
def test_plan_of_other_lists_is_refused(other, case, device):
    inputs = case.inputs([(33,), (4, 5)], torch.bfloat16, device)
    lists, settings = split(inputs)
    plan = case.plan(**lists)
    before = cases.clone(inputs)
    with pytest.raises(RuntimeError, match=r"aimfair::planned_\w+_: plan has \d+ elements, expected \d+"):
        case.planned(replace(plan, tensors=plan.tensors + other), **settings)
    with pytest.raises(RuntimeError, match="plan is float32, expected uint8"):
        case.planned(replace(plan, memory=plan.memory.float()), **settings)
    cases.assert_same(inputs, before)


def test_plan_of_another_optimizer_is_refused(device):
    plans = {}
    for name, case in CASES.items():
        lists, settings = split(case.inputs([(33,)], torch.bfloat16, device))
        plans[name] = case.plan(**lists), case.planned, settings
    for own, other, message in [
        ("momentum", "sgd", "planned_sgd_: plan was made with no state, expected momentum_buffers"),
        ("sgd", "momentum", "planned_sgd_: plan was made with momentum_buffers, expected no state"),
        ("adamw", "momentum", "planned_adamw_: plan was made with momentum_buffers, expected exp_avgs, exp_avg_sqs"),
        ("momentum", "amsgrad", "planned_sgd_: plan was made with exp_avgs, exp_avg_sqs, max_exp_avg_sqs, expected"),
    ]:
        _, planned, settings = plans[own]
        with pytest.raises(RuntimeError, match=message):
            planned(plans[other][0], **settings)


@every_case
def test_settings_are_checked_at_every_step(case, device):
    inputs = case.inputs([(33,)], torch.bfloat16, device)
    lists, settings = split(inputs)
    plan = case.plan(**lists)
    before = cases.clone(inputs)
    for change, message in [
        ({"weight_decay": -1.0}, "weight_decay is negative or NaN"),
        ({"lr": torch.zeros(2, device=device)}, "lr has 2 elements, expected 1"),
        ({"grad_scale": torch.zeros(1, device=device).double()}, "grad_scale is float64, expected float32"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            case.planned(plan, **settings | change)
    cases.assert_same(inputs, before)


@every_case
def test_lists_are_checked_when_the_plan_is_made(case, device):
    lists, _ = split(case.inputs([(33,), (4, 5)], torch.bfloat16, device))
    with pytest.raises(RuntimeError, match=r"aimfair::plan_\w+: grads\[1\] has 3 elements, expected 20"):
        case.plan(**lists | {"grads": [lists["grads"][0], lists["grads"][1][0, :3]]})


@every_case
def test_opcheck(case, device):
    inputs = case.inputs([(33,)], torch.bfloat16, device, cases.random_bools([(33,)], 0.5, device))
    lists, settings = split(inputs)
    plan = case.plan(**lists)
    operator = getattr(torch.ops.aimfair, case.planned.__name__).default
    known = vars(plan) | settings | {"plan": plan.memory, "amsgrad": plan.states == ops.ADAMW_STATES}
    defaults = {"dampening": 0.0, "nesterov": False, "maximize": False, "seed": 0}
    arguments = [known.get(a.name, defaults.get(a.name)) for a in operator._schema.arguments]
    torch.library.opcheck(operator, tuple(arguments), test_utils=("test_schema", "test_autograd_registration"))


# -- other gradients ---------------------------------------------------------------------------------------------------


def addresses(tensors: list[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


@every_case
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
def test_a_plan_with_other_gradients(compact, case, device):
    inputs = case.inputs(MIXED, torch.bfloat16, device, cases.random_bools(MIXED, 0.3, device), compact=compact)
    lists, settings = split(inputs)
    plan = case.plan(**lists)
    for _ in range(2):
        inputs["grads"] = [torch.randn_like(grad) for grad in inputs["grads"]]
        expected = cases.clone(inputs, "cpu")
        case.specification(**expected)
        ops.set_grads_(plan, addresses(inputs["grads"]))
        case.planned(plan, **settings)
        cases.assert_same(inputs, expected)


def test_other_gradients_are_one_for_each_tensor(device):
    case = CASES["adamw"]
    plan = case.plan(**split(case.inputs([(33,), (4, 5)], torch.bfloat16, device))[0])
    with pytest.raises(RuntimeError, match=r"aimfair::set_grads_: addresses has 1 entries, expected 2"):
        ops.set_grads_(plan, [0])
    with pytest.raises(RuntimeError, match=r"aimfair::set_grads_: plan has \d+ elements, expected \d+"):
        ops.set_grads_(replace(plan, tensors=3), [0, 0, 0])


def held(device: torch.device) -> tuple[list[list[Tensor]], list[Tensor]]:
    params = [nn.Parameter(torch.zeros(4, 3, device=device)), nn.Parameter(torch.zeros(0, device=device))]
    state = [torch.zeros(4, 3, device=device), torch.zeros(0, device=device)]
    return [params, state, []], [torch.ones(4, 3, device=device), torch.ones(0, device=device)]


def test_gradients_that_have_moved_are_found(device):
    lists, grads = held(device)
    memory = PlanMemory(lists, grads)
    assert memory.moved_grads(grads) == []
    moved = [grads[0].clone(), grads[1]]
    assert memory.moved_grads(moved) == addresses(moved)
    assert memory.moved_grads(moved) == []
    assert memory.holds([list(entries) for entries in lists])
    assert memory.moved_grads([moved[0].view(3, 4), moved[1]]) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda lists, grads: lists[0].pop(),
        lambda lists, grads: lists[0].append(grads[0]),
        lambda lists, grads: lists[1].__setitem__(0, lists[1][0].clone()),
        lambda lists, grads: setattr(lists[0][0], "data", lists[0][0].data.clone()),
        lambda lists, grads: lists[1][0].resize_(2, 3),
        lambda lists, grads: lists[1].__setitem__(0, None),
        lambda lists, grads: lists[2].append(lists[1][0]),
        lambda lists, grads: grads.pop(),
        lambda lists, grads: grads.append(grads[0]),
        lambda lists, grads: grads.__setitem__(0, grads[0].double()),
        lambda lists, grads: grads.__setitem__(0, grads[0].half().view(torch.int16)),
        lambda lists, grads: grads.__setitem__(0, grads[0][:2]),
        lambda lists, grads: grads.__setitem__(0, grads[0].t()),
        lambda lists, grads: grads.__setitem__(0, grads[0].to_sparse()),
        lambda lists, grads: grads.__setitem__(0, lists[1][0]),
        lambda lists, grads: grads.__setitem__(0, None),
        lambda lists, grads: grads.__setitem__(0, [1.0]),
        lambda lists, grads: lists.append([]) or lists.append([grads[1]]),
    ],
)
def test_everything_else_needs_another_plan(change, device):
    lists, grads = held(device)
    memory = PlanMemory(lists, grads)
    assert memory.holds(lists)
    change(lists, grads)
    assert not memory.holds(lists) or memory.moved_grads(grads) is None


def test_gradients_that_overlap_what_is_written_need_another_plan(device):
    """Those after it, before it, and at its end."""
    memory = torch.zeros(40, device=device)
    lists, grads = [[memory[10:20]], [memory[30:40]]], [torch.ones(10, device=device)]
    for first, overlaps in [(0, False), (1, True), (9, True), (10, True), (19, True), (20, False), (21, True)]:
        held = PlanMemory(lists, grads)
        for _ in range(2):  # a refusal changes nothing
            assert (held.moved_grads([memory[first : first + 10]]) is None) == overlaps, first


def test_gradients_that_overlap_need_another_plan_if_they_are_written(device):
    memory, grads = torch.zeros(40, device=device), [torch.ones(10, device=device) for _ in range(2)]
    for first, overlaps in [(10, False), (9, True), (0, True), (30, False)]:
        moved = [memory[:10], memory[first : first + 10]]
        written = PlanMemory([], grads, writes_grads=True)
        for _ in range(2):
            assert (written.moved_grads(moved) is None) == overlaps, first
        assert PlanMemory([], grads).moved_grads(moved) == addresses(moved)


def test_a_plan_is_made_of_tensors(device):
    with pytest.raises(TypeError, match="a plan is made of lists of strided tensors"):
        PlanMemory([[1]], [])
    with pytest.raises(TypeError, match="a plan is made of lists of strided tensors"):
        PlanMemory([], [torch.ones(3, device=device).to_sparse()])
