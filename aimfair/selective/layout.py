"""Memory layout of masks; the block size is defined here.

A mask over a list of tensors is divided into blocks of 1024 elements; every tensor begins a new block. Element i of a
tensor is bit ``i % 32`` of its 32-bit word ``i // 32``; bits past the end of a tensor are 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK = 1024
"""Elements per mask block."""

WORDS_PER_BLOCK = BLOCK // 32


def first_blocks(numels: Sequence[int]) -> list[int]:
    """Index of the first mask block of each tensor, then the number of blocks: T + 1 integers."""
    firsts = [0]
    for numel in numels:
        firsts.append(firsts[-1] + (numel + BLOCK - 1) // BLOCK)
    return firsts


def empty_mask(numels: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` of an empty mask over tensors of these sizes.

    Returns:
        bits: int32 [B * 32], zero. rank: int64 [B + 1], zero.
    """
    total = first_blocks(numels)[-1]
    bits = torch.zeros(total * WORDS_PER_BLOCK, dtype=torch.int32, device=device)
    return bits, torch.zeros(total + 1, dtype=torch.int64, device=device)
