"""What an optimizer's steps change, as deltas: for inference servers that follow the training."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aimfair.selective.checkpoint import Bits, InMemory, Spec, as_integers
from aimfair.selective.delta import Delta
from aimfair.selective.delta_file import Change, Entry
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.state import Slot


@dataclass
class _Tracked:
    """A parameter, its selected elements, and their values when they were last gathered.

    Attributes:
        where: int64 on the device of the parameter; None: all elements.
        template: the change with the same positions and no values.
    """

    name: str
    spec: Spec
    parameter: Tensor
    where: Tensor | None
    template: Change
    values: Bits

    def gather(self) -> Bits:
        flat = as_integers(self.parameter)
        selected = flat.clone() if self.where is None else flat.index_select(0, self.where)
        return selected.cpu().numpy().view(self.spec.bits)


class DeltaRecorder:
    """Gathers the selected weights of an optimizer, and makes deltas of them.

    A delta covers every selected element, changed or not, so that its positions are always the same and a gather is all
    that it costs. It has no digests of whole tensors. Buffers, such as running statistics, are not the optimizer's: for
    a delta to publish, use :meth:`Delta.between`.

    Memory: 8 bytes per selected element for the positions, and its value.
    """

    def __init__(self, slots: Mapping[Tensor, Slot]):
        self._tracked = [_track(parameter, slot) for parameter, slot in slots.items() if slot.tuned]

    def delta(self) -> Delta:
        """The reversible delta from the last call, or else from the beginning, to now."""
        entries = {}
        for one in self._tracked:
            new = one.gather()
            change = Change(one.template.numel, one.template.where, one.template.packed, new, one.values)
            entries[one.name] = Entry(one.spec, None, None, change)
            one.values = new
        return Delta(entries, reversible=True)


def _track(parameter: Tensor, slot: Slot) -> _Tracked:
    if is_dtensor(parameter):
        raise TypeError(f"parameter {slot.name!r} is sharded (DTensor): record_delta needs whole parameters")
    spec = InMemory({slot.name: parameter}).specs[slot.name]
    selected = slot.selected()
    if selected is None:
        where, positions = None, np.arange(spec.numel)
    else:
        where = selected.view(-1).nonzero().squeeze(1).to(parameter.device)
        positions = where.cpu().numpy()
    empty = np.empty(0, spec.bits)
    tracked = _Tracked(slot.name, spec, parameter, where, Change.at(spec.numel, positions, empty, None), empty)
    with torch.no_grad():
        tracked.values = tracked.gather()
    return tracked
