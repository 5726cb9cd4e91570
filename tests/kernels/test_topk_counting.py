"""count_keys_, count_equal_ and select_above_: together they are select_, over scores held in several places."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from aimfair.selective import layout, ops, reference
from aimfair.selective.score import Score

from . import cases
from .cases import CRITERIA, OFFSETS, SECOND_OF, SHAPES
from .test_topk import KINDS, dirty_mask

INF = math.inf
ZERO = 1 << 31
"""The key of a score of 0 when large scores are best."""

ROUNDS = [(0, 32), (ZERO, 31), (1 << 30, 30), (381 << 23, 23), (1021 << 21, 21), (ZERO, 10), (ZERO, 1), (ZERO, 0)]
"""Ranges of keys as (first, bits): all, halves, some of normal size, and those around zero."""

each_direction = pytest.mark.parametrize("largest", [True, False], ids=["largest", "smallest"])


def counts_of(n: int, offset: int = 0) -> Tensor:
    """Counts from an earlier call: they are added to."""
    return cases.place(torch.arange(n), offset)


def check_against_reference(arguments: cases.Inputs, device: torch.device, offset: int = 0) -> None:
    """The scores that the reference counts are computed once: it takes every tensor by itself, and there are many."""
    before = cases.clone(arguments, "cpu")
    scores = reference._scores(before["score"])
    known = {"score": Score("value", scores), "largest": arguments["largest"]}
    sizes = len(scores)

    def check(operator: str, expected: cases.Inputs) -> None:
        inputs = cases.clone(expected, device)
        getattr(reference, operator)(**expected, **known)
        getattr(ops, operator)(**inputs, **arguments)
        cases.assert_same(inputs, expected)

    few = sizes > 100
    for first, bits in ROUNDS[::4] if few else ROUNDS:
        check("count_keys_", {"counts": counts_of(2049, offset), "first": first, "bits": bits})
    for key in keys_to_try(known)[1::2] if few else keys_to_try(known):
        check("count_equal_", {"counts": counts_of(sizes, offset), "key": key})
        bits, rank = dirty_mask(scores, offset)
        ties = cases.place(torch.arange(sizes) % 5 * 3 - 1, offset)  # -1, 2, 5, 8, 11
        check("select_above_", {"bits": bits, "rank": rank, "key": key, "ties": ties})
    cases.assert_same(arguments, before)


def keys_to_try(known: cases.Inputs) -> list[int]:
    """The ends, zero, and the keys of two scores."""
    scores = [values for values in known["score"].a if values.numel()]
    found = [int(reference._keys(values.view(-1)[:1], known["largest"])) for values in (scores[:1] + scores[-1:])]
    return [0, ZERO, 2**32 - 1, *found]


@each_direction
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_criteria(shapes, criterion, largest, device):
    check_against_reference(cases.score_inputs(shapes, criterion, device) | {"largest": largest}, device)


@pytest.mark.parametrize("divisor", CRITERIA[1:])
@pytest.mark.parametrize("criterion", CRITERIA[1:])
def test_ratio_rule(criterion, divisor, device):
    arguments = cases.score_inputs(cases.MIXED, criterion, device, divisor=divisor)
    check_against_reference(arguments | {"largest": True}, device)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_misaligned_storage(criterion, offset, device):
    arguments = cases.score_inputs(cases.MIXED, criterion, device, offset, divisor="difference")
    check_against_reference(arguments | {"largest": False}, device, offset)


@each_direction
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_kinds_of_scores(kind, largest, device):
    scores = [kind(n).to(device) for n in (3000, 1, 5, 1024, 700)]
    check_against_reference({"score": Score("value", scores), "largest": largest}, device)


def test_keys_of_known_scores(device):
    """Keys by hand: the order of the scores, one key for both zeros, infinities inside the range."""
    scores = torch.tensor([-INF, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, INF], device=device)
    keys = [0x007FFFFF, 0x407FFFFF, 0x7FFFFFFE, ZERO, ZERO, 0x80000001, 0xBF800000, 0xFF800000]
    for largest in (True, False):
        for key in keys:
            counts = torch.zeros(1, dtype=torch.int64, device=device)
            wanted = key if largest else 2**32 - 1 - key
            ops.count_equal_(counts, wanted, Score("value", [scores]), largest=largest)
            assert counts.tolist() == [keys.count(key)], hex(key)


# -- together they are a selection ------------------------------------------------------------------------------------


def find_threshold(parts: list[cases.Inputs], k: int) -> tuple[int, int]:
    """The k-th best key over all parts and how many elements with that key are wanted."""
    first, bits = 0, 32
    while True:
        counts = torch.zeros(2049, dtype=torch.int64, device=parts[0]["score"].device)
        for part in parts:
            ops.count_keys_(counts, first, bits, **part)
        histogram = counts.tolist()
        shift, found = max(0, bits - 11), 2047
        while found and histogram[found] < k:
            k -= histogram[found]
            found -= 1
        first, bits = first + (found << shift), shift
        if shift == 0:
            return first, k


@each_direction
@pytest.mark.parametrize("criterion", CRITERIA)
def test_counting_over_parts_is_a_selection(criterion, largest, device):
    """Two processes' parts; the mask of each is its part of the mask over both."""
    parts = [cases.score_inputs(cases.MIXED, criterion, device) | {"largest": largest} for _ in range(2)]
    first, second = (part["score"] for part in parts)
    both = replace(first, a=first.a + second.a, b=first.b + second.b if first.b else None)
    whole = parts[0] | {"score": both}
    total = sum(a.numel() for a in whole["score"].a)
    for k in (1, 7, total // 100, total // 3, total - 1, total):
        key, left = find_threshold(parts, k)
        words = []
        for part in parts:
            ties = torch.zeros(len(part["score"].a), dtype=torch.int64, device=device)
            ops.count_equal_(ties, key, **part)
            for t, equal in enumerate(ties.tolist()):
                ties[t] = min(equal, left)
                left -= min(equal, left)
            bits, rank = dirty_mask(part["score"].a)
            ops.select_above_(bits, rank, key, ties, **part)
            words.append(bits)
        bits, rank = dirty_mask(whole["score"].a)
        ops.select_(bits, rank, k, **whole)
        cases.assert_same(torch.cat(words), bits, f"mask of {k}")


# -- NaN --------------------------------------------------------------------------------------------------------------

NANS = [0x7FC00000, -0x400000, 0x7F800001, -1, 0x7FFFFFFF]
"""Bits of NaN of both signs, the extreme ones included; as int32."""


@each_direction
def test_nan_is_counted_apart(largest, device):
    scores = [torch.randn(n, device=device) for n in (3000, 1, 40)]
    for place, bits in enumerate(NANS):
        scores[0].view(torch.int32)[place * 700] = bits
        scores[2].view(torch.int32)[place] = bits
    inputs = {"counts": counts_of(2049).to(device), "first": 0, "bits": 32, "score": Score("value", scores)}
    cases.assert_matches_reference(ops.count_keys_, reference.count_keys_, inputs | {"largest": largest})
    assert int(inputs["counts"][2048]) == 2048 + 10
    assert int(inputs["counts"].sum()) == 2048 * 2049 // 2 + 3041
    for key in (0, 2**32 - 1, *[0x7FC00000 + ZERO, 0x7F800001 + ZERO, 0x3FFFFF]):  # keys that the NaN would have
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        ops.count_equal_(counts, key, Score("value", scores), largest=largest)
        assert not counts.any()


@pytest.mark.parametrize("key", [0, ZERO, 2**32 - 1])
@pytest.mark.parametrize("nan_bits", NANS)
@each_direction
def test_nan_is_refused_by_name(nan_bits, largest, key, device):
    scores = [torch.randn(1000, device=device), torch.randn(10, device=device), torch.randn(2000, device=device)]
    scores[2].view(torch.int32)[1999] = nan_bits
    mask = dirty_mask(scores)
    before = cases.clone(list(mask))
    ties = torch.ones(3, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"a\[2\]"):
        ops.select_above_(*mask, key, ties, Score("value", scores), largest=largest)
    cases.assert_same(list(mask), before)


@pytest.mark.parametrize("criterion", [criterion for criterion in CRITERIA if SECOND_OF[criterion]])
def test_nan_made_by_the_criterion(criterion, device):
    arguments = cases.score_inputs([(2000,), (30,)], criterion, device) | {"largest": True}
    arguments["score"].a[1][29] = arguments["score"].b[1][29] = INF
    counts = torch.zeros(2049, dtype=torch.int64, device=device)
    ops.count_keys_(counts, 0, 32, **arguments)
    assert counts[2048] == 1
    bits, rank = layout.empty_mask([2000, 30], device)
    with pytest.raises(RuntimeError, match=r"a\[1\]"):
        ops.select_above_(bits, rank, ZERO, torch.zeros(2, dtype=torch.int64, device=device), **arguments)
    assert not bits.any()
