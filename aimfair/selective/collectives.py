"""What the processes of a group compute together: agreement, sums, and the exact top-k.

All processes of the group call each function.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from aimfair.selective import ops, units
from aimfair.selective.layout import WORDS_PER_BLOCK, empty_mask, first_blocks
from aimfair.selective.score import Score
from aimfair.selective.segments import Segments

Groups = Iterable[dist.ProcessGroup | None]
"""Groups that this process is in; None is all processes."""


def several_processes() -> bool:
    """Whether this process is one of several of a ``torch.distributed`` job."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered_objects(value: Any, groups: Groups) -> dict[int, Any]:
    """Rank -> its ``value``, ascending. Given the groups of a device mesh, one per dimension: of the whole mesh.

    Raises:
        ValueError: this process is not in a group.
    """
    known = {dist.get_rank(): value}
    for group in groups:
        if dist.get_rank(group) < 0:
            raise ValueError(f"process {dist.get_rank()} is not in the group")
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, known, group=group)
        known = {rank: value for part in parts for rank, value in part.items()}
    return dict(sorted(known.items()))


def require_same(call: str, described: Mapping[str, Any], groups: Groups) -> None:
    """Raises in all processes if they describe a call differently, so that none waits for one that raised alone.

    Args:
        call: name of the collective call; it must be the same too.
        described: JSON-serializable values; the order of dict keys does not matter.

    Raises:
        ValueError: on every process, with the first key that differs and what two of them have.
    """
    texts = {"the call": call, **{key: _text(value) for key, value in described.items()}}
    found_by_rank = gathered_objects(texts, groups)
    first, expected = next(iter(found_by_rank.items()))
    for rank, found in found_by_rank.items():
        for key, text in expected.items():
            if found.get(key) != text:
                raise ValueError(
                    f"{call}: the processes differ in {key}: rank {first} has {text}, rank {rank} has {found.get(key)}"
                )


def _text(value: Any) -> str:
    """JSON; long values are cut and get a digest."""
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 100 else f"{text[:50]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def gathered(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[processes, ...]: the tensors of all processes, which have the same shape."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.stack(parts)


def concatenated(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The flat tensors of all processes, of any sizes, concatenated in rank order."""
    sizes = gathered(torch.tensor(values.numel(), device=values.device), group).tolist()
    padded = values.new_zeros(max(sizes))
    padded[: values.numel()] = values
    return torch.cat([part[:size] for part, size in zip(gathered(padded, group), sizes, strict=True)])


def total(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over the processes."""
    values = values.clone()
    dist.all_reduce(values, group=group)
    return values


def sum_in_place(values: Tensor, group: dist.ProcessGroup | None) -> None:
    """Leaves the sum over the processes in all of them, bit-identical on any backend: one process adds."""
    dist.reduce(values, group=group, group_dst=0)
    dist.broadcast(values, group=group, group_src=0)


# -- the exact top-k over elements held by several processes, by counting keys -------------------------------

_BINS, _BIN_BITS = 2048, 11
"""Bins of a histogram of ``ops.count_keys_``."""


def top_k(score: Score, k: int, group: dist.ProcessGroup, *, largest: bool) -> tuple[Tensor, Tensor]:
    """``(bits, rank)`` over the whole tensors, the same on every process: the mask that one process would select.

    Three rounds of counting find the k-th best key; elements with exactly that key are taken in index order.

    Args:
        score: over the run of every tensor that this process holds, which may be empty; the runs of a tensor in rank
            order are the tensor.

    Raises:
        RuntimeError: on every process, naming the tensor, if one of them has a NaN score.
    """
    sizes = gathered(torch.tensor(score.numels, device=score.device), group)
    key, wanted = _threshold(score, k, group, largest=largest)
    equal = torch.zeros(len(score.a), dtype=torch.int64, device=score.device)
    ops.count_equal_(equal, key, score, largest=largest)
    ties = _share(gathered(equal, group), wanted)[dist.get_rank(group)].contiguous()
    bits, rank = empty_mask(score.numels, score.device)
    ops.select_above_(bits, rank, key, ties, score, largest=largest)
    return _joined(bits, sizes, group)


def top_in(score: Score, segments: Segments, group: dist.ProcessGroup, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The same of the best in every segment by itself.

    Rows are selected by the process that holds them; a selection of several processes is made for every other segment.

    Args:
        segments: over the whole tensors. The runs of a tensor that is cut into several are rows, whole in a process.
    """
    refuse_nan(score, group)
    numels = total(torch.tensor(score.numels, device=score.device), group).tolist()
    bits, rank = empty_mask(numels, score.device)
    places = first_blocks(numels)

    def put(members: list[int], selected: Tensor) -> None:
        for t, first in zip(members, first_blocks([numels[t] for t in members]), strict=False):
            words = (places[t + 1] - places[t]) * WORDS_PER_BLOCK
            bits[places[t] * WORDS_PER_BLOCK :][:words] = selected[first * WORDS_PER_BLOCK :][:words]

    cut = [t for t, runs in enumerate(segments.runs) if runs > 1]
    if cut:
        put(cut, _top_of_runs(score.entries(cut), [segments.lengths[t] for t in cut], [segments.ks[t] for t in cut],
                              group, largest=largest))  # fmt: skip
    for members in segments.members:
        if segments.ks[members[0]] and members[0] not in cut:
            put(members, top_k(score.entries(members), segments.ks[members[0]], group, largest=largest)[0])
    ops.rank_(rank, bits)
    return bits, rank


def at_least(score: Score, threshold: float, group: dist.ProcessGroup, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The same of the scores that are at least ``threshold``, or at most unless ``largest``."""
    refuse_nan(score, group)
    sizes = gathered(torch.tensor(score.numels, device=score.device), group)
    return _joined(units.at_least(score, threshold, largest=largest)[0], sizes, group)


def _top_of_runs(score: Score, lengths: list[int], ks: list[int], group: dist.ProcessGroup, *, largest: bool) -> Tensor:
    """The bits over whole tensors of the best in each of their runs."""
    sizes = gathered(torch.tensor(score.numels, device=score.device), group)
    bits, rank = empty_mask(score.numels, score.device)
    runs = [numel // length for numel, length in zip(score.numels, lengths, strict=True)]
    ks = [k if run else 0 for k, run in zip(ks, runs, strict=True)]
    ops.select_segments_(bits, rank, runs, ks, score, largest=largest)
    return _joined(bits, sizes, group)[0]


def refuse_nan(score: Score, group: dist.ProcessGroup) -> None:
    """RuntimeError on every process, naming the tensor, if a process has a NaN score."""
    counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=score.device)
    ops.count_keys_(counts, 0, 0, score)
    _refuse_nan(score, int(total(counts[_BINS:], group)), group)


def _threshold(score: Score, k: int, group: dist.ProcessGroup, *, largest: bool) -> tuple[int, int]:
    """The k-th best key, and how many of the elements with that key belong to the k best."""
    first, bits = 0, 32
    while bits:
        counts = torch.zeros(_BINS + 1, dtype=torch.int64, device=score.device)
        ops.count_keys_(counts, first, bits, score, largest=largest)
        *bins, nan = total(counts, group).tolist()
        _refuse_nan(score, nan, group)
        best = (1 << min(bits, _BIN_BITS)) - 1
        while best and bins[best] < k:
            k -= bins[best]
            best -= 1
        bits = max(0, bits - _BIN_BITS)
        first += best << bits
    return first, k


def _refuse_nan(score: Score, found: int, group: dist.ProcessGroup) -> None:
    if not found:
        return
    counts = torch.zeros(len(score.a), _BINS + 1, dtype=torch.int64, device=score.device)
    for t, row in enumerate(counts):
        ops.count_keys_(row, 0, 0, score.entry(t))
    has_nan = total(counts[:, _BINS].contiguous(), group)
    raise RuntimeError(f"a[{int(has_nan.nonzero()[0])}] has a score that is NaN")


def _share(equal: Tensor, wanted: int) -> Tensor:
    """How many of ``equal`` [processes, T] are among the first ``wanted``, ordered by tensor, then by process."""
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
        # The run, shifted to its place in its first word. No other process sets these bits, so a sum is a union.
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
