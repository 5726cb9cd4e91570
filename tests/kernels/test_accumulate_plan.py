"""accumulate in two parts: a plan of the lists, made once, and the batches that use it."""

from dataclasses import replace

import pytest
import torch

from aimfair.selective import ops

from . import cases
from .cases import MIXED, Inputs

LISTS = {"grads", "sums", "squares", "second_sums", "zero_grads"}


def split(inputs: Inputs) -> tuple[Inputs, Inputs]:
    lists = {name: value for name, value in inputs.items() if name in LISTS}
    return lists, {name: value for name, value in inputs.items() if name not in LISTS}


def inputs_of(shapes: list[cases.Shape], device: torch.device, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    scale = torch.full((), 4.0, device=device)
    return cases.accumulate_inputs(shapes, dtype, device, grad_scale=scale, weight=0.5)


@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("shapes", [MIXED, [(0,)], [(9000,), (4096,), (4097,), (0,)]], ids=["mixed", "empty", "chunks"])
def test_batches_with_one_plan(shapes, zero_grads, device):
    """What lies in memory may change between batches, and so may the gradients' place."""
    inputs = inputs_of(shapes, device) | {"zero_grads": zero_grads}
    lists, settings = split(inputs)
    plan = ops.plan_accumulate(**lists)
    for batch in range(3):
        if batch == 2:
            inputs["grads"] = [torch.empty_like(grad) for grad in inputs["grads"]]
            ops.set_grads_(plan, [grad.data_ptr() for grad in inputs["grads"]])
        for grad in inputs["grads"]:
            grad.copy_(torch.randn_like(grad))
        inputs["grad_scale"].fill_(2.0**batch)
        expected = cases.clone(inputs)
        ops.accumulate_(**expected)
        ops.planned_accumulate_(plan, **settings)
        cases.assert_same(inputs, expected)


def test_plan_of_other_lists_is_refused(device):
    lists, settings = split(inputs := inputs_of([(33,), (4, 5)], device))
    plan = ops.plan_accumulate(**lists)
    before = cases.clone(inputs)
    for other in (-1, 2):
        with pytest.raises(RuntimeError, match=r"aimfair::planned_accumulate_: plan has \d+ elements, expected \d+"):
            ops.planned_accumulate_(replace(plan, tensors=plan.tensors + other), **settings)
        with pytest.raises(RuntimeError, match=r"aimfair::set_grads_: plan has \d+ elements, expected \d+"):
            ops.set_grads_(replace(plan, tensors=plan.tensors + other), [0] * (plan.tensors + other))
    with pytest.raises(RuntimeError, match="plan is float32, expected uint8"):
        ops.planned_accumulate_(replace(plan, memory=plan.memory.float()), **settings)
    with pytest.raises(RuntimeError, match=r"aimfair::set_grads_: addresses has 1 entries, expected 2"):
        ops.set_grads_(plan, [0])
    cases.assert_same(inputs, before)


def test_settings_are_checked_at_every_batch(device):
    lists, settings = split(inputs := inputs_of([(33,)], device))
    plan = ops.plan_accumulate(**lists)
    before = cases.clone(inputs)
    for change, message in [
        ({"square_norms": torch.zeros(2, dtype=torch.float64, device=device)}, "square_norms has 2 elements"),
        ({"nonfinite": torch.zeros(1, device=device)}, "nonfinite is float32, expected int64"),
        ({"grad_scale": torch.zeros(2, device=device)}, "grad_scale has 2 elements, expected 1"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            ops.planned_accumulate_(plan, **settings | change)
    cases.assert_same(inputs, before)


def test_lists_are_checked_when_the_plan_is_made(device):
    lists, _ = split(inputs_of([(33,), (4, 5)], device))
    with pytest.raises(RuntimeError, match=r"aimfair::plan_accumulate: sums\[1\] has 3 elements, expected 20"):
        ops.plan_accumulate(**lists | {"sums": [lists["sums"][0], lists["sums"][1][:3]]})


def test_gradients_that_share_memory_are_refused_if_they_are_zeroed(device):
    lists, _ = split(inputs_of([(20,), (20,)], device))
    lists["grads"][1] = lists["grads"][0]
    assert ops.plan_accumulate(**lists).tensors == 2
    with pytest.raises(RuntimeError, match=r"grads\[\d\] overlaps the memory of grads\[\d\]"):
        ops.plan_accumulate(**lists, zero_grads=True)


def test_opcheck(device):
    lists, settings = split(inputs_of([(33,)], device))
    plan = ops.plan_accumulate(**lists)
    scale, weights = settings["grad_scale"], (settings["weight"], 0.0)
    norms = settings["square_norms"], settings["nonfinite"]
    shape = plan.memory, plan.tensors, plan.blocks
    for operator, arguments in [
        (torch.ops.aimfair.planned_accumulate_, (*shape, *norms, *weights, scale, False)),
        (torch.ops.aimfair.set_accumulate_grads_, (*shape, [grad.data_ptr() for grad in lists["grads"]])),
    ]:
        utils = ("test_schema", "test_autograd_registration")
        torch.library.opcheck(operator.default, arguments, test_utils=utils)
