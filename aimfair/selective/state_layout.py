"""Optimizer state of a parameter: dense (its shape) or compact (its selected elements, in index order).

Of a sharded parameter, dense state is a DTensor that is sharded like it, as in torch's optimizers; compact state is a
plain tensor of the selected elements that this process holds.
"""

import torch
from torch import Tensor

from aimfair.selective.matching import Slot
from aimfair.selective.sharding import local, placed_like


def zeros(parameter: Tensor, slot: Slot, compact: bool) -> Tensor:
    """A new float32 state tensor."""
    if compact and slot.mask is not None:
        return torch.zeros(slot.nnz, dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)


def take(values: Tensor, slot: Slot, compact: bool) -> Tensor:
    """A float32 copy of ``values``, in the shape of the parameter, in the layout asked for."""
    if compact and (selected := slot.selected()) is not None:
        return local(values)[selected.to(values.device)].float()
    return values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def convert(state: Tensor, parameter: Tensor, slot: Slot, compact: bool, background: Tensor | None = None) -> Tensor:
    """A copy of a state tensor of either layout in the layout asked for, on the parameter's device, in float32.

    Args:
        background: what unselected elements of a dense result are where ``state`` does not hold them; default 0.

    Raises:
        ValueError: naming the parameter, if the size of ``state`` is that of neither layout.
    """
    state = state.detach().to(parameter.device, torch.float32)
    if state.numel() == parameter.numel():
        return take(placed_like(parameter, slot.name, state), slot, compact)
    if state.numel() != slot.nnz:
        raise ValueError(
            f"state of {slot.name!r} has {state.numel()} values, expected {parameter.numel()} (dense)"
            f" or {slot.nnz} (compact)"
        )
    if compact or (selected := slot.selected()) is None:
        return state.reshape(-1).clone()
    dense = (
        torch.zeros_like(parameter, dtype=torch.float32) if background is None else background.detach().float().clone()
    )
    local(dense).masked_scatter_(selected.to(dense.device), state)
    return dense
