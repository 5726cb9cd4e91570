"""Where the selected weights are: density per block and per tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aimfair.selective.mask import ParameterMask
from aimfair.selective.summary import Share


@dataclass(frozen=True)
class Row:
    """A block or tensor: density for each method or statistic, and how many weights it has."""

    name: str
    numel: int
    densities: tuple[float, ...]


def blocks(masks: Mapping[str, Mapping[int, ParameterMask]]) -> list[Row]:
    """Per block, the density of each method, mean over its seeds; blocks in the order of the model."""
    return _rows([[mask.summary().blocks for mask in of_seeds.values()] for of_seeds in masks.values()])


def tensors(of_seeds: Mapping[int, ParameterMask]) -> list[Row]:
    """Per parameter tensor, the density of one method, mean over its seeds."""
    return _rows([[mask.summary().tensors for mask in of_seeds.values()]])


def agreement(of_seeds: Mapping[int, ParameterMask]) -> float | None:
    """Selected by both over selected by either (Jaccard), mean over pairs of seeds; None for less than two."""
    masks = list(of_seeds.values())
    shares = [(one & other).nnz / max((one | other).nnz, 1) for i, one in enumerate(masks) for other in masks[i + 1 :]]
    return float(np.mean(shares)) if shares else None


def _rows(shares: Sequence[Sequence[Sequence[Share]]]) -> list[Row]:
    """From shares of each method, seed and block."""
    return [
        Row(first.name, first.numel, tuple(float(np.mean([one[i].density for one in method])) for method in shares))
        for i, first in enumerate(shares[0][0])
    ]
