"""select_ is a stable sort, for every criterion and for scores made to defeat sampling and bracketing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import aimfair
from aimfair.selective import layout, ops, reference
from aimfair.selective.score import Score

from . import cases
from .cases import CRITERIA, OFFSETS, SECOND_OF, SHAPES

INF = math.inf

MILLION = 300_000 if aimfair.build_info()["emulated"] else 1_200_000
"""Elements, large enough for sampling; fewer where an emulator runs every thread."""


def dirty_mask(tensors: list[Tensor], offset: int = 0) -> tuple[Tensor, Tensor]:
    """A mask to be overwritten: every word and every count is garbage."""
    device = tensors[0].device if tensors else "cpu"
    bits, rank = layout.empty_mask([tensor.numel() for tensor in tensors], device)
    return cases.place(bits.fill_(-1), offset), cases.place(rank.fill_(-7), offset)


def check_against_reference(arguments: cases.Inputs, ks: Sequence[int], largest: bool, offset: int = 0) -> None:
    """The reference scores once, for all k: it takes every tensor by itself, and there are many."""
    before = cases.clone(arguments, "cpu")
    known = Score("value", reference._scores(before["score"]))
    for k in ks:
        expected = list(dirty_mask(known.a, offset))
        actual = cases.clone(expected, arguments["score"].a[0].device if known.a else "cpu")
        ops.select_(*actual, k, **arguments, largest=largest)
        reference.select_(*expected, k, known, largest=largest)
        cases.assert_same(actual, expected, f"mask of {k}")
    cases.assert_same(arguments, before)


def stable_order(scores: list[Tensor], largest: bool) -> np.ndarray:
    """Global indices, best first, by numpy's stable sort: equal scores keep their order and -0.0 equals 0.0."""
    flat = torch.cat([score.flatten() for score in scores]).cpu().numpy()
    return np.argsort(-flat if largest else flat, kind="stable")


def check_against_stable_sort(scores: list[Tensor], ks: list[int], largest: bool) -> None:
    order = stable_order(scores, largest)
    for k in ks:
        flat = np.zeros(len(order), dtype=bool)
        flat[order[:k]] = True
        bools = torch.from_numpy(flat).to(scores[0].device).split([score.numel() for score in scores])
        actual = dirty_mask(scores)
        ops.select_(*actual, k, Score("value", scores), largest=largest)
        cases.assert_same(list(actual), list(cases.packed(bools, scores[0].device)), f"mask of {k}")


# -- criteria ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_criteria(shapes, criterion, largest, device):
    arguments = cases.score_inputs(shapes, criterion, device)
    total = sum(a.numel() for a in arguments["score"].a)
    ks = sorted({0, min(1, total), total // 100, total // 3, max(total - 1, 0), total})
    check_against_reference(arguments, ks, largest)


@pytest.mark.parametrize("divisor", CRITERIA[1:])
@pytest.mark.parametrize("criterion", CRITERIA[1:])
def test_ratio_rule(criterion, divisor, device):
    arguments = cases.score_inputs(cases.MIXED, criterion, device, divisor=divisor)
    for largest in (True, False):
        check_against_reference(arguments, [1234], largest)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_misaligned_storage(criterion, offset, device):
    arguments = cases.score_inputs(cases.MIXED, criterion, device, offset, divisor="difference")
    check_against_reference(arguments, [2345], True, offset)


@pytest.mark.parametrize("eps", [1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("criterion", ["relative_difference", "norm_ratio"])
def test_eps(criterion, eps, device):
    """Many zeros, so that eps decides."""
    arguments = cases.score_inputs(cases.MIXED, criterion, device)
    for a, b in zip(arguments["score"].a, arguments["score"].b, strict=True):
        a[torch.rand(a.shape, device=device) < 0.5] = 0.0
        b[torch.rand(b.shape, device=device) < 0.5] = 0.0
    check_against_reference({"score": replace(arguments["score"], eps=eps)}, [2345], True)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_criteria_on_millions(criterion, device):
    """Large enough for every fast path; the sums of two sources are close to each other, as real ones are."""
    shapes = [(MILLION * 3 // 4,), (64, 3, 7, 7), (MILLION // 3,), (100,)]
    arguments = cases.score_inputs(shapes, criterion, device)
    for tensor in cases.tensors_in(arguments):
        tensor *= 10.0 ** torch.empty((), device=device).uniform_(-6, 6)
    check_against_reference(arguments, [MILLION // 100], True)
    check_against_reference(arguments, [MILLION // 2], False)


def test_criterion_definitions(device):
    """Hand-computed scores; the best element of each criterion is a different one."""
    a = [torch.tensor([1.0, -5.0, 0.25, 4.0, 9.0], device=device)]
    b = [torch.tensor([1.5, -4.0, -0.25, 4.0, 1.0], device=device)]
    best = {"value": 4, "magnitude": 4, "difference": 4, "relative_difference": 2}
    for criterion, index in best.items():
        mask = dirty_mask(a)
        ops.select_(*mask, 1, Score(criterion, a, b if SECOND_OF[criterion] else None))
        assert int(mask[0][0]) == 1 << index, criterion
    mask = dirty_mask(a)
    ops.select_(*mask, 1, Score("norm_ratio", [x.abs() for x in a], [x.abs() for x in b]))  # sqrt(b / a): 1.5 / 1 wins
    assert int(mask[0][0]) == 1 << 0


# -- the stable sort, on scores of all kinds --------------------------------------------------------------------------


def signs(n: int) -> Tensor:
    """-1 and 1; the sign of a normal number can be 0, and 0 * infinity is NaN."""
    return torch.where(torch.rand(n) < 0.5, -1.0, 1.0)


def ties_around_threshold(n: int) -> Tensor:
    scores = torch.rand(n)
    return torch.where(torch.rand(n) < 0.8, torch.tensor(0.5), scores)


def nearly_constant(n: int) -> Tensor:
    scores = torch.ones(n)
    scores[[0, n // 2, n - 1]] = torch.tensor([1.0 + 2**-23, 1.0 - 2**-24, 1.0 + 2**-22])
    return scores


def stride_of_blocks(n: int) -> Tensor:
    """A sampler that looks at the start of each block sees only the large values."""
    scores = torch.rand(n)
    scores[::1024] += 100.0
    return scores


def winners_in_one_place(n: int) -> Tensor:
    """A sampler that skips the last elements sees none of the best 1%."""
    scores = torch.rand(n)
    scores[-n // 100 :] += 1000.0
    return scores


def bracket_bait(n: int) -> Tensor:
    """Flat plateaus with thin steep walls: a bracket around a quantile holds either nothing or a whole plateau."""
    return (torch.rand(n) * 8).floor() + torch.where(torch.rand(n) < 1e-4, torch.rand(n), torch.tensor(0.0))


KINDS: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "ascending": lambda n: torch.arange(n).float(),
    "descending": lambda n: -torch.arange(n).float(),
    "constant": lambda n: torch.full((n,), 0.25),
    "two_values": lambda n: (torch.rand(n) < 0.3).float(),
    "few_values": lambda n: torch.randint(-20, 20, (n,)).float(),
    "ties_around_threshold": ties_around_threshold,
    "nearly_constant": nearly_constant,
    "neighbouring_floats": lambda n: 1.0 + torch.randint(16, (n,)) * 2.0**-23,
    "denormal": lambda n: torch.randint(-1000, 1000, (n,), dtype=torch.int32).abs().view(torch.float32) * 1.0,
    "signed_denormal": lambda n: torch.randn(n) * 1e-40,
    "infinite": lambda n: torch.where(torch.rand(n) < 0.4, signs(n) * INF, torch.randn(n)),
    "all_infinite": lambda n: signs(n) * INF,
    "signed_zeros": lambda n: torch.randn(n).sign() * 0.0,
    "zeros_among_values": lambda n: torch.where(torch.rand(n) < 0.6, torch.randn(n).sign() * 0.0, torch.randn(n)),
    "all_exponents": lambda n: torch.randn(n).sign() * 10.0 ** torch.empty(n).uniform_(-44, 38),
    "largest_floats": lambda n: torch.randn(n).sign() * 3.4e38,
    "stride_of_blocks": stride_of_blocks,
    "winners_in_one_place": winners_in_one_place,
    "bracket_bait": bracket_bait,
}


@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_scores(kind, largest, device):
    """A list of small tensors: the exact path."""
    scores = [kind(n).to(device) for n in (3000, 1, 5, 1024, 700)]
    total = sum(score.numel() for score in scores)
    check_against_stable_sort(scores, [0, 1, 2, 100, total // 3, total // 2, total - 1, total], largest)


@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_scores_on_millions(kind, largest, device):
    """Large enough for sampling and bracketing, and for their failure on the adversarial kinds."""
    n = MILLION
    scores = list(kind(n).to(device).split([n - n // 6 - 1, 17, 1024, n // 6 - 1040]))
    check_against_stable_sort(scores, [1, n // 1000, n // 100, n // 10 - 1, n // 2, n - 1], largest)


def test_scales_twelve_orders_apart(device):
    """One tensor holds all the winners, and another all the losers."""
    third = MILLION // 3
    scores = [torch.randn(third, device=device) * scale for scale in (1.0, 1e12, 1e-12)]
    for largest in (True, False):
        check_against_stable_sort(scores, [10, third // 3, third - 1, third + 1, 2 * third, 3 * third - 100], largest)


def test_every_k_of_a_small_list(device):
    scores = [torch.randint(-3, 3, (n,), device=device).float() for n in (33, 0, 1, 40)]
    for largest in (True, False):
        check_against_stable_sort(scores, list(range(75)), largest)


def test_ties_across_a_threshold_in_the_last_tensor(device):
    """All ties lie in a late tensor, and the first of them win."""
    ones = MILLION * 2 // 3
    zeros = torch.zeros(MILLION - ones, device=device)
    scores = [zeros, torch.ones(ones, device=device), torch.zeros(9, device=device)]
    check_against_stable_sort(scores, [1, 31, 1023, ones // 5, ones, ones + 1], True)


# -- NaN --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 100, 3010])
@pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("nan_bits", [0x7FC00000, -0x400000, 0x7F800001], ids=["quiet", "negative", "signalling"])
def test_nan_is_refused_by_name(nan_bits, largest, k, device):
    scores = [torch.randn(1000, device=device), torch.randn(10, device=device), torch.randn(2000, device=device)]
    scores[2].view(torch.int32)[1999] = nan_bits
    mask = dirty_mask(scores)
    before = cases.clone(list(mask))
    with pytest.raises(RuntimeError, match=r"a\[2\]"):
        ops.select_(*mask, k, Score("value", scores), largest=largest)
    cases.assert_same(list(mask), before)


@pytest.mark.parametrize("k", [1, MILLION // 100, MILLION * 11 // 12])
@pytest.mark.parametrize("where", [0, 1, MILLION // 10 + 1, MILLION // 2 - 1])
def test_nan_among_millions(where, k, device):
    """A NaN that no sample needs to meet, and that loses or wins every comparison."""
    scores = [torch.randn(MILLION // 2, device=device), torch.randn(MILLION // 2, device=device)]
    scores[1][where] = math.nan
    mask = dirty_mask(scores)
    before = cases.clone(list(mask))
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.select_(*mask, k, Score("magnitude", scores))
    cases.assert_same(list(mask), before)


@pytest.mark.parametrize(("criterion", "x", "y"), [
    ("magnitude", math.nan, 0.0),
    ("difference", INF, INF),
    ("relative_difference", INF, 1.0),
    ("norm_ratio", -1.0, 1.0),
    ("norm_ratio", INF, INF),
    ("norm_ratio", 1.0, -1.0),
])  # fmt: skip
def test_nan_made_by_the_criterion(criterion, x, y, device):
    arguments = cases.score_inputs([(2000,), (30,)], criterion, device)
    arguments["score"].a[1][29] = x
    if SECOND_OF[criterion]:
        arguments["score"].b[1][29] = y
    mask = dirty_mask(arguments["score"].a)
    before = cases.clone(list(mask))
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.select_(*mask, 5, **arguments)
    cases.assert_same(list(mask), before)


def test_nan_made_by_the_ratio(device):
    """Infinity divided by infinity."""
    arguments = cases.score_inputs([(2000,), (30,)], "difference", device, divisor="magnitude")
    arguments["score"].a[0][1500] = INF
    arguments["score"].divisor.a[0][1500] = INF
    mask = dirty_mask(arguments["score"].a)
    with pytest.raises(RuntimeError, match=r"a\[0\]"):
        ops.select_(*mask, 5, **arguments)


def test_infinite_scores_of_criteria_are_legal(device):
    arguments = cases.score_inputs([(2000,), (30,)], "difference", device)
    arguments["score"].a[0][5] = INF
    arguments["score"].b[1][7] = -INF
    check_against_reference(arguments, [3], True)
