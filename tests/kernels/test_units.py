"""unit_scores_: mean scores of rows and of whole tensors."""

import pytest
import torch
from torch import Tensor

from aimfair import ops, reference

from . import cases
from .cases import CRITERIA

ROWS = [
    ((64, 27), 64),
    ((1, 5000), 1),
    ((5000,), 5000),
    ((7, 1024), 7),
    ((3, 1025), 3),
    ((), 1),
    ((0,), 0),
    ((10, 7), 5),
]
"""(shape, units) of tensors."""


def outputs(device: torch.device, offset: int = 0) -> list[Tensor]:
    return [cases.place(torch.full((units,), -1.0, device=device), offset) for _, units in ROWS]


def assert_close_to_one_rounding(actual: list[Tensor], expected: list[Tensor]) -> None:
    """float64 sums in two orders round to neighbouring fp32 numbers at worst."""
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("offset", cases.OFFSETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_equals_reference(criterion, offset, device):
    arguments = cases.score_inputs([shape for shape, _ in ROWS], criterion, device, offset)
    actual, expected = outputs(device, offset), outputs(device)
    ops.unit_scores_(actual, **arguments)
    reference.unit_scores_(expected, **arguments)
    assert_close_to_one_rounding(actual, expected)


def test_ratio_rule(device):
    shapes = [shape for shape, _ in ROWS]
    arguments = cases.score_inputs(shapes, "difference", device, divisor_criterion="relative_difference")
    actual, expected = outputs(device), outputs(device)
    ops.unit_scores_(actual, **arguments)
    reference.unit_scores_(expected, **arguments)
    assert_close_to_one_rounding(actual, expected)


def test_mean_of_a_million_is_taken_in_float64(device):
    scores = torch.full((2_000_000,), 1e-4, device=device)
    scores[0] = 1e8
    out = torch.empty(1, device=device)
    ops.unit_scores_([out], "value", [scores])
    torch.testing.assert_close(out, scores.double().mean().float().view(1), rtol=1.2e-7, atol=0)


def test_infinite_scores_are_legal(device):
    scores = torch.tensor([[1.0, 3.0], [torch.inf, 1.0], [-torch.inf, 1.0]], device=device)
    out = torch.empty(3, device=device)
    ops.unit_scores_([out], "value", [scores])
    assert out.tolist() == [2.0, torch.inf, -torch.inf]


def test_nan_is_refused_by_name(device):
    scores = [torch.randn(10, device=device), torch.randn(3000, device=device)]
    scores[1][2500] = torch.nan
    out = [torch.full((2,), -1.0, device=device), torch.full((3,), -1.0, device=device)]
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.unit_scores_(out, "value", scores)
