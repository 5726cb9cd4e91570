"""Fresh random tensors, masks in every form the ways of a bench need, and windows to check results in.

Values stay far from denormals, infinities and NaN however often a step is repeated.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.layout import empty_mask, first_blocks
from bench.shapes import FLAT, MODELS, Shape, row_length, shrink

Pattern = Literal["random", "rows", "all"]

GRADIENT_SCALE = 1e-2

WINDOW_ELEMENTS = 1 << 21
"""At most this many elements of a list are checked, spread over the ends of every tensor."""


@dataclass(frozen=True)
class TensorList:
    """The shapes of a list of parameters."""

    name: str
    shapes: tuple[Shape, ...]

    @cached_property
    def numels(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    @property
    def numel(self) -> int:
        return sum(self.numels)


def tensor_list(name: str, shrink_factor: float = 1.0) -> TensorList:
    shapes = {**MODELS, **FLAT}[name]
    return TensorList(name, tuple(shapes if shrink_factor == 1.0 else shrink(shapes, shrink_factor)))


def case_id(*words: str) -> str:
    """A test id: the words in lower case, joined by dashes, only letters, digits and percent signs left of them."""
    return "-".join(re.findall(r"[a-z0-9%]+", " ".join(words).replace("/", "").lower()))


def normal(
    shapes: Sequence[Shape], device: torch.device, *, scale: float = 1.0, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [torch.empty(shape, device=device).normal_(std=scale).to(dtype) for shape in shapes]


def positive(shapes: Sequence[Shape], device: torch.device) -> list[Tensor]:
    """Uniform values of the size of squared gradients, none of them near zero."""
    return [torch.empty(shape, device=device).uniform_(0.1, 2.0).mul_(GRADIENT_SCALE**2) for shape in shapes]


def flat(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.view(-1) for tensor in tensors]


def random_bools(numel: int, density: float, device: torch.device) -> Tensor:
    """bool [numel], each True with probability ``density`` rounded to 1/65536: 16 random bits per element."""
    words = torch.empty((numel + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return words.view(torch.int16)[:numel] < round(density * 65536) - 32768


def row_bools(shape: Shape, density: float, device: torch.device) -> Tensor:
    """bool [numel]: a share of ``density`` of the rows, drawn at random. A rest shorter than a row stays False."""
    numel, length = math.prod(shape), row_length(shape)
    rows = numel // length
    selected = torch.zeros(numel, dtype=torch.bool, device=device)
    selected[: rows * length].view(rows, length)[torch.randperm(rows, device=device)[: round(density * rows)]] = True
    return selected


class Selection:
    """A mask over a list: ``bools`` flat [n[t]], and what the operators take."""

    def __init__(self, tensors: TensorList, pattern: Pattern, density: float, device: torch.device):
        self.pattern: Pattern = pattern
        self._row_lengths = [row_length(shape) for shape in tensors.shapes]
        self.density = density
        if pattern == "random":
            self.bools = [random_bools(numel, density, device) for numel in tensors.numels]
        elif pattern == "rows":
            self.bools = [row_bools(shape, density, device) for shape in tensors.shapes]
        else:
            self.bools = [torch.ones(numel, dtype=torch.bool, device=device) for numel in tensors.numels]
        self.bits, self.rank = empty_mask(tensors.numels, device)
        ops.pack_bits_(self.bits, self.rank, self.bools)
        self.first_blocks = first_blocks(tensors.numels)[:-1]
        self.nnz = [int(selected.count_nonzero()) for selected in self.bools]

    def units(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors as vectors of elements or, for a mask of rows, as matrices of rows: what ``indices`` select."""
        if self.pattern != "rows":
            return flat(tensors)
        whole = [t.numel() // length * length for t, length in zip(tensors, self._row_lengths, strict=True)]
        return [t.view(-1)[:n].view(-1, length) for t, n, length in zip(tensors, whole, self._row_lengths, strict=True)]

    @cached_property
    def indices(self) -> list[Tensor]:
        """int64: selected units of each tensor in order."""
        columns = [unit if unit.ndim == 1 else unit[:, 0] for unit in self.units(self.bools)]
        return [column.nonzero().view(-1) for column in columns]


@dataclass(frozen=True)
class Window:
    """Elements ``elements`` of tensor ``tensor``; ``compact`` is their part of a compact state."""

    tensor: int
    elements: slice
    compact: slice


def windows(numels: Sequence[int], selection: Selection | None = None) -> list[Window]:
    """Both ends of every tensor, or all of it if they would meet."""
    length = max(1, WINDOW_ELEMENTS // (2 * len(numels)))
    found = []
    for t, numel in enumerate(numels):
        ends = [(0, length), (numel - length, numel)] if numel > 2 * length else [(0, numel)]
        for start, stop in ends:
            before, within = 0, 0
            if selection is not None:
                within = int(selection.bools[t][start:stop].count_nonzero())
                before = 0 if start == 0 else selection.nnz[t] - within
            found.append(Window(t, slice(start, stop), slice(before, before + within)))
    return found


def take(tensors: Sequence[Tensor], found: list[Window], *, compact: bool = False) -> list[Tensor]:
    """Copies of the elements in the windows, one flat tensor for each."""
    return [tensors[w.tensor].view(-1)[w.compact if compact else w.elements].clone() for w in found]
