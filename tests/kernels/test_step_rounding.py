"""Stochastic rounding of bfloat16 parameters: the generator of the specification, unbiased, keyed by the element."""

import math

import pytest
import torch

from aimfair.selective import layout, ops, reference

from . import cases
from .cases import DENSITIES, MIXED

U64 = (1 << 64) - 1
U32 = (1 << 32) - 1

STEPS = {
    "adamw": (ops.masked_adamw_, reference.masked_adamw_, cases.adamw_inputs),
    "sgd": (ops.masked_sgd_, reference.masked_sgd_, cases.sgd_inputs),
}
both = pytest.mark.parametrize("optimizer", STEPS)


def splitmix64(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & U64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & U64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & U64
    return z ^ (z >> 31)


def lowbias32(x: int) -> int:
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & U32
    x = ((x ^ (x >> 15)) * 0x846CA68B) & U32
    return x ^ (x >> 16)


def rounded(bits: int, seed: int, step: int, block: int, element: int) -> int:
    """bfloat16 bits of a finite fp32 number, from the specification in plain integers."""
    key = splitmix64(splitmix64((seed + 0x9E3779B97F4A7C15 * step) & U64) ^ block)
    r = lowbias32((element % 1024 + (key & U32)) & U32) ^ (key >> 32)
    return (bits + (r >> 16)) >> 16


def sgd_from_ones(numel: int, device: torch.device, lr: float, **options) -> torch.Tensor:
    """A bfloat16 tensor of ones after one plain SGD step with a gradient of -1: 1 + lr, rounded."""
    param = torch.ones(numel, dtype=torch.bfloat16, device=device)
    ops.masked_sgd_(
        [param], [-torch.ones_like(param)], [], [torch.zeros(1, device=device)],
        lr=torch.tensor(lr, device=device), momentum=0.0, weight_decay=0.0, stochastic_rounding=True, **options,
    )  # fmt: skip
    return param


@pytest.mark.parametrize(("seed", "step", "first_block"), [
    (0, 1, 0), (1, 1, 0), (-1, 2, 5), (2**63 - 1, 1000, 2**22), (-(2**63), 7, 1), (123456789, 2**24, 3)
])  # fmt: skip
def test_generator_of_the_specification(seed, step, first_block, device):
    param = torch.randn(2500, device=device).bfloat16()
    grad = torch.randn(2500, device=device).bfloat16()
    exact = param.float() - torch.tensor(0.01, device=device) * grad.float()
    ops.masked_sgd_(
        [param], [grad], [], [torch.full((1,), step - 1.0, device=device)], lr=torch.tensor(0.01, device=device),
        momentum=0.0, weight_decay=0.0, first_blocks=[first_block], stochastic_rounding=True, seed=seed,
    )  # fmt: skip
    words = (exact.view(torch.int32).long() & U32).tolist()
    expected = [rounded(word, seed, step, first_block + i // 1024, i) for i, word in enumerate(words)]
    assert (param.view(torch.int16).long() & 0xFFFF).tolist() == expected


@both
@pytest.mark.parametrize("compact", [False, True], ids=["dense", "compact"])
@pytest.mark.parametrize("density", [*DENSITIES.values(), None], ids=[*DENSITIES, "no_mask"])
def test_equals_reference(density, compact, optimizer, device):
    kernel, specification, inputs = STEPS[optimizer]
    bools = None if density is None else cases.random_bools(MIXED, density, device)
    arguments = inputs(MIXED, torch.bfloat16, device, bools, compact=compact, stochastic_rounding=True, seed=-42)
    cases.assert_matches_reference(kernel, specification, arguments, calls=3)


@both
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned_storage(offset, optimizer, device):
    kernel, specification, inputs = STEPS[optimizer]
    bools = cases.random_bools(MIXED, 0.5, device)
    arguments = inputs(MIXED, torch.bfloat16, device, bools, offset=offset, stochastic_rounding=True, seed=7)
    cases.assert_matches_reference(kernel, specification, arguments)


@both
def test_special_values(optimizer, device):
    """NaN stays NaN, infinities stay, the largest numbers may become infinite."""
    kernel, specification, inputs = STEPS[optimizer]
    arguments = inputs(MIXED, torch.bfloat16, device, stochastic_rounding=True, seed=7)
    for param in arguments["params"]:
        cases.with_special(param, share=0.3)
    cases.assert_matches_reference(kernel, specification, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_bfloat16_is_rounded_at_random(dtype, device):
    """In a list of both dtypes, fp32 parameters are exact."""
    arguments = cases.adamw_inputs([(3000,), (2000,)], dtype, device, stochastic_rounding=True, seed=3)
    for name in ("params", "grads"):
        arguments[name][1] = cases.place(arguments[name][1].float())
    cases.assert_matches_reference(ops.masked_adamw_, reference.masked_adamw_, arguments)


def test_unbiased(device):
    """1 + 2^-10 lies an eighth of the way from 1 to the next bfloat16: an eighth of a million must go up."""
    n = 1_000_000
    param = sgd_from_ones(n, device, lr=2.0**-10, seed=11)
    assert set(param.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    share = float((param > 1).double().mean())
    assert abs(share - 0.125) < 6 * math.sqrt(0.125 * 0.875 / n)


def test_rounding_does_not_correlate_within_or_between_blocks(device):
    """The share that goes up is the same in every position of a block and in every block."""
    up = (sgd_from_ones(1024 * 1024, device, lr=2.0**-8, seed=5) > 1).double().view(1024, 1024)
    six_sigma = 6 * math.sqrt(0.25 / 1024)
    assert (up.mean(0) - 0.5).abs().max() < six_sigma
    assert (up.mean(1) - 0.5).abs().max() < six_sigma
    neighbours = float(((up[:, 1:] - 0.5) * (up[:, :-1] - 0.5)).mean()) / 0.25
    blocks = float(((up[1:] - 0.5) * (up[:-1] - 0.5)).mean()) / 0.25
    assert abs(neighbours) < 0.006
    assert abs(blocks) < 0.006


def test_small_updates_survive_on_average(device):
    """200 updates of a 64th of the spacing: nearest rounding never moves, stochastic rounding arrives."""
    param = torch.ones(20_000, dtype=torch.bfloat16, device=device)
    nearest, steps = param.clone(), [torch.zeros(1, device=device)]
    grad, lr = -torch.ones_like(param), torch.tensor(2.0**-13, device=device)
    for _ in range(200):
        ops.masked_sgd_([param], [grad], [], steps, lr=lr, momentum=0.0, weight_decay=0.0,
                        stochastic_rounding=True, seed=1)  # fmt: skip
        ops.masked_sgd_([nearest], [grad], [], [steps[0].clone()], lr=lr, momentum=0.0, weight_decay=0.0)
    assert torch.equal(nearest, torch.ones_like(nearest))
    assert abs(float(param.double().mean()) - (1 + 200 * 2.0**-13)) < 0.001


def test_keyed_by_seed_step_and_element(device):
    def rounding(**options) -> torch.Tensor:
        return sgd_from_ones(4096, device, lr=2.0**-8, **options)

    assert torch.equal(rounding(seed=1), rounding(seed=1))
    assert not torch.equal(rounding(seed=1), rounding(seed=2))
    assert not torch.equal(rounding(seed=1), rounding(seed=1, first_blocks=[4]))
    shifted = rounding(seed=1, first_blocks=[1])
    assert torch.equal(shifted[:-1024], rounding(seed=1)[1024:])


def test_same_whatever_the_grouping(device):
    """Two tensors in one call or in two calls, dense mask or none: an element has one random number per step."""
    together = cases.sgd_inputs([(1500,), (2500,)], torch.bfloat16, device, stochastic_rounding=True, seed=9)
    together["steps"] = [torch.zeros(1, device=device) for _ in range(2)]
    apart = cases.clone(together)
    ops.masked_sgd_(**together)
    firsts = layout.first_blocks([1500, 2500])
    for t in range(2):
        lists = {name: [apart[name][t]] for name in ("params", "grads", "momentum_buffers", "steps")}
        ops.masked_sgd_(**apart | lists | {"first_blocks": [firsts[t]]})
    cases.assert_same(together["params"], apart["params"])
