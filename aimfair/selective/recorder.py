"""What an optimizer's steps change, as deltas: for inference servers that follow the training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from aimfair.selective.checkpoint import Bits, InMemory, Spec, as_integers
from aimfair.selective.delta import Delta
from aimfair.selective.delta_file import Change, Entry
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.state import Slot

_PIECE = 1 << 22
"""Selected elements that are read together: larger arrays would be new memory every time, which the system clears."""

CopiesOf = Callable[[Sequence[Tensor]], list[Tensor] | None]
"""The selected elements of parameters, float32 and flat in index order, if there are such copies of all of them."""


@dataclass(frozen=True)
class _Tracked:
    """A parameter and its selected elements.

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

    @property
    def kind(self) -> tuple[str, str]:
        return str(self.parameter.device), self.spec.dtype

    def gather(self) -> Tensor:
        flat = self.parameter.detach().view(-1)
        return flat if self.where is None else flat.index_select(0, self.where)


@dataclass(frozen=True)
class _Place:
    """Where the values of a parameter are: in which of the arrays, from where to where."""

    tracked: _Tracked
    number: int
    begin: int
    end: int


@dataclass(frozen=True)
class _Entries(Mapping[str, Entry]):
    """The entries of a delta, made when they are read, so that no step waits for them.

    Attributes:
        new, old: values of all tracked elements, an array per piece.
    """

    places: Mapping[str, _Place]
    new: list[Bits]
    old: list[Bits]

    def __getitem__(self, name: str) -> Entry:
        place = self.places[name]
        template = place.tracked.template
        new, old = (values[place.number][place.begin : place.end] for values in (self.new, self.old))
        change = Change(template.numel, template.where, template.packed, new, old)
        return Entry(place.tracked.spec, None, None, change)

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class DeltaRecorder:
    """Makes deltas of the selected weights of an optimizer.

    A delta covers every selected element, changed or not, so that its positions are always the same and reading the
    weights is all that it costs. It has no digests of whole tensors. Buffers, such as running statistics, are not the
    optimizer's: for a delta to publish, use :meth:`Delta.between`.

    Memory: 4 bytes per selected element for the positions (8 in tensors of 2^31 elements and more), and its value.
    """

    def __init__(self, slots: Mapping[Tensor, Slot], copies_of: CopiesOf):
        self._slots, self._made_of = slots, dict(slots)
        tracked = [_track(parameter, slot) for parameter, slot in slots.items() if slot.tuned]
        self._pieces = _pieces(tracked)
        self._parameters = [[one.parameter for one in piece] for piece in self._pieces]
        places = {}
        for number, piece in enumerate(self._pieces):
            end = 0
            for one in piece:
                places[one.name] = _Place(one, number, end, end := end + one.nnz)
        self._places = {one.name: places[one.name] for one in tracked}
        self._copies_of = copies_of
        self._values = self._read()

    def delta(self) -> Delta:
        """The reversible delta from the last call, or else from the beginning, to now.

        Raises:
            RuntimeError: the mask has changed.
        """
        if any(self._slots[parameter] is not slot for parameter, slot in self._made_of.items()):
            raise RuntimeError("delta(): update_mask has changed the mask since record_delta(); call that again")
        old, self._values = self._values, self._read()
        return Delta(_Entries(self._places, self._values, old), reversible=True)

    @torch.no_grad()
    def _read(self) -> list[Bits]:
        """All selected weights, an array per piece."""
        values = []
        for piece, parameters in zip(self._pieces, self._parameters, strict=True):
            flat = self._copied(parameters)
            if flat is None:
                flat = torch.cat([one.gather() for one in piece])
            values.append(as_integers(flat).cpu().numpy().view(piece[0].spec.bits))
        return values

    def _copied(self, parameters: list[Tensor]) -> Tensor | None:
        """The selected elements of parameters of one dtype, from copies of them; None if they have none."""
        copies = self._copies_of(parameters)
        if copies is None:
            return None
        flat = torch.empty(sum(map(len, copies)), dtype=parameters[0].dtype, device=parameters[0].device)
        torch.cat(copies, out=flat)
        # A NaN rounded to 16 bits may be another than the parameter's.
        return None if flat.dtype != torch.float32 and flat.sum().isnan() else flat


def _pieces(tracked: list[_Tracked]) -> list[list[_Tracked]]:
    """Those of a device and dtype together, up to :data:`_PIECE` elements."""
    pieces: list[list[_Tracked]] = []
    for _, ones in groupby(sorted(tracked, key=lambda one: one.kind), lambda one: one.kind):
        size = _PIECE
        for one in ones:
            if size + one.nnz > _PIECE:
                pieces.append([])
                size = 0
            pieces[-1].append(one)
            size += one.nnz
    return pieces


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
    template = Change.at(spec.numel, positions, np.empty(0, spec.bits), None)
    return _Tracked(slot.name, spec, parameter, slot.nnz, where, template)
