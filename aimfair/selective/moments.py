"""The formats of optimizer moments in 32, 16 and 8 bits, in plain torch, as in csrc/include/aimfair/moments.h.

A step computes in float32 and rounds what it keeps for the next one. Rounding is stochastic, up or down in proportion
to the distance: a moving average that changes by less than the distance of two representable values still follows its
mean, which rounding to nearest would freeze.

- 32 bits: float32.
- 16 bits: bfloat16.
- 8 bits: a few upper bits of the float32, relative to the largest of its block. A block is that of the mask: 1024
  elements of the tensor, of which the selected ones count. ``exp_avg`` and ``momentum_buffer`` keep the sign and 7
  bits, 3 of them of the mantissa; ``exp_avg_sq`` keeps its square root in 8 bits, 4 of the mantissa. Both span 16
  powers of two. What is smaller becomes 0; a root that is not 0 stays above 0, so that no step is divided by ``eps``
  alone. A NaN or an infinity is the largest of its block, and makes the others its smallest. Squaring a rounded root
  adds the variance of its rounding: in training, some 2% of ``exp_avg_sq``.

In memory an 8-bit moment is uint8: for each block of the tensor a base of two bytes (little-endian), then one code per
element or, with compact state, per selected element. Dense codes of unselected elements mean nothing: the base of their
block follows the selected ones.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aimfair.selective.layout import BLOCK

MomentBits = Literal[32, 16, 8]
"""Bits of one value of a moment."""

DTYPES: dict[int, torch.dtype] = {32: torch.float32, 16: torch.bfloat16, 8: torch.uint8}

NEAREST = 1 << 15
"""In place of 16 random bits: rounds to nearest, halves up."""

_BASE_BYTES = 2
_QUIET_NAN = 0x7FC00000


@dataclass(frozen=True)
class _Format:
    """Of the magnitude of an 8-bit code: how many lower bits of the float32 are dropped, and the largest code."""

    shift: int
    largest: int


_SIGNED, _ROOT = _Format(20, 127), _Format(19, 255)


def length(dtype: torch.dtype, numel: int, values: int) -> int:
    """Elements of the state tensor of a parameter of ``numel`` elements that keeps ``values`` of them."""
    return values + (_BASE_BYTES * _blocks(numel) if dtype == torch.uint8 else 0)


def read(state: Tensor, numel: int, elements: Tensor, slots: Tensor, *, root: bool) -> Tensor:
    """float32 values of a moment.

    Args:
        state: flat; float32, bfloat16 or uint8.
        numel: of the parameter.
        elements: int64 [n], places of the values in the parameter.
        slots: int64 [n], their places in the state: ``elements``, or with compact state 0, 1, 2, ...
        root: whether the moment is ``exp_avg_sq``.
    """
    if state.dtype != torch.uint8:
        return state[slots].float()
    bases, codes = _parts(state, numel)
    form, code = _ROOT if root else _SIGNED, codes[slots].long()
    magnitude = code & form.largest
    bits = torch.where(magnitude > 0, (magnitude + bases[elements // BLOCK]) << form.shift, 0)
    if root:
        values = _floats(bits)
        return values * values
    return _floats(bits | (code & 128) << 24)


def write(
    state: Tensor, numel: int, elements: Tensor, slots: Tensor, values: Tensor, random: Tensor | int, *, root: bool
) -> None:
    """Rounds float32 values and writes them to a moment; all that belongs to a block is given. Args as in :func:`read`.

    Args:
        random: int64 [n] in [0, 65536), or :data:`NEAREST`. float32 state needs none.
    """
    if state.dtype == torch.float32:
        state[slots] = values
        return
    if state.dtype == torch.bfloat16:
        state[slots] = _floats(_sign(values) | (_magnitude(values) + random) >> 16 << 16).bfloat16()
        return
    bases, codes = _parts(state, numel)
    form, values = (_ROOT, values.double().sqrt().float()) if root else (_SIGNED, values)
    rounded = (_magnitude(values) + (random << (form.shift - 16))) >> form.shift
    blocks = elements // BLOCK
    largest = torch.full((_blocks(numel),), -1, dtype=torch.int64, device=state.device)
    largest.scatter_reduce_(0, blocks, rounded, "amax")
    bases = torch.where(largest >= 0, (largest - form.largest).clamp(min=0), bases)
    if root:
        codes[slots] = torch.minimum((rounded - bases[blocks]).clamp(min=1), rounded).to(torch.uint8)
    else:
        codes[slots] = ((rounded - bases[blocks]).clamp(min=0) | _sign(values) >> 24).to(torch.uint8)
    state[: _BASE_BYTES * len(bases)] = torch.stack([bases & 255, bases >> 8], dim=1).flatten().to(torch.uint8)


def _blocks(numel: int) -> int:
    return -(-numel // BLOCK)


def _parts(state: Tensor, numel: int) -> tuple[Tensor, Tensor]:
    """int64 bases of the blocks (a copy), and the codes."""
    size = _BASE_BYTES * _blocks(numel)
    low, high = state[:size].long().view(-1, _BASE_BYTES).unbind(1)
    return low | high << 8, state[size:]


def _bits(values: Tensor) -> Tensor:
    return torch.where(values.isnan(), _QUIET_NAN, values.view(torch.int32).long() & 0xFFFFFFFF)


def _sign(values: Tensor) -> Tensor:
    return _bits(values) & 0x80000000


def _magnitude(values: Tensor) -> Tensor:
    return _bits(values) & 0x7FFFFFFF


def _floats(bits: Tensor) -> Tensor:
    """float32 of int64 bits."""
    return torch.where(bits >> 31 > 0, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)
