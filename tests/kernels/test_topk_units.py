"""unit_scores_: mean scores of rows and of whole tensors."""

import pytest
import torch
from torch import Tensor

from aimfair.selective import ops, reference
from aimfair.selective.score import Score

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
        torch.testing.assert_close(x.cpu(), y, rtol=1.2e-7, atol=0)


@pytest.mark.parametrize("offset", cases.OFFSETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_equals_reference(criterion, offset, device):
    arguments = cases.score_inputs([shape for shape, _ in ROWS], criterion, device, offset)
    actual, expected = outputs(device, offset), outputs(torch.device("cpu"))
    ops.unit_scores_(actual, **arguments)
    reference.unit_scores_(expected, **cases.clone(arguments, "cpu"))
    assert_close_to_one_rounding(actual, expected)


def test_ratio_rule(device):
    shapes = [shape for shape, _ in ROWS]
    arguments = cases.score_inputs(shapes, "difference", device, divisor="relative_difference")
    actual, expected = outputs(device), outputs(torch.device("cpu"))
    ops.unit_scores_(actual, **arguments)
    reference.unit_scores_(expected, **cases.clone(arguments, "cpu"))
    assert_close_to_one_rounding(actual, expected)


def tree_sum(lanes: Tensor) -> Tensor:
    """Sum over the last dimension: its second half is added to the first, and so on."""
    while lanes.shape[-1] > 1:
        first, second = lanes.chunk(2, dim=-1)
        lanes = first + second
    return lanes[..., 0]


def lane_sum(values: Tensor, lanes: int) -> Tensor:
    """Sum over the last dimension: value i is added to lane ``i % lanes``, then the lanes are added as a tree."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % lanes)).unflatten(-1, (-1, lanes))
    total = torch.zeros_like(padded[..., 0, :])
    for i in range(padded.shape[-2]):
        total = total + padded[..., i, :]
    return tree_sum(total)


def mean_in_order(rows: Tensor) -> Tensor:
    """The mean of every row, summed in the order that aimfair/topk.h defines."""
    padded = torch.nn.functional.pad(rows.double(), (0, -rows.shape[1] % (16 * 1024)))
    blocks = lane_sum(padded.unflatten(1, (-1, 16, 1024)), 16)
    return (lane_sum(tree_sum(blocks), 256) / rows.shape[1]).float()


def cancelling_rows(units: int, length: int, device: torch.device) -> Tensor:
    """Rows of very different numbers that cancel each other out: their sum in float64 is what rounding left over."""
    half = torch.randn(units, length // 2) * 2.0 ** torch.randint(-40, 40, (units, length // 2))
    rows = torch.cat([half, -half, torch.randn(units, length % 2)], dim=1)
    return rows[:, torch.randperm(length)].to(device)


UNITS_AND_LENGTHS = {
    "tiny": [(1, 1), (5000, 1), (1, 2), (3000, 3), (77, 8), (1111, 9), (300, 15), (301, 16)],
    "short": [(400, 17), (64, 63), (33, 64), (40, 65), (9, 500), (17, 1023), (20, 1024)],
    "several_blocks": [(19, 1025), (5, 2048), (6, 3000), (9, 4097), (3, 9000), (1, 16383), (2, 16384)],
    "several_spans": [(1, 16385), (3, 40_000), (1, 65_537), (2, 131_072)],
    "more_spans_than_lanes": [(1, 257 * 16384 + 5)],
    "hundreds": [(1 + i % 7, 1 + i % 40) for i in range(300)],
}


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("units_and_lengths", UNITS_AND_LENGTHS.values(), ids=UNITS_AND_LENGTHS)
def test_order_of_the_sums(units_and_lengths, offset, device):
    """To the last bit, where any other order gives something else."""
    scores = [
        cases.place(cancelling_rows(units, length, device), offset) for units, length in [*units_and_lengths, (0, 1)]
    ]
    out = [cases.place(torch.full((len(rows),), -1.0, device=device), offset) for rows in scores]
    ops.unit_scores_(out, Score("value", scores))
    cases.assert_same(out, [mean_in_order(rows.cpu()) for rows in scores], "out")


def test_a_unit_of_one_element_is_its_score(device):
    scores = torch.tensor([-0.0, 0.0, 1e-45, -torch.inf, 3e38], device=device)
    out = torch.empty(5, device=device)
    ops.unit_scores_([out], Score("value", [scores]))
    cases.assert_same(out, scores)


@pytest.mark.parametrize("length", [1, 5, 17, 1025, 20_000])
def test_nothing_past_the_end_is_scored(length, device):
    """With eps = 0 the score of two zeros is NaN, and lanes without an element may hold zeros."""
    a, b = cases.place(torch.rand(3, length, device=device) + 1, 1), torch.ones(3, length, device=device)
    arguments = {"score": Score("relative_difference", [a], [b], eps=0.0)}
    actual, expected = [torch.empty(3, device=device)], [torch.empty(3)]
    ops.unit_scores_(actual, **arguments)
    reference.unit_scores_(expected, **cases.clone(arguments, "cpu"))
    assert_close_to_one_rounding(actual, expected)


def test_mean_of_a_million_is_taken_in_float64(device):
    scores = torch.full((2_000_000,), 1e-4, device=device)
    scores[0] = 1e8
    out = torch.empty(1, device=device)
    ops.unit_scores_([out], Score("value", [scores]))
    torch.testing.assert_close(out, scores.double().mean().float().view(1), rtol=1.2e-7, atol=0)


def test_infinite_scores_are_legal(device):
    scores = torch.tensor([[1.0, 3.0], [torch.inf, 1.0], [-torch.inf, 1.0]], device=device)
    out = torch.empty(3, device=device)
    ops.unit_scores_([out], Score("value", [scores]))
    assert out.tolist() == [2.0, torch.inf, -torch.inf]


@pytest.mark.parametrize(("units", "length"), [(3000, 1), (700, 7), (40, 100), (9, 3000), (2, 40_000)])
def test_nan_is_refused_by_name(units, length, device):
    """The lowest tensor of those with a NaN is named, wherever it is."""
    scores = [torch.randn(shape, device=device) for shape in [(10,), (units, length), (70_000,), (5,)]]
    out = [torch.full((count,), -1.0, device=device) for count in [2, units, 1, 5]]
    scores[2][69_999] = scores[3][0] = torch.nan
    with pytest.raises(RuntimeError, match=r"a\[2\]"):
        ops.unit_scores_(out, Score("value", scores))
    scores[1][units // 2, length - 1] = torch.nan
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.unit_scores_(out, Score("value", scores))
