"""The selected elements of gradients, kept while the gradients themselves are freed."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from aimfair.selective.distributed import local
from aimfair.selective.state import Slot


class SelectedGradients:
    """Sums of the selected elements of gradients; whole gradients where everything is selected.

    Memory, from :meth:`reserve` on: 4 bytes per selected element for the positions (8 in tensors of 2^31 elements and
    more), and its value. It is taken at once: between gradients that come and go it would keep their memory in pieces.
    """

    def __init__(self, slots: Mapping[Tensor, Slot]):
        self._slots = slots
        self._where: dict[Tensor, Tensor] = {}
        self._values: dict[Tensor, Tensor] = {}
        self._kept: dict[Tensor, None] = {}

    def __iter__(self) -> Iterator[Tensor]:
        """The parameters of which something is kept."""
        return iter(self._kept)

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def reserve(self) -> None:
        """Before the passes whose gradients are added."""
        for parameter, slot in self._slots.items():
            if parameter not in self._where and slot.tuned and (selected := slot.selected()) is not None:
                where = selected.view(-1).nonzero().squeeze(1).to(parameter.device)
                self._where[parameter] = where.int() if selected.numel() <= torch.iinfo(torch.int32).max else where
                self._values[parameter] = torch.empty(slot.nnz, dtype=parameter.dtype, device=parameter.device)

    @torch.no_grad()
    def add(self, parameter: Tensor) -> None:
        """Adds the selected elements of a parameter's gradient, which is freed; it stays if all are selected."""
        if parameter in self._where:
            if parameter in self._kept:
                self._values[parameter] += self._gather(parameter)
            else:
                self._gather(parameter, out=self._values[parameter])
                self._kept[parameter] = None
        if parameter in self._where or not self._slots[parameter].tuned:
            parameter.grad = None

    @torch.no_grad()
    def restore(self, parameter: Tensor) -> None:
        """Moves the sums of a parameter that are kept into its gradient, added to what is there.

        Of a gradient that was freed, only the selected elements are then defined.
        """
        del self._kept[parameter]
        values = self._values[parameter]
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        else:
            values += self._gather(parameter)
        local(parameter.grad).view(-1).index_put_((self._where[parameter],), values)

    def clear(self) -> None:
        self._kept.clear()

    def _gather(self, parameter: Tensor, out: Tensor | None = None) -> Tensor:
        assert parameter.grad is not None
        return torch.index_select(local(parameter.grad).view(-1), 0, self._where[parameter], out=out)
