"""Copies of an optimizer's selected weights in consecutive memory, which its steps keep up to date."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aimfair.selective import state as state_layout
from aimfair.selective.parameters import listing
from aimfair.selective.state import Slot

State = Mapping[Tensor, Mapping[str, Tensor]]
"""Of an optimizer."""


class WeightCopies:
    """float32 copies of the selected elements of parameters, in index order.

    Of float32 parameters they are this object's, and the operators step them as master weights, from which the
    parameter is then written: the same bits as without. Of 16-bit parameters they are the optimizer's master weights.

    Attributes:
        own: parameter -> its copy.
    """

    def __init__(self, slots: Mapping[Tensor, Slot], state: State):
        self._slots = {parameter: slot for parameter, slot in slots.items() if slot.tuned}
        self.own = {parameter: _taken(parameter, slot) for parameter, slot in self._slots.items() if _is_own(parameter)}
        self.note(state)

    def refresh(self) -> None:
        """Before a step: takes the weights again that something else has written since the last one."""
        for parameter, (version, copy) in self._noted.items():
            if version != parameter._version and _is_own(parameter):
                copy.copy_(_taken(parameter, self._slots[parameter]))

    def note(self, state: State) -> None:
        """After a step: the copies are those of the parameters as they are now.

        Args:
            state: of the optimizer.
        """
        copies = dict(self.own)
        for parameter in self._slots if len(copies) < len(self._slots) else ():
            if not _is_own(parameter) and (master := state.get(parameter, {}).get("master")) is not None:
                copies[parameter] = master
        self._noted = {parameter: (parameter._version, copy) for parameter, copy in copies.items()}

    def current(self, parameters: Sequence[Tensor], state: State) -> list[Tensor] | None:
        """The copies of parameters, flat; None if one has none, or if something else has written one of the two."""
        found = []
        for parameter in parameters:
            version, copy = self._noted.get(parameter, (None, None))
            if copy is None or version != parameter._version:
                return None
            if not _is_own(parameter):
                if state.get(parameter, {}).get("master") is not copy:
                    return None
                copy = copy.view(-1)
            found.append(copy)
        return found


def _is_own(parameter: Tensor) -> bool:
    return parameter.dtype == torch.float32


def _taken(parameter: Tensor, slot: Slot) -> Tensor:
    return state_layout.take(parameter, slot, True).view(-1)


def require_copyable(
    slots: Mapping[Tensor, Slot], groups: Sequence[Mapping[str, Any]], *, compact: bool, master_weights: bool
) -> None:
    """Raises where an optimizer cannot keep copies.

    Raises:
        ValueError: dense state, stochastic rounding, or parameters, listed, of 16 bits without master weights.
    """
    if not compact:
        raise ValueError('keep_copy needs state="compact"')
    if any(group["stochastic_rounding"] for group in groups):
        raise ValueError("keep_copy is not valid with stochastic_rounding")
    short = [slot.name for p, slot in slots.items() if slot.tuned and p.dtype != torch.float32]
    if short and not master_weights:
        raise ValueError(f"keep_copy needs master_weights=True for weights of 16 bits: {listing(short)}")
