"""A GPU gives the bits of the CPU, and the same ones every time."""

from collections.abc import Callable

import pytest
import torch

from aimfair.selective import layout, ops
from aimfair.selective.score import Score
from tests.kernels import cases
from tests.kernels.cases import Inputs
from tests.kernels.test_paths_and_threads import CALLS

from .device import CUDA, needs_cuda

pytestmark = needs_cuda

REPEATS = 20

MANY_CHUNKS = [(6_000_000,), (17,), (3000, 1001), (1,), (2_000_003,)]
"""More than a GPU works on at once, so that thread blocks end in any order."""


def assert_same(actual: Inputs, expected: Inputs) -> None:
    """The same bits; the norms, float64 sums whose order is the device's own, to a millionth."""
    if "square_norms" in expected:
        norms = [inputs.pop("square_norms").cpu() for inputs in (actual, expected)]
        torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
    cases.assert_same(actual, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bits_of_the_cpu(call):
    operator, inputs = call()
    actual, expected = cases.clone(inputs, CUDA), cases.clone(inputs)
    operator(**expected)
    operator(**actual)
    assert_same(actual, expected)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_bits_of_every_repeat(call):
    operator, inputs = call()
    assert_repeats(operator, cases.clone(inputs, CUDA))


def assert_repeats(operator: Callable[..., None], inputs: Inputs) -> None:
    expected = cases.clone(inputs)
    operator(**expected)
    for _ in range(REPEATS):
        actual = cases.clone(inputs)
        operator(**actual)
        cases.assert_same(actual, expected)


def accumulate() -> tuple[Callable[..., None], Inputs]:
    inputs = cases.accumulate_inputs(MANY_CHUNKS, torch.float32, CUDA, weight=0.3)
    cases.with_special(inputs["grads"][2], share=0.01)
    return ops.accumulate_, inputs


def select(criterion: str, k: int) -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(MANY_CHUNKS, criterion, CUDA)
    bits, rank = layout.empty_mask([a.numel() for a in inputs["score"].a], CUDA)
    return ops.select_, inputs | {"bits": bits, "rank": rank, "k": k}


def select_ties() -> tuple[Callable[..., None], Inputs]:
    """So few values that the place of each tie decides."""
    scores = [torch.randint(-20, 20, shape, device=CUDA).float() for shape in MANY_CHUNKS]
    bits, rank = layout.empty_mask([score.numel() for score in scores], CUDA)
    return ops.select_, {"bits": bits, "rank": rank, "k": 1_234_567, "score": Score("value", scores)}


def select_segments() -> tuple[Callable[..., None], Inputs]:
    """Tensors that several thread blocks count, rows, and a group; so few values that the place of each tie decides."""
    scores = [torch.randint(-20, 20, shape, device=CUDA).float() for shape in MANY_CHUNKS]
    bits, rank = layout.empty_mask([score.numel() for score in scores], CUDA)
    segments = {"units": [1, 1, 3000, 1, 1], "ks": [1_234_567, 9, 100, 9, 900_000], "groups": [0, 1, 2, 1, 4]}
    return ops.select_segments_, {"bits": bits, "rank": rank, "score": Score("value", scores), **segments}


def unit_scores() -> tuple[Callable[..., None], Inputs]:
    inputs = cases.score_inputs(MANY_CHUNKS, "norm_ratio", CUDA)
    out = [torch.zeros(shape[0] if len(shape) > 1 else 1, device=CUDA) for shape in MANY_CHUNKS]
    return ops.unit_scores_, inputs | {"out": out}


def adamw(compact: bool) -> tuple[Callable[..., None], Inputs]:
    bools = cases.random_bools(MANY_CHUNKS, 0.1, CUDA)
    return ops.masked_adamw_, cases.adamw_inputs(MANY_CHUNKS, torch.float32, CUDA, bools, compact=compact)


@pytest.mark.parametrize("call", [
    pytest.param(accumulate, id="accumulate"),
    pytest.param(lambda: select("difference", 1_000_000), id="select_difference"),
    pytest.param(lambda: select("norm_ratio", 5_000_000), id="select_norm_ratio"),
    pytest.param(select_ties, id="select_ties"),
    pytest.param(select_segments, id="select_segments"),
    pytest.param(unit_scores, id="unit_scores"),
    pytest.param(lambda: adamw(False), id="adamw_dense"),
    pytest.param(lambda: adamw(True), id="adamw_compact"),
])  # fmt: skip
def test_bits_of_every_repeat_on_large_tensors(call):
    operator, inputs = call()
    assert_repeats(operator, inputs)
    expected, actual = cases.clone(inputs, "cpu"), cases.clone(inputs)
    operator(**expected)
    operator(**actual)
    assert_same(actual, expected)
