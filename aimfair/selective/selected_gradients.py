"""The selected elements of gradients, kept while the gradients themselves are freed."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from aimfair.selective.distributed import local
from aimfair.selective.state import Slot


class SelectedGradients:
    """Sums of the selected elements of gradients; whole gradients where everything is selected.

    Memory: 4 bytes per selected element for the positions (8 in tensors of 2^31 elements and more), and its value.
    """

    def __init__(self, slots: Mapping[Tensor, Slot]):
        self._slots = slots
        self._where: dict[Tensor, Tensor] = {}
        self._sums: dict[Tensor, Tensor] = {}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, parameter: Tensor) -> None:
        """Adds the selected elements of a parameter's gradient, which is freed; it stays if all are selected."""
        slot = self._slots[parameter]
        if slot.tuned:
            if slot.mask is None:
                return
            values = self._gather(parameter)
            if parameter in self._sums:
                self._sums[parameter] += values
            else:
                self._sums[parameter] = values
        parameter.grad = None

    def restore(self, parameter: Tensor) -> None:
        """Moves the sums of a parameter into its gradient, added to what is there.

        Of a gradient that was freed, only the selected elements are then defined.
        """
        values = self._sums.pop(parameter, None)
        if values is None:
            return
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter, memory_format=torch.contiguous_format)
        else:
            values += self._gather(parameter)
        local(parameter.grad).view(-1).index_put_((self._where[parameter],), values)

    def clear(self) -> None:
        self._sums.clear()

    def _gather(self, parameter: Tensor) -> Tensor:
        assert parameter.grad is not None
        grad = local(parameter.grad).view(-1)
        if parameter not in self._where:
            selected = self._slots[parameter].selected()
            assert selected is not None
            where = selected.view(-1).nonzero().squeeze(1).to(grad.device)
            self._where[parameter] = where.int() if grad.numel() <= torch.iinfo(torch.int32).max else where
        return grad.index_select(0, self._where[parameter])
