"""How far the mean gradients of two sources point apart, per unit: 1 - cos(mean g_A, mean g_B).

Computed as half the squared distance of the two directions, which is the same and stays exact where they nearly agree.
A unit whose mean gradient is zero has no direction: the score is 1 where that is so in one source, as at a right angle,
and 0 where it is so in both. A unit of a single element scores 0 or 2, whether signs agree or not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.recipe import Recipe, parts

CRITERION = "cosine"


def is_of(recipe: Recipe) -> bool:
    """Whether the score or its divisor is the cosine, which elements do not have."""
    return CRITERION in (recipe["criterion"], recipe.get("divisor_criterion"))


def finiteness(recipe: Recipe) -> list[Recipe]:
    """Scores of elements that are NaN where a statistic is not finite, for those who must know before they begin."""
    return [{**part, "criterion": "relative_difference", "b": part["b"] or part["a"]} for part in parts(recipe)]


def unit_scores(recipe: Recipe, counts: Sequence[int]) -> list[Tensor]:
    """float32 [counts[t]] for each tensor t; a divisor divides the scores of units, not of elements.

    The same bits on any number of threads, and for rows on any number of processes.

    Raises:
        RuntimeError: "a[t] has a score that is NaN", of a statistic that is not finite.
    """
    score, *divisor = (_scores(part, counts) for part in parts(recipe))
    for below in divisor:
        score = [x / (y + recipe["eps"]) for x, y in zip(score, below, strict=True)]
    return score


def _scores(recipe: Recipe, counts: Sequence[int]) -> list[Tensor]:
    if recipe["criterion"] == CRITERION:
        return [_cosine(t, *pair) for t, pair in enumerate(zip(recipe["a"], recipe["b"], counts, strict=True))]
    scores = [torch.empty(count, device=a.device) for count, a in zip(counts, recipe["a"], strict=True)]
    ops.unit_scores_(scores, **recipe)
    return scores


def _cosine(t: int, a: Tensor, b: Tensor, count: int) -> Tensor:
    """Of flat [n] sums of gradients, cut into ``count`` units; how many batches they are sums of has no meaning."""
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
    ops.unit_scores_([means], "value", [rows.view(-1)])
    return means
