"""Units of selection: single elements, rows, or whole tensors."""

import math
from collections.abc import Sequence
from typing import get_args

from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.choices import Granularity
from aimfair.selective.layout import empty_mask
from aimfair.selective.parameters import Shape


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


def number_of_units(density: float | None, k: int | None, total: int, of: str = "") -> int:
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
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= total:
            raise ValueError(f"{of}k={k!r}: expected between 1 and the {total} units there are")
        return k
    if isinstance(density, bool) or not 0.0 < density <= 1.0:
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
    ops.select_(bits, rank, k, "value", scores)
    return expand_units(bits, rank, shapes, granularity)


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
