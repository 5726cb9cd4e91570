"""What the processes of a group tell each other; they call each function together."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Groups = Iterable[dist.ProcessGroup | None]
"""Groups that this process is in; None is all processes."""


def several_processes() -> bool:
    """Whether this process is one of several of a ``torch.distributed`` job."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def told_by_all(told: Any, groups: Groups) -> dict[int, Any]:
    """Rank -> what it tells, ascending. Of the groups of a device mesh, one per dimension: of the whole mesh.

    Raises:
        ValueError: this process is not in a group.
    """
    known = {dist.get_rank(): told}
    for group in groups:
        if dist.get_rank(group) < 0:
            raise ValueError(f"process {dist.get_rank()} is not in the group")
        parts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(parts, known, group=group)
        known = {rank: value for part in parts for rank, value in part.items()}
    return dict(sorted(known.items()))


def require_same(call: str, described: Mapping[str, Any], groups: Groups) -> None:
    """Refuses what the processes do not describe alike, on all of them, so that none waits for one that raised alone.

    Args:
        call: what they are about to do together; it must be the same too.
        described: values that JSON can hold. The order of the keys of a dict in them does not count.

    Raises:
        ValueError: on every process, with the first key that differs and what two of them have.
    """
    texts = {"the call": call, **{key: _text(value) for key, value in described.items()}}
    told = told_by_all(texts, groups)
    first, expected = next(iter(told.items()))
    for rank, found in told.items():
        for key, text in expected.items():
            if found.get(key) != text:
                raise ValueError(
                    f"{call}: the processes differ in {key}: rank {first} has {text}, rank {rank} has {found.get(key)}"
                )


def _text(value: Any) -> str:
    """JSON, of long values the beginning and a digest."""
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 100 else f"{text[:50]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


def gathered(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[processes, ...] the tensors of all processes, which are of one shape."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.stack(parts)


def concatenated(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The flat tensors of all processes, of any sizes, one after the other in rank order."""
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
    """Leaves the sum over the processes in all of them, to the same bit whatever the backend: one of them adds."""
    dist.reduce(values, group=group, group_dst=0)
    dist.broadcast(values, group=group, group_src=0)
