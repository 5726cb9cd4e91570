"""What the processes of a group tell each other; they call each function together."""

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    """Whether this process is one of several of a ``torch.distributed`` job."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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
