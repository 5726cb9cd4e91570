"""The floor model: the bytes an operator must move between memory and chip, whatever its implementation.

Memory moves in sectors, 64 bytes on a CPU (a cache line) and 32 on a GPU. A stream that is read and written counts
twice, a sector is moved whole if the mask selects anything in it, mask bits are read once, and caches hold nothing
between calls. Rank directory, step counters and tables of pointers are left out: under 1%.

GB/s in the bench table is this count over the measured time; a kernel that moves more than it must shows as a lower
share of the copy bandwidth. In-place work on a CPU can exceed 100%: a copy also reads the cache lines it overwrites,
which its bandwidth (bytes read plus bytes written) does not count.
"""

import torch
from torch import Tensor

SECTOR_BYTES = {"cpu": 64, "cuda": 32}

_WORDS = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def touched_elements(bits: Tensor, element_size: int) -> int:
    """Elements in the sectors of a stream (``element_size`` bytes each) in which the mask selects something.

    A sector holds 8, 16 or 32 elements, so it is selected where a word of that many mask bits is not zero.
    """
    per_sector = SECTOR_BYTES[bits.device.type] // element_size
    return int(bits.view(_WORDS[per_sector]).count_nonzero()) * per_sector


def step_bytes(
    numel: int,
    bits: Tensor | None,
    nnz: int,
    element_size: int,
    *,
    dense_states: int,
    compact_states: int,
    compact_state_size: int = 4,
) -> int:
    """One masked step: parameter and dense states read and written, gradient read, compact states read and written.

    Args:
        numel, nnz: elements in all, selected elements.
        bits: int32 mask words, None = every element.
        element_size: bytes of a parameter or gradient element; dense state is float32.
        compact_state_size: bytes of a value of compact state.
        dense_states, compact_states: state tensors per parameter of either layout.
    """

    def touched(size: int) -> int:
        return numel if bits is None else min(numel, touched_elements(bits, size))

    mask = 0 if bits is None else bits.nbytes
    dense = 8 * dense_states * touched(4) if dense_states else 0
    return mask + 3 * element_size * touched(element_size) + dense + 2 * compact_state_size * compact_states * nnz


def accumulate_bytes(numel: int, element_size: int, *, accumulators: int, zero_grads: bool) -> int:
    """Gradient read (and written if it is zeroed), every float32 accumulator read and written."""
    return numel * (element_size * (1 + zero_grads) + 8 * accumulators)


def select_bytes(numel: int, *, accumulators: int) -> int:
    """Every float32 accumulator read once, one mask bit per element written."""
    return numel * 4 * accumulators + numel // 8
