"""A masked optimizer's parameters: which part of which mask governs each, and the layout of its state.

State is dense (in the shape of the parameter) or compact (its selected elements, in index order). Of a sharded
parameter, dense state is a DTensor sharded like it, as in torch's optimizers; compact state is a plain tensor of the
selected elements that this process holds. 8-bit moments of either layout are plain, flat tensors of what this process
holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from aimfair.selective import moments
from aimfair.selective.collectives import require_same
from aimfair.selective.distributed import groups_of, is_dtensor, local, part_of_mask, placed_like, shard_of
from aimfair.selective.layout import first_blocks
from aimfair.selective.mask import ParameterMask
from aimfair.selective.moments import MomentBits
from aimfair.selective.parameters import canonical_name, listing, require_tunable

ParamGroup = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """Place of one parameter in a mask.

    Attributes:
        name: of the parameter, or its position if it has none.
        mask: None selects every element. For a DTensor, over the part of the parameter that this process holds.
        first_block: index of the parameter's first block in the mask; without a mask, in the list of all parameters
            without one, so that stochastic rounding draws different numbers for each.
        nnz: selected elements in this process.
        tuned: whether any process has selected an element of the parameter.
        place: (rank, number) of this process among those that hold the parameter together.
    """

    name: str
    mask: ParameterMask | None
    first_block: int
    nnz: int
    tuned: bool
    place: tuple[int, int] = (0, 1)

    def selected(self) -> Tensor | None:
        """bool tensor of the selected elements held here, None for all."""
        return self.mask.bool_of(self.name) if self.mask is not None else None


def match(groups: Sequence[ParamGroup], mask: ParameterMask | None, first_block: int = 0) -> dict[Tensor, Slot]:
    """A slot for each parameter of these groups that the mask governs.

    Named parameters ("param_names", from ``named_parameters()``) are matched by name; the mask may hold others, and a
    parameter that it does not hold must not require a gradient. Plain parameters are matched by order and shape over
    all groups: all of them, or those that require a gradient, must be exactly the mask's list.

    Args:
        first_block: where to begin counting blocks without a mask.

    Raises:
        TypeError, ValueError: naming the parameters that do not match, or that the kernels cannot tune; on every
            process, if those that hold DTensors together have different masks.
    """
    parameters = list(chain.from_iterable(group["params"] for group in groups))
    if meshes := groups_of(parameters):
        # First: if only one of two masks is refused below, the other process would wait forever.
        require_same("masked optimizer", {"the mask": None if mask is None else mask.digest}, meshes)
    names = list(chain.from_iterable(group.get("param_names", ()) for group in groups))
    if mask is None:
        names = [canonical_name(name) for name in names] or [f"parameter {i}" for i in range(len(parameters))]
        blocks = first_blocks([parameter.numel() for parameter in parameters])
        slots = {
            parameter: Slot(name, None, first_block + block, parameter.numel(), parameter.numel() > 0)
            for name, parameter, block in zip(names, parameters, blocks, strict=False)
        }
    elif names:
        slots = _match_names(zip(_names_in(mask, names), parameters, strict=True), mask)
    else:
        slots = _match_order(parameters, mask)
    require_tunable((slot.name, parameter) for parameter, slot in slots.items())
    return _held_here(slots, mask)


def _held_here(slots: dict[Tensor, Slot], mask: ParameterMask | None) -> dict[Tensor, Slot]:
    """The slots, those of sharded parameters over the part that this process holds."""
    shards = {parameter: shard_of(slot.name, parameter) for parameter, slot in slots.items() if is_dtensor(parameter)}
    shards = {parameter: shard for parameter, shard in shards.items() if shard.group}
    if not shards:
        return slots
    part = None if mask is None else part_of_mask(mask, {slots[parameter].name: parameter for parameter in shards})
    for number, (parameter, shard) in enumerate(shards.items()):
        first_block, nnz = slots[parameter].first_block, shard.end - shard.begin
        if part is not None:
            first_block, nnz = part.first_blocks[number], part.nnz_per_tensor[number]
        slots[parameter] = replace(slots[parameter], mask=part, first_block=first_block, nnz=nnz, place=shard.place)
    return slots


def _names_in(mask: ParameterMask, names: Iterable[str]) -> list[str]:
    """The names without the prefix of a data-parallel wrapper, unless the mask has it too."""
    plain = [canonical_name(name) for name in names]
    wrapped = all(name.startswith("module.") for name in plain) and not any(name in mask.index for name in plain)
    return [name.removeprefix("module.") for name in plain] if wrapped else plain


def _match_names(named: Iterable[tuple[str, Tensor]], mask: ParameterMask) -> dict[Tensor, Slot]:
    slots, unknown = {}, []
    for name, parameter in named:
        index = mask.index.get(name)
        if index is None:
            if parameter.requires_grad:
                unknown.append(name)
        elif mask.shapes[index] != tuple(parameter.shape):
            raise ValueError(f"{name!r} has shape {tuple(parameter.shape)}, in the mask it is {mask.shapes[index]}")
        else:
            slots[parameter] = _slot(mask, index)
    if unknown:
        raise ValueError(
            f"not in the mask: {listing(unknown)}; freeze them (requires_grad=False), or give them a group of their own"
            ' with "mask": None, which tunes every element'
        )
    return slots


def _match_order(parameters: Sequence[Tensor], mask: ParameterMask) -> dict[Tensor, Slot]:
    for candidates in (parameters, [parameter for parameter in parameters if parameter.requires_grad]):
        if [tuple(parameter.shape) for parameter in candidates] == list(mask.shapes):
            return {parameter: _slot(mask, index) for index, parameter in enumerate(candidates)}
    pairs = zip(parameters, mask.names, mask.shapes, strict=False)
    differing = (f"; {name!r} is {s}, found {tuple(p.shape)}" for p, name, s in pairs if tuple(p.shape) != s)
    raise ValueError(
        f"{len(parameters)} parameters do not match the mask's {len(mask.names)} by order and shape"
        f"{next(differing, '')}; pass model.named_parameters() to match by name"
    )


def _slot(mask: ParameterMask, index: int) -> Slot:
    nnz = mask.nnz_per_tensor[index]
    return Slot(mask.names[index], mask, mask.first_blocks[index], nnz, nnz > 0)


# -- layout of the state ------------------------------------------------------------------------------


def zeros(parameter: Tensor, slot: Slot, compact: bool, bits: MomentBits) -> Tensor:
    """A new moment."""
    dtype, compact = moments.DTYPES[bits], compact and slot.mask is not None
    if bits == 8:
        return torch.zeros(_length_of_8_bits(parameter, slot, compact), dtype=dtype, device=parameter.device)
    if compact:
        return torch.zeros(slot.nnz, dtype=dtype, device=parameter.device)
    return torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)


def _length_of_8_bits(parameter: Tensor, slot: Slot, compact: bool) -> int:
    numel = local(parameter).numel()
    return moments.length(torch.uint8, numel, slot.nnz if compact else numel)


def take(values: Tensor, slot: Slot, compact: bool) -> Tensor:
    """A float32 copy, in the given layout, of ``values``, which are in the shape of the parameter."""
    if compact and (selected := slot.selected()) is not None:
        return local(values)[selected.to(values.device)].float()
    return values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def convert_moment(
    state: Tensor, parameter: Tensor, slot: Slot, compact: bool, bits: MomentBits, *, root: bool
) -> Tensor:
    """A copy of a moment of any layout and precision in the given ones, rounded to nearest.

    Args:
        root: whether the moment is ``exp_avg_sq``.

    Raises:
        ValueError: as :func:`convert`.
    """
    if state.dtype == torch.uint8:
        state = state.detach().to(parameter.device)
        if bits == 8 and state.numel() == _length_of_8_bits(parameter, slot, compact):
            return state.clone()
        state = _from_8_bits(state, parameter, slot, root=root)
    values = convert(state, parameter, slot, compact)
    if bits < 32:
        return values.bfloat16() if bits == 16 else _to_8_bits(local(values).view(-1), parameter, slot, root=root)
    return values


def _places(parameter: Tensor, slot: Slot) -> tuple[int, Tensor]:
    """Number of elements of the part of a parameter that this process holds, and the places of the selected ones."""
    part = local(parameter)
    selected = slot.selected()
    if selected is None:
        return part.numel(), torch.arange(part.numel(), device=part.device)
    return part.numel(), selected.to(part.device).flatten().nonzero().flatten()


def _from_8_bits(state: Tensor, parameter: Tensor, slot: Slot, *, root: bool) -> Tensor:
    """float32 values of the selected elements."""
    numel, elements = _places(parameter, slot)
    dense, compact = (moments.length(torch.uint8, numel, values) for values in (numel, elements.numel()))
    if state.numel() not in (dense, compact):
        raise ValueError(
            f"8-bit state of {slot.name!r} has {state.numel()} bytes, expected {dense} (dense) or {compact} (compact)"
        )
    slots = elements if state.numel() == dense else torch.arange(elements.numel(), device=state.device)
    return moments.read(state, numel, elements, slots, root=root)


def _to_8_bits(values: Tensor, parameter: Tensor, slot: Slot, *, root: bool) -> Tensor:
    """Of flat values in the layout that the state will have."""
    numel, elements = _places(parameter, slot)
    slots = elements if values.numel() == numel else torch.arange(elements.numel(), device=values.device)
    size = moments.length(torch.uint8, numel, values.numel())
    state = torch.zeros(size, dtype=torch.uint8, device=values.device)
    moments.write(state, numel, elements, slots, values[slots], moments.NEAREST, root=root)
    return state


def convert(state: Tensor, parameter: Tensor, slot: Slot, compact: bool, background: Tensor | None = None) -> Tensor:
    """A copy of a state tensor of either layout in the given one, on the parameter's device, in float32.

    Args:
        background: values of the unselected elements of a dense result if ``state`` is compact; default 0.

    Raises:
        ValueError: naming the parameter, if ``state`` has the size of neither layout.
    """
    state = state.detach().to(parameter.device, torch.float32)
    if state.numel() == parameter.numel():
        return take(placed_like(parameter, slot.name, state), slot, compact)
    if state.numel() != slot.nnz:
        raise ValueError(
            f"state of {slot.name!r} has {state.numel()} values, expected {parameter.numel()} (dense)"
            f" or {slot.nnz} (compact)"
        )
    if compact:
        return state.reshape(-1).clone()
    dense = (
        torch.zeros_like(parameter, dtype=torch.float32) if background is None else background.detach().float().clone()
    )
    part, selected = local(dense), slot.selected()
    if selected is None:
        part.copy_(state.view_as(part))
    else:
        part.masked_scatter_(selected.to(part.device), state)
    return dense
