"""Units of selection (single elements, rows, whole tensors): how many there are, their scores, their elements."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import SupportsIndex, get_args

import torch
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.choices import Granularity, as_int
from aimfair.selective.layout import empty_mask
from aimfair.selective.parameters import Shape
from aimfair.selective.score import Score


def unit_counts(shapes: Sequence[Shape], granularity: Granularity) -> list[int]:
    """Units of each tensor; an empty tensor has none."""
    if granularity not in get_args(Granularity):
        raise ValueError(f"granularity is {granularity!r}, expected one of {', '.join(get_args(Granularity))}")
    counts = []
    for shape in shapes:
        numel = math.prod(shape)
        if granularity == "tensor":
            counts.append(min(numel, 1))
        else:
            counts.append(shape[0] if granularity == "row" and len(shape) >= 2 and numel else numel)
    return counts


def number_of_units(density: float | None, k: SupportsIndex | None, total: int, of: str = "") -> int:
    """The number of units that exactly one of ``density`` and ``k`` asks for.

    Args:
        density: share in (0, 1] of the ``total`` units, rounded to ``round(density * total)``.
        k: number of units, from 1 to ``total``.
        of: prefix of the two arguments in errors, such as ``bias_``.

    Raises:
        ValueError: naming the argument, if both or neither are given, it is out of range, or it selects nothing.
    """
    if (density is None) == (k is None):
        raise ValueError(f"give either {of}density, a share of the units, or {of}k, a number of units")
    if density is None:
        number = as_int(k)
        if type(number) is not int or not 1 <= number <= total:
            raise ValueError(f"{of}k={number!r}: expected between 1 and the {total} units there are, as an integer")
        return number
    if isinstance(density, bool) or not isinstance(density, (int, float)) or not 0.0 < density <= 1.0:
        raise ValueError(f"{of}density={density!r}: expected a share in (0, 1]; for a number of units give {of}k")
    count = round(density * total)
    if count == 0:
        raise ValueError(
            f"{of}density={density} of {total} units selects nothing; at least {0.5 / total:.2g} is needed"
        )
    return count


def select_units(
    scores: list[Tensor], k: int, shapes: Sequence[Shape], granularity: Granularity
) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` over tensors of these shapes: the elements of the ``k`` best-scored units.

    Args:
        scores: one float32 tensor per shape, with as many elements as it has units.
    """
    bits, rank = empty_mask([score.numel() for score in scores], scores[0].device)
    ops.select_(bits, rank, k, Score("value", scores))
    return expand_units(bits, rank, shapes, granularity)


def at_least(score: Score, threshold: float, *, largest: bool) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` of the scores that are at least ``threshold``, or at most unless ``largest``."""
    bits, rank = empty_mask(score.numels, score.device)
    key = ops.threshold_key(threshold, largest=largest)
    every = torch.tensor(score.numels, dtype=torch.int64, device=score.device)
    ops.select_above_(bits, rank, key, every, score, largest=largest)
    return bits, rank


def expand_units(
    bits: Tensor, rank: Tensor, shapes: Sequence[Shape], granularity: Granularity
) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` over the elements of tensors of these shapes, given those over their units."""
    if granularity == "element":
        return bits, rank
    numels = [math.prod(shape) for shape in shapes]
    element_bits, element_rank = empty_mask(numels, bits.device)
    ops.expand_units_(element_bits, element_rank, bits, numels, unit_counts(shapes, granularity))
    return element_bits, element_rank


def unit_scores(score: Score, counts: Sequence[int]) -> list[Tensor]:
    """float32 [counts[t]] scores of the units of each tensor t: the mean score of their elements, or their cosine.

    The cosine of two sources is 1 - cos(mean g_A, mean g_B) over the elements of a unit, computed as half the squared
    distance of the two directions, which is equal and stays accurate where they nearly agree. A unit whose mean
    gradient is zero has no direction: it scores 1 if that is so in one source, as at a right angle, and 0 if in both. A
    unit of a single element scores 0 or 2. With a cosine, the scores of units are divided, not those of elements.

    The same bits for any number of threads, and for rows for any number of processes.

    Raises:
        RuntimeError: "a[t] has a score that is NaN" (or is not finite, for a cosine).
    """
    if not score.has_cosine:
        return _means_of_elements(score, counts)
    scores, *divisors = (
        _cosines(part, counts) if part.criterion == "cosine" else _means_of_elements(part, counts)
        for part in score.parts
    )
    for divisor in divisors:
        scores = [x / (y + score.eps) for x, y in zip(scores, divisor, strict=True)]
    return scores


def nan_checks(score: Score) -> list[Score]:
    """Scores of elements that are NaN where ``score`` cannot be computed: for a cosine, where a sum is not finite."""
    if not score.has_cosine:
        return [score]
    return [replace(part, criterion="relative_difference", b=part.b or part.a) for part in score.parts]


def _means_of_elements(score: Score, counts: Sequence[int]) -> list[Tensor]:
    scores = [torch.empty(count, device=a.device) for count, a in zip(counts, score.a, strict=True)]
    ops.unit_scores_(scores, score)
    return scores


def _cosines(score: Score, counts: Sequence[int]) -> list[Tensor]:
    assert score.b is not None
    return [_cosine(t, *pair) for t, pair in enumerate(zip(score.a, score.b, counts, strict=True))]


def _cosine(t: int, a: Tensor, b: Tensor, count: int) -> Tensor:
    """[count] cosines of flat [n] sums of gradients, which need no scale."""
    if not count:
        return torch.empty(0, device=a.device)
    if not (a.isfinite().all() and b.isfinite().all()):
        raise RuntimeError(f"a[{t}] has a score that is NaN")
    (u, has_u), (v, has_v) = _directions(a.view(count, -1)), _directions(b.view(count, -1))
    length = u.shape[1]
    score = (_means((u - v).square_()) * (length / 2)).clamp_(max=2.0)
    return torch.where(has_u == has_v, score, 1.0)


def _directions(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``(directions, has_direction)`` of [U, n] rows: of length 1, or zero."""
    # A power of two per row: nothing is rounded, and no square overflows or vanishes.
    exponents = torch.frexp(rows.abs().amax(1, keepdim=True)).exponent.clamp_(min=-126)
    rows = torch.ldexp(rows, -exponents)
    lengths = (_means(rows.square()) * rows.shape[1]).sqrt_()
    has_direction = lengths > 0
    return torch.where(has_direction[:, None], rows / lengths[:, None], 0.0), has_direction


def _means(rows: Tensor) -> Tensor:
    """float32 [U] means of [U, n], summed in float64 in a fixed order."""
    means = torch.empty(len(rows), device=rows.device)
    ops.unit_scores_([means], Score("value", [rows.view(-1)]))
    return means
