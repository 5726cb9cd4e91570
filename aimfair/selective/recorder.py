"""What an optimizer's steps change, as deltas: for inference servers that follow the training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from aimfair.selective.checkpoint import Bits, InMemory, Spec, as_integers
from aimfair.selective.delta import Delta
from aimfair.selective.delta_file import Change, Entry
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.state import Slot

CopyOf = Callable[[Tensor], Tensor | None]
"""The selected elements of a parameter, float32 and contiguous, in index order, if there is such a copy of them."""


@dataclass
class _Tracked:
    """A parameter, its selected elements, and their values when they were last gathered.

    Attributes:
        where: on the device of the parameter; None: all elements.
        template: the change with the same positions and no values.
    """

    name: str
    spec: Spec
    parameter: Tensor
    nnz: int
    where: Tensor | None
    template: Change
    values: Bits

    @property
    def kind(self) -> tuple[str, torch.dtype]:
        return str(self.parameter.device), self.parameter.dtype

    def gather(self) -> Tensor:
        flat = self.parameter.detach().view(-1)
        return flat if self.where is None else flat.index_select(0, self.where)


class DeltaRecorder:
    """Makes deltas of the selected weights of an optimizer.

    A delta covers every selected element, changed or not, so that its positions are always the same and reading the
    weights is all that it costs. It has no digests of whole tensors. Buffers, such as running statistics, are not the
    optimizer's: for a delta to publish, use :meth:`Delta.between`.

    Memory: 4 bytes per selected element for the positions (8 in tensors of 2^31 elements and more), and its value.
    """

    def __init__(self, slots: Mapping[Tensor, Slot], copy_of: CopyOf):
        tracked = [_track(parameter, slot) for parameter, slot in slots.items() if slot.tuned]
        ordered = sorted(tracked, key=lambda one: tuple(map(str, one.kind)))
        self._tracked = tracked
        self._alike = [list(ones) for _, ones in groupby(ordered, lambda one: one.kind)]
        self._copy_of = copy_of
        self._take()

    def delta(self) -> Delta:
        """The reversible delta from the last call, or else from the beginning, to now."""
        before = [one.values for one in self._tracked]
        self._take()
        entries = {}
        for one, old in zip(self._tracked, before, strict=True):
            change = Change(one.template.numel, one.template.where, one.template.packed, one.values, old)
            entries[one.name] = Entry(one.spec, None, None, change)
        return Delta(entries, reversible=True)

    @torch.no_grad()
    def _take(self) -> None:
        """Reads all selected weights: those of a device and dtype in one piece, which a copy from a GPU waits for."""
        for ones in self._alike:
            flat = self._copied(ones)
            if flat is None:
                flat = torch.cat([one.gather() for one in ones])
            bits = as_integers(flat).cpu().numpy().view(ones[0].spec.bits)
            ends = np.cumsum([0, *(one.nnz for one in ones)]).tolist()
            for one, (begin, end) in zip(ones, pairwise(ends), strict=True):
                one.values = bits[begin:end]

    def _copied(self, ones: list[_Tracked]) -> Tensor | None:
        """The selected elements of parameters of one dtype, from copies of them; None if they have none."""
        copies = [copy.view(-1) for one in ones if (copy := self._copy_of(one.parameter)) is not None]
        if len(copies) < len(ones):
            return None
        dtype, device = ones[0].parameter.dtype, ones[0].parameter.device
        if dtype == torch.float32:
            return torch.cat(copies)
        # Rounding a NaN may give another NaN than the parameter's.
        if torch.stack([copy.sum() for copy in copies]).isnan().any():
            return None
        return torch.cat(copies, out=torch.empty(sum(one.nnz for one in ones), dtype=dtype, device=device))


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
        if spec.numel <= torch.iinfo(torch.int32).max:
            where = where.int()  # gathers faster
    empty = np.empty(0, spec.bits)
    template = Change.at(spec.numel, positions, empty, None)
    return _Tracked(slot.name, spec, parameter, slot.nnz, where, template, empty)
