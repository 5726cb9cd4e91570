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


def number_of_units(wanted: int | float, total: int, argument: str) -> int:
    """How many of ``total`` units an argument asks for: an int is a count, a float a share in (0, 1].

    A share s means exactly ``round(s * total)`` units.

    Raises:
        ValueError: naming ``argument``, if it is out of range or would select nothing.
    """
    if isinstance(wanted, bool) or not isinstance(wanted, int | float):
        raise ValueError(f"{argument}={wanted!r}: expected a share in (0, 1] or a whole number of units")
    if isinstance(wanted, int):
        if not 1 <= wanted <= total:
            raise ValueError(f"{argument}={wanted}: expected between 1 and the {total} units there are")
        return wanted
    if not 0.0 < wanted <= 1.0:
        raise ValueError(f"{argument}={wanted}: expected a share in (0, 1], or an int for a number of units")
    count = round(wanted * total)
    if count == 0:
        raise ValueError(f"{argument}={wanted} of {total} units selects nothing; at least {0.5 / total:.2g} is needed")
    return count


def density_or_k(density: float | None, k: int | None, total: int) -> int:
    """The number of units that exactly one of ``density`` (a share) and ``k`` (a count) asks for."""
    if (density is None) == (k is None):
        raise ValueError("give either density, a share of the units, or k, a number of units")
    if density is not None:
        return number_of_units(float(density), total, "density")
    return number_of_units(k, total, "k")  # type: ignore[arg-type]


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
