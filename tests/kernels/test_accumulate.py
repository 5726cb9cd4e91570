"""accumulate_ against the reference: sums and squares bit for bit, norms against float64."""

import itertools
import math

import pytest
import torch

from aimfair.selective import ops, reference

from . import cases
from .cases import DTYPES, MIXED, OFFSETS, SHAPES, Inputs


def check(inputs: Inputs, calls: int = 1) -> None:
    """Kernel against reference; the order of the float64 sums in ``square_norms`` is the kernel's own."""
    expected = cases.clone(inputs, "cpu")
    for _ in range(calls):
        reference.accumulate_(**expected)
        ops.accumulate_(**inputs)
    norms = inputs["square_norms"].cpu()
    torch.testing.assert_close(norms, expected["square_norms"], rtol=1e-6, atol=0, equal_nan=True)
    inputs["square_norms"].copy_(expected["square_norms"])
    cases.assert_same(inputs, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(shapes, dtype, device):
    check(cases.accumulate_inputs(shapes, dtype, device, weight=0.3, second_weight=-1.7), calls=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", OFFSETS)
def test_misaligned_storage(offset, dtype, device):
    check(cases.accumulate_inputs(MIXED, dtype, device, offset, weight=0.3, second_weight=-1.7, zero_grads=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("zero_grads", [False, True])
@pytest.mark.parametrize("scale", [None, 65536.0, 3.0, 1e-30])
def test_special_values(dtype, zero_grads, scale, device):
    """Infinities, NaN, denormals and signed zeros, with and without a loss scale that overflows some of them."""
    grad_scale = None if scale is None else torch.tensor(scale, device=device)
    inputs = cases.accumulate_inputs(MIXED, dtype, device, weight=0.3, zero_grads=zero_grads, grad_scale=grad_scale)
    for grad in inputs["grads"]:
        cases.with_special(grad)
    check(inputs)


@pytest.mark.parametrize("lists", [
    wanted for size in range(3) for wanted in itertools.combinations(["sums", "squares", "second_sums"], size)
], ids=" ".join)  # fmt: skip
def test_unwanted_lists(lists, device):
    """An empty list means "not wanted"; all combinations but the full one, which the other tests run."""
    inputs = cases.accumulate_inputs(MIXED, torch.bfloat16, device, weight=2.0, second_weight=0.5)
    for name in {"sums", "squares", "second_sums"} - set(lists):
        inputs[name] = []
    check(inputs)


def test_difference_of_two_sources(device):
    """second_sums with weights +1 and -1 holds the difference of two gradient sums."""
    real = cases.accumulate_inputs(MIXED, torch.float32, device, second_weight=1.0)
    fake = cases.accumulate_inputs(MIXED, torch.float32, device, second_weight=-1.0, second_sums=real["second_sums"])
    expected = [
        (start + x.flatten()) - y.flatten()
        for start, x, y in zip(real["second_sums"], real["grads"], fake["grads"], strict=True)
    ]
    ops.accumulate_(**real)
    ops.accumulate_(**fake)
    cases.assert_same(real["second_sums"], expected)


def test_nonfinite_values_are_counted_and_add_nothing(device):
    inputs = cases.accumulate_inputs([(3000,), (5,), (2000,)], torch.float32, device)
    clean = cases.clone(inputs)
    inputs["grads"][0][[0, 17, 2999]] = torch.tensor([math.nan, math.inf, -math.inf], device=device)
    inputs["grads"][2][:1500] = math.nan
    clean["grads"][0][[0, 17, 2999]] = 0.0
    clean["grads"][2][:1500] = 0.0
    counts = inputs["nonfinite"] + torch.tensor([3, 0, 1500], device=device)
    ops.accumulate_(**inputs)
    ops.accumulate_(**clean)
    assert torch.equal(inputs["nonfinite"], counts)
    for name in ("sums", "squares", "second_sums"):
        cases.assert_same(inputs[name], clean[name], name)
    torch.testing.assert_close(inputs["square_norms"], clean["square_norms"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_grads_leaves_positive_zeros(dtype, device):
    inputs = cases.accumulate_inputs(MIXED, dtype, device, zero_grads=True)
    for grad in inputs["grads"]:
        cases.with_special(grad)
    ops.accumulate_(**inputs)
    cases.assert_same(inputs["grads"], [torch.zeros_like(grad) for grad in inputs["grads"]], "grads")


def test_square_norms_do_not_lose_small_values(device):
    """A million ones and then a million hundredths: a running sum in fp32 would stay at the ones."""
    grad = torch.full((2_000_003,), 1e-2, device=device)
    grad[:1_000_000] = 1.0
    square_norms, nonfinite = torch.zeros(1, dtype=torch.float64, device=device), torch.zeros(1, device=device).long()
    for _ in range(3):
        ops.accumulate_([grad], [], [], square_norms, nonfinite)
    torch.testing.assert_close(square_norms[0], 3 * grad.double().square().sum(), rtol=1e-6, atol=0)


def test_many_batches_add_up(device):
    """Sums over 20 batches against float64."""
    sums, squares = torch.zeros(4097, device=device), torch.zeros(4097, device=device)
    square_norms, nonfinite = torch.zeros(1, dtype=torch.float64, device=device), torch.zeros(1, device=device).long()
    batches = [torch.randn(4097, device=device).bfloat16() for _ in range(20)]
    for batch in batches:
        ops.accumulate_([batch.clone()], [sums], [squares], square_norms, nonfinite, weight=0.5)
    exact = torch.stack(batches).double()
    torch.testing.assert_close(sums, (0.5 * exact).sum(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(squares, exact.square().sum(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(square_norms[0], exact.square().sum(), rtol=1e-6, atol=0)


def test_gradients_of_parameters(device):
    """The usual caller: .grad of parameters, accumulators in the shapes of the parameters."""
    linear = torch.nn.Linear(33, 17, device=device)
    linear(torch.randn(8, 33, device=device)).square().sum().backward()
    grads = [parameter.grad for parameter in linear.parameters()]
    inputs = cases.accumulate_inputs([grad.shape for grad in grads], torch.float32, device, zero_grads=True)
    inputs["grads"] = grads
    inputs["sums"] = [torch.zeros_like(grad) for grad in grads]
    check(inputs)
    assert not linear.weight.grad.any()
