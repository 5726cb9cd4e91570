"""torch.library.opcheck on every operator, and one signature for operators and reference."""

import inspect
from typing import Any

import pytest
import torch

from aimfair.selective import ops, reference

from . import cases, valid_calls
from .valid_calls import positional

OPERATORS = sorted(
    name
    for name, function in vars(ops).items()
    if inspect.isfunction(function) and name.endswith("_") and not name.startswith(("_", "planned_", "set_grads_"))
)
"""Those on lists; test_step_plan.py has the others."""


BUILDERS = {
    "accumulate": valid_calls.accumulate,
    "select": valid_calls.select,
    "select_segments": valid_calls.select_segments,
    "count_keys": valid_calls.count_keys,
    "count_equal": valid_calls.count_equal,
    "select_above": valid_calls.select_above,
    "unit_scores": valid_calls.unit_scores,
    "expand_units": valid_calls.expand_units,
    "pack_bits": valid_calls.pack_bits,
    "unpack_bits": valid_calls.unpack_bits,
    "rank": valid_calls.mask,
    "masked_adamw": valid_calls.adamw,
    "masked_sgd": valid_calls.compact_sgd,
}


def test_every_operator_has_a_case():
    assert [f"{name}_" for name in sorted(BUILDERS)] == OPERATORS


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name, device):
    torch.library.opcheck(getattr(torch.ops.aimfair, name).default, positional(name, BUILDERS[name[:-1]](device)))


@pytest.mark.parametrize("name", ["masked_adamw_", "masked_sgd_"])
def test_opcheck_without_mask(name, device):
    inputs = {
        "masked_adamw_": cases.adamw_inputs([(33,), (4, 5)], torch.float32, device),
        "masked_sgd_": cases.sgd_inputs([(33,), (4, 5)], torch.float32, device, momentum=0.0),
    }[name]
    torch.library.opcheck(getattr(torch.ops.aimfair, name).default, positional(name, inputs))


@pytest.mark.parametrize("name", OPERATORS)
def test_reference_has_the_same_signature(name):
    def parameters(function: Any) -> list[tuple[str, Any, Any]]:
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]

    assert parameters(getattr(reference, name)) == parameters(getattr(ops, name))


def test_compiles_into_one_graph(device):
    """A compiled function that calls an operator has no graph break and sees the writes."""

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(params: list[torch.Tensor], grads: list[torch.Tensor], steps: list[torch.Tensor], lr: torch.Tensor):
        ops.masked_sgd_(params, [grad * 2 for grad in grads], [], steps, lr=lr, momentum=0.0, weight_decay=0.0)
        return [param + 1 for param in params]

    params, grads = [torch.randn(50, device=device)], [torch.randn(50, device=device)]
    expected = params[0] - grads[0]
    outputs = step(params, grads, [torch.zeros(1, device=device)], torch.tensor(0.5, device=device))
    cases.assert_same(params[0], expected)
    cases.assert_same(outputs[0], expected + 1)
