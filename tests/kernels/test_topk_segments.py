"""select_segments_ is a stable sort of every segment, whatever its length and however many there are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import aimfair
from aimfair.selective import ops, reference
from aimfair.selective.score import Score

from . import cases
from .cases import CRITERIA, OFFSETS
from .test_properties import examples, offsets, seeds
from .test_topk import KINDS, dirty_mask

INF = math.inf

EMULATED = aimfair.build_info()["emulated"]

each_direction = pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])

UNITS_AND_LENGTHS: dict[str, list[tuple[int, int]]] = {
    "no_tensors": [],
    "empty": [(0, 0), (1, 0), (3, 0)],
    "one_element": [(1, 1), (1, 1), (70, 1)],
    "pairs_and_fours": [(1000, 2), (513, 4), (1, 4), (33, 8), (9, 16)],
    "tiny": [(100, 3), (77, 5), (65, 27), (40, 31), (40, 32)],
    "short": [(40, 33), (21, 64), (17, 147), (9, 576), (5, 1023), (3, 1024), (4, 1025)],
    "rows": [(7, 3000), (2, 4608), (3, 9001)],
    "tensors": [(1, 5000), (1, 33), (1, 0), (1, 1024), (1, 1), (1, 216)],
    "hundreds": [(i % 7, 1 + i % 40) for i in range(300)],
    "long": [(1, 70_000), (3, 20_001), (1, 17)],
}
"""(segments, elements of each) per tensor."""


def shapes_of(sizes: list[tuple[int, int]]) -> list[cases.Shape]:
    return list(sizes)


def ks_of(sizes: list[tuple[int, int]], share: float) -> list[int]:
    return [round(share * length) if units else 0 for units, length in sizes]


def check(
    arguments: cases.Inputs, units: list[int], ks: list[int], groups: list[int] | None, largest: bool, offset: int = 0
) -> None:
    """The kernel, of this device, against the reference on the CPU; what it reads must not change."""
    before = cases.clone(arguments, "cpu")
    a = before["score"].a
    expected = list(dirty_mask(a, offset))
    actual = cases.clone(expected, arguments["score"].a[0].device if a else "cpu")
    ops.select_segments_(*actual, units, ks, **arguments, groups=groups, largest=largest)
    reference.select_segments_(*expected, units, ks, **before, groups=groups, largest=largest)
    cases.assert_same(actual, expected, f"mask of {ks}")
    cases.assert_same(arguments, before)


# -- runs of tensors --------------------------------------------------------------------------------------------------


@each_direction
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sizes", UNITS_AND_LENGTHS.values(), ids=UNITS_AND_LENGTHS)
def test_lengths(sizes, share, largest, device):
    arguments = cases.score_inputs(shapes_of(sizes), "value", device)
    check(arguments, [units for units, _ in sizes], ks_of(sizes, share), None, largest)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria(criterion, offset, device):
    sizes = [(100, 3), (9, 576), (1, 5000), (33, 4), (2, 1025)]
    arguments = cases.score_inputs(shapes_of(sizes), criterion, device, offset, divisor="difference")
    check(arguments, [units for units, _ in sizes], ks_of(sizes, 0.3), None, True, offset)


@pytest.mark.parametrize("divisor", CRITERIA[1:])
@pytest.mark.parametrize("criterion", CRITERIA[1:])
def test_ratio_rule(criterion, divisor, device):
    sizes = [(100, 3), (9, 576), (1, 5000)]
    arguments = cases.score_inputs(shapes_of(sizes), criterion, device, divisor=divisor)
    for largest in (True, False):
        check(arguments, [100, 9, 1], ks_of(sizes, 0.2), None, largest)


@each_direction
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_scores(kind, largest, device):
    sizes = [(1, 3000), (8, 375), (600, 5), (3, 1000), (750, 4)]
    scores = kind(3000).to(device)
    for share in (0.01, 0.4):
        arguments = {"score": Score("value", [scores.view(size) for size in sizes])}
        ks = [max(1, k) for k in ks_of(sizes, share)]
        check(arguments, [units for units, _ in sizes], ks, None, largest)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 8, 27, 32, 33, 64, 100])
def test_every_k(length, device):
    """Many equal scores, some of them zeros of either sign."""
    scores = torch.randint(-2, 3, (40, length), device=device) * torch.tensor(-1.0, device=device)
    for largest in (True, False):
        for k in range(length + 1):
            check({"score": Score("value", [scores])}, [40], [k], None, largest)


@each_direction
def test_long_segments(largest, device):
    """Longer than what one thread keeps the keys of, from tensors and rows of any alignment."""
    long = 20_001 if EMULATED else 270_001
    scores = [torch.randn(3, long, device=device), torch.randn(2 * long, device=device), torch.randn(5, device=device)]
    scores[0][1].round_()
    check({"score": Score("value", scores)}, [3, 1, 1], [long // 10, long, 2], None, largest)


def test_two_of_four(device):
    """Hand-computed."""
    rows = [[1.0, 3.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -0.0, 0.0, -2.0], [-INF, INF, 0.0, INF]]
    scores = [torch.tensor(rows, device=device).flatten()]
    bits, rank = dirty_mask(scores)
    ops.select_segments_(bits, rank, [4], [2], Score("value", scores))
    assert int(bits[0]) == 0b1010_0110_0011_0110
    assert rank.tolist() == [0, 8]


# -- groups of tensors ------------------------------------------------------------------------------------------------


@each_direction
@pytest.mark.parametrize("sizes", [[5000, 7, 0, 33, 1024, 2000], [34_000, 9000, 5, 1, 900, 1025]], ids=str)
def test_groups(sizes, largest, device):
    """Not next to each other, with an empty tensor, and one without others."""
    arguments = cases.score_inputs([(size,) for size in sizes], "difference", device)
    groups = [-3, 8, -3, 8, 2**40, -3]
    totals = [sum(size for size, other in zip(sizes, groups, strict=True) if other == group) for group in groups]
    for share in (0.0, 0.01, 0.5, 1.0):
        check(arguments, [1] * 6, [round(share * total) for total in totals], groups, largest)


def test_groups_next_to_rows(device):
    arguments = cases.score_inputs([(40, 27), (300,), (5, 700), (20,)], "value", device)
    check(arguments, [40, 1, 5, 1], [3, 100, 70, 100], [0, 1, 2, 1], True)


def test_one_group_is_the_selection_over_all(device):
    arguments = cases.score_inputs(cases.MIXED, "norm_ratio", device)
    together, all_at_once = dirty_mask(arguments["score"].a), dirty_mask(arguments["score"].a)
    count = len(cases.MIXED)
    ops.select_segments_(*together, [1] * count, [1234] * count, **arguments, groups=[0] * count)
    ops.select_(*all_at_once, 1234, **arguments)
    cases.assert_same(list(together), list(all_at_once))


@settings(examples, max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 70) | st.sampled_from([576, 1024, 1025])), max_size=6),
    st.lists(st.integers(0, 2), min_size=6, max_size=6), st.floats(0.0, 1.0), st.integers(1, 40), offsets,
    st.booleans(), seeds,
)  # fmt: skip
def test_any_segments(device, sizes, groups, share, values, offset, largest, seed):
    """Tensors of one unit share three groups; few values, so that scores tie."""
    torch.manual_seed(seed)
    scores = [cases.place(torch.randint(-values, values, size).float(), offset) for size in sizes]
    ids = [group if units == 1 else 3 + t for t, ((units, _), group) in enumerate(zip(sizes, groups, strict=False))]
    elements = {}
    for (_, length), group in zip(sizes, ids, strict=True):
        elements[group] = elements.get(group, 0) + length
    ks = [round(share * elements[group]) for group in ids]
    arguments = cases.on_device({"score": Score("value", scores)}, device)
    check(arguments, [units for units, _ in sizes], ks, ids, largest, offset)


# -- NaN --------------------------------------------------------------------------------------------------------------


def refused_as_nan(entry: int, scores: list[Tensor], units: list[int], ks: list[int], groups: list[int]) -> None:
    mask = dirty_mask(scores)
    before = cases.clone(list(mask))
    with pytest.raises(RuntimeError, match=rf"a\[{entry}\] has a score that is NaN"):
        ops.select_segments_(*mask, units, ks, Score("value", scores), groups=groups)
    cases.assert_same(list(mask), before)


@pytest.mark.parametrize("k", [0, 1, 4])
@pytest.mark.parametrize("nan_bits", [0x7FC00000, -0x400000, 0x7F800001, -1], ids=hex)
@pytest.mark.parametrize("entry", range(5))
def test_nan_is_refused_by_name(entry, nan_bits, k, device):
    """In tiny and in short segments, in a whole tensor, and in a group."""
    scores = [torch.randn(shape, device=device) for shape in ((50, 4), (9, 100), (5000,), (10,), (3000,))]
    scores[entry].view(torch.int32).view(-1)[-1] = nan_bits
    refused_as_nan(entry, scores, [50, 9, 1, 1, 1], [k] * 5, [0, 1, 2, 3, 3])


def test_the_first_tensor_with_a_nan_is_named(device):
    scores = [torch.randn(n, device=device) for n in (400, 40, 30, 4000)]
    scores[1][0] = scores[2][5] = scores[3][0] = torch.nan
    refused_as_nan(1, scores, [100, 1, 1, 1], [2, 3, 5, 5], [0, 1, 2, 2])
    scores[1][0] = 0.0
    refused_as_nan(2, scores, [100, 1, 1, 1], [2, 3, 5, 5], [0, 1, 2, 2])


# -- thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.0, -0.0, 0.5, -1.0, 0.1, -0.1, 1 + 2.0**-30, 1e39, -1e39, 1e-46, INF, -INF])
def test_thresholds(threshold, device):
    """Compared in float64; the first key that is at least a threshold between two fp32 numbers is that of the upper."""
    scores = torch.tensor([0.0, -0.0, 0.5, -1.0, 0.1, -0.1, 1.0, 1 + 2.0**-23, 3e38, -3e38, 1e-45, -1e-45, INF, -INF])
    scores = [scores.to(device)]
    for largest in (True, False):
        mask = dirty_mask(scores)
        key = ops.threshold_key(threshold, largest=largest)
        every = torch.tensor([14], device=device)
        ops.select_above_(*mask, key, every, Score("value", scores), largest=largest)
        wide = scores[0].double()
        expected = wide >= threshold if largest else wide <= threshold
        cases.assert_same(list(mask), list(cases.packed([expected], device)), f"{threshold}, {largest}")


def test_a_threshold_is_a_number():
    with pytest.raises(ValueError, match="threshold is NaN"):
        ops.threshold_key(math.nan)
