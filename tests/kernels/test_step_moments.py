"""Moments in 16 and 8 bits: bits of the reference, what the formats promise, and what must never change."""

import math
from typing import Any

import pytest
import torch

from aimfair.selective import moments, ops

from . import cases
from .cases import DENSITIES, DTYPES, MIXED, OFFSETS, SHAPES
from .test_step import ADAMW, SGD, Optimizer, check

both = pytest.mark.parametrize("optimizer", [ADAMW, SGD], ids=["adamw", "sgd"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
layouts = pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
sizes = pytest.mark.parametrize("moment_bits", [16, 8], ids=["16bit", "8bit"])

# -- bit for bit the reference ----------------------------------------------------------------------------------------


@both
@layouts
@sizes
@dtypes
@pytest.mark.parametrize("density", [*DENSITIES.values(), None], ids=[*DENSITIES, "no_mask"])
def test_densities(density, dtype, moment_bits, compact, optimizer, device):
    bools = None if density is None else cases.random_bools(MIXED, density, device)
    check(optimizer, optimizer.inputs(MIXED, dtype, device, bools, compact=compact, moment_bits=moment_bits, seed=-3))


@both
@layouts
@sizes
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(shapes, moment_bits, compact, optimizer, device):
    bools = cases.row_bools(shapes, 33, device)
    inputs = optimizer.inputs(shapes, torch.float32, device, bools, compact=compact, moment_bits=moment_bits)
    check(optimizer, inputs, calls=1)


OPTIONS: dict[str, tuple[Optimizer, dict[str, Any]]] = {
    "adamw_masters": (ADAMW, {"masters": True, "maximize": True}),
    "adamw_zero_betas": (ADAMW, {"beta1": 0.0, "beta2": 0.0}),
    "sgd_nesterov_masters": (SGD, {"nesterov": True, "masters": True}),
    "sgd_dampening": (SGD, {"dampening": 0.25, "weight_decay": 0.0}),
    "sgd_plain": (SGD, {"momentum": 0.0}),
}


@layouts
@sizes
@dtypes
@pytest.mark.parametrize("special", [False, True], ids=["", "special_values"])
@pytest.mark.parametrize("case", OPTIONS)
def test_options(case, special, dtype, moment_bits, compact, device):
    optimizer, options = OPTIONS[case]
    bools = cases.random_bools(MIXED, 0.3, device)
    inputs = optimizer.inputs(MIXED, dtype, device, bools, compact=compact, moment_bits=moment_bits, **options)
    for name in ("params", "grads", "masters", *optimizer.states) if special else ():
        for tensor in inputs.get(name, []):
            if tensor.is_floating_point():
                cases.with_special(tensor, share=0.05)
    check(optimizer, inputs, calls=3)


@layouts
def test_amsgrad_in_16_bits(compact, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    inputs = cases.adamw_inputs(MIXED, torch.float32, device, bools, compact=compact, amsgrad=True, moment_bits=16)
    check(ADAMW, inputs, calls=3)


@layouts
@sizes
def test_parameters_are_rounded_at_random_too(moment_bits, compact, device):
    bools = cases.random_bools(MIXED, 0.3, device)
    options = {"stochastic_rounding": True, "seed": 5, "moment_bits": moment_bits}
    check(ADAMW, cases.adamw_inputs(MIXED, torch.bfloat16, device, bools, compact=compact, **options))


@both
@layouts
@sizes
@pytest.mark.parametrize("offset", OFFSETS[1:])
def test_misaligned_storage(offset, moment_bits, compact, optimizer, device):
    for density in (0.3, 1.0):
        bools = cases.random_bools(MIXED, density, device)
        options = {"compact": compact, "offset": offset, "moment_bits": moment_bits}
        check(optimizer, optimizer.inputs(MIXED, torch.float32, device, bools, **options))


# -- what must not change ---------------------------------------------------------------------------------------------


@both
@layouts
@sizes
def test_zero_mask_changes_no_bit(moment_bits, compact, optimizer, device):
    bools = cases.random_bools(MIXED, 0.0, device)
    inputs = optimizer.inputs(MIXED, torch.float32, device, bools, compact=compact, moment_bits=moment_bits)
    expected = cases.clone(inputs)
    for step in expected["steps"]:
        step += 1
    optimizer.kernel(**inputs)
    cases.assert_same(inputs, expected)


@both
@sizes
def test_dense_and_compact_give_the_same_weights(moment_bits, optimizer, device):
    """The block of an element, and so its rounding, does not depend on the form of the state."""
    bools = cases.random_bools(MIXED, 0.2, device)
    dense, compact = (
        optimizer.inputs(MIXED, torch.float32, device, bools, compact=compact, moment_bits=moment_bits)
        for compact in (False, True)
    )
    for name in optimizer.states:
        for state in [*dense.get(name, []), *compact.get(name, [])]:
            state.zero_()
    for name in ("params", "grads"):
        compact[name] = cases.clone(dense[name])
    for _ in range(4):
        optimizer.kernel(**dense)
        optimizer.kernel(**compact)
    cases.assert_same(compact["params"], dense["params"])


@both
@sizes
def test_plan(moment_bits, optimizer, device):
    """A stored plan knows the type of its moments."""
    bools = cases.random_bools(MIXED, 0.3, device)
    inputs = optimizer.inputs(MIXED, torch.bfloat16, device, bools, compact=True, moment_bits=moment_bits)
    planned = cases.clone(inputs)
    make, step = (ops.plan_adamw, ops.planned_adamw_) if optimizer is ADAMW else (ops.plan_sgd, ops.planned_sgd_)
    lists = ("params", "grads", "steps", "bits", "rank", "first_blocks", "compact", *optimizer.states)
    plan = make(**{name: planned[name] for name in lists if name in planned})
    settings = {name: value for name, value in planned.items() if name not in lists}
    for _ in range(2):
        optimizer.kernel(**inputs)
        step(plan, **settings)
    cases.assert_same(planned, inputs)


# -- what the formats promise -----------------------------------------------------------------------------------------


def stepped(state: torch.Tensor, grad: torch.Tensor, beta2: float, calls: int, *, seed: int = 0) -> torch.Tensor:
    """exp_avg_sq after some steps, in float32."""
    numel, device = grad.numel(), grad.device
    other = torch.zeros(len(state), dtype=state.dtype, device=device)
    step = torch.zeros(1, device=device)
    for _ in range(calls):
        ops.masked_adamw_(
            [torch.zeros(numel, device=device)], [grad], [other], [state], [step],
            lr=torch.tensor(0.0, device=device), beta1=0.9, beta2=beta2, eps=1e-8, weight_decay=0.0, seed=seed,
        )  # fmt: skip
    elements = torch.arange(numel, device=device)
    return moments.read(state, numel, elements, elements, root=True)


@sizes
def test_small_changes_are_not_lost(moment_bits, device):
    """A mean that falls by 0.1% a step, far below the distance of two codes, falls as fast as in float32."""
    numel, dtype = 4096, moments.DTYPES[moment_bits]
    state = torch.zeros(moments.length(dtype, numel, numel), dtype=dtype, device=device)
    elements = torch.arange(numel, device=device)
    moments.write(state, numel, elements, elements, torch.ones(numel, device=device), moments.NEAREST, root=True)
    found = stepped(state, torch.zeros(numel, device=device), beta2=0.999, calls=200)
    assert found.mean().item() == pytest.approx(0.999**200, rel=0.02)


@pytest.mark.parametrize("root", [False, True])
def test_8_bits_keep_16_powers_of_two(root, device):
    """Relative error of rounding to the nearest code: 1/16 with 3 bits of mantissa, 1/32 of the root with 4."""
    numel = 1024
    values = torch.logspace(0, -4.5, numel, device=device) * 7.7
    if root:
        values = values * values
    elements = torch.arange(numel, device=device)
    state = torch.zeros(moments.length(torch.uint8, numel, numel), dtype=torch.uint8, device=device)
    moments.write(state, numel, elements, elements, values, moments.NEAREST, root=root)
    found = moments.read(state, numel, elements, elements, root=root)
    error = ((found / values).sqrt() if root else found / values) - 1
    assert error.abs().max().item() <= (1 / 32 if root else 1 / 16) + 1e-6
    assert len(state) == numel + 2


def test_a_root_stays_above_zero(device):
    """Beside an element 2^40 times larger, a second moment becomes the smallest code, and the step stays bounded."""
    grad = torch.full((1024,), 1e-9, device=device)
    grad[0] = 1e3
    state = torch.zeros(1026, dtype=torch.uint8, device=device)
    found = stepped(state, grad, beta2=0.99, calls=1)
    assert found.min().item() > 0.01 * (1e-9) ** 2
    assert math.sqrt(found[0].item()) == pytest.approx(math.sqrt(0.01) * 1e3, rel=1 / 16)


# -- what is refused --------------------------------------------------------------------------------------------------


REFUSED = {
    "mixed": ("exp_avg_sqs", lambda state: state.float(), r"exp_avg_sqs\[0\] is float32, expected uint8"),
    "size": ("exp_avgs", lambda state: state[2:], r"exp_avgs\[0\] has 1302 elements, expected 1304"),
    "amsgrad": ("max_exp_avg_sqs", lambda state: state.clone(), "max_exp_avg_sqs cannot be kept in 8 bits"),
}


@pytest.mark.parametrize(("name", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(name, change, message, device):
    inputs = cases.adamw_inputs([(1300,)], torch.float32, device, moment_bits=8)
    inputs[name] = [change(state) for state in inputs.get(name, inputs["exp_avgs"])]
    with pytest.raises(RuntimeError, match=message):
        ops.masked_adamw_(**inputs)


def test_misaligned_bases_are_refused(device):
    inputs = cases.adamw_inputs([(1300,)], torch.float32, device, moment_bits=8)
    inputs["exp_avgs"] = [torch.zeros(1305, dtype=torch.uint8, device=device)[1:]]
    with pytest.raises(RuntimeError, match=r"exp_avgs\[0\] is not aligned to two bytes"):
        ops.masked_adamw_(**inputs)
