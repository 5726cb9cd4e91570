"""The exact selection of ``ops.select_`` over elements held by several processes, by counting keys.

Every process holds a run, perhaps an empty one, of every tensor; the runs of a tensor in rank order are the tensor. The
processes of the group call each function together.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.collectives import gathered, total
from aimfair.selective.layout import WORDS_PER_BLOCK, empty_mask, first_blocks
from aimfair.selective.recipe import Recipe, entry

_BINS, _BIN_BITS = 2048, 11


def top_k(recipe: Recipe, k: int, group: dist.ProcessGroup, *, largest: bool) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` over the whole tensors, the same on every process: the mask that one process would select.

    Three rounds of counting find the k-th best key; elements with just that key are taken in index order.

    Args:
        recipe: the scores of this process's runs.

    Raises:
        RuntimeError: on every process, naming the tensor, if one of them has a NaN score.
    """
    held: list[Tensor] = recipe["a"]
    sizes = gathered(torch.tensor([run.numel() for run in held], device=held[0].device), group)
    key, wanted = _threshold(recipe, k, group, largest=largest)
    equal = torch.zeros(len(held), dtype=torch.int64, device=held[0].device)
    ops.count_equal_(equal, key, **recipe, largest=largest)
    ties = _share(gathered(equal, group), wanted)[dist.get_rank(group)].contiguous()
    bits, rank = empty_mask([run.numel() for run in held], held[0].device)
    ops.select_above_(bits, rank, key, ties, **recipe, largest=largest)
    return _joined(bits, sizes, group)


def refuse_nan(recipe: Recipe, group: dist.ProcessGroup) -> None:
    """RuntimeError on every process, naming the tensor, if a process has a NaN score."""
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=recipe["a"][0].device)
    ops.count_keys_(counts, 0, 0, **recipe)
    _refuse_nan(recipe, int(total(counts[_BINS:], group)), group)


def _threshold(recipe: Recipe, k: int, group: dist.ProcessGroup, *, largest: bool) -> tuple[int, int]:
    """The k-th best key, and how many of the elements with that key belong to the k best."""
    first, bits = 0, 32
    while bits:
        counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=recipe["a"][0].device)
        ops.count_keys_(counts, first, bits, **recipe, largest=largest)
        *bins, nan = total(counts, group).tolist()
        _refuse_nan(recipe, nan, group)
        best = (1 << min(bits, _BIN_BITS)) - 1
        while best and bins[best] < k:
            k -= bins[best]
            best -= 1
        bits = max(0, bits - _BIN_BITS)
        first += best << bits
    return first, k


def _refuse_nan(recipe: Recipe, found: int, group: dist.ProcessGroup) -> None:
    if not found:
        return
    held = recipe["a"]
    counts = torch.zeros(len(held), _BINS + 1, dtype=torch.int64, device=held[0].device)
    for t, row in enumerate(counts):
        ops.count_keys_(row, 0, 0, **entry(recipe, t))
    has_nan = total(counts[:, _BINS].contiguous(), group)
    raise RuntimeError(f"a[{int(has_nan.nonzero()[0])}] has a score that is NaN")


def _share(equal: Tensor, wanted: int) -> Tensor:
    """Of ``equal`` [processes, T], the first ``wanted`` in index order: tensor by tensor, in it process by process."""
    in_order = equal.T.flatten()
    before = in_order.cumsum(0) - in_order
    return (wanted - before).clamp(min=0).minimum(in_order).view(equal.T.shape).T


def _joined(bits: Tensor, sizes: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """The mask over whole tensors from the masks over the runs of ``sizes`` [processes, T]."""
    own = dist.get_rank(group)
    numels = sizes.sum(0).tolist()
    begins = (sizes.cumsum(0) - sizes)[own].tolist()
    whole_bits, whole_rank = empty_mask(numels, bits.device)
    runs = sizes[own].tolist()
    places = zip(first_blocks(runs), first_blocks(numels), runs, begins, strict=False)
    for from_block, to_block, numel, begin in places:
        # The run shifted to its place in the word it begins in. Nobody else sets its bits, so that sums are unions.
        lead = begin % 32
        shifted = torch.zeros(lead + numel, dtype=torch.bool, device=bits.device)
        ops.unpack_bits_([shifted[lead:]], bits[from_block * WORDS_PER_BLOCK :][: _words(numel)])
        packed, packed_rank = empty_mask([lead + numel], bits.device)
        ops.pack_bits_(packed, packed_rank, [shifted])
        used = -(-(lead + numel) // 32)
        whole_bits[to_block * WORDS_PER_BLOCK + begin // 32 :][:used] = packed[:used]
    whole_bits = total(whole_bits, group)
    ops.rank_(whole_rank, whole_bits)
    return whole_bits, whole_rank


def _words(numel: int) -> int:
    return first_blocks([numel])[-1] * WORDS_PER_BLOCK
