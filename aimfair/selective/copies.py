"""Copies of an optimizer's selected weights in consecutive memory, which its steps keep up to date."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aimfair.selective import state as state_layout
from aimfair.selective.parameters import listing
from aimfair.selective.state import Slot


class WeightCopies:
    """float32 copies of the selected elements of parameters, in index order.

    Of float32 parameters they are this object's, and the operators step them as master weights, from which the
    parameter is then written: the same bits as without. Of 16-bit parameters they are the optimizer's master weights.

    Attributes:
        own: parameter -> its copy.
    """

    def __init__(self, slots: Mapping[Tensor, Slot], state: Mapping[Tensor, Mapping[str, Tensor]]):
        self._slots = {parameter: slot for parameter, slot in slots.items() if slot.tuned}
        self.own = {
            parameter: state_layout.take(parameter, slot, True)
            for parameter, slot in self._slots.items()
            if parameter.dtype == torch.float32
        }
        self._valid: dict[Tensor, tuple[int, Tensor]] = {}  # parameter -> its version, and the copy, after a step
        self.note(state)

    def refresh(self) -> None:
        """Before a step: takes the weights again that something else has written since the last one."""
        for parameter, copy in self.own.items():
            if self._valid[parameter][0] != parameter._version:
                copy.copy_(state_layout.take(parameter, self._slots[parameter], True))

    def note(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """After a step: the copies are those of the parameters as they are now.

        Args:
            state: of the optimizer.
        """
        for parameter in self._slots:
            copy = self._copy_of(parameter, state)
            if copy is not None:
                self._valid[parameter] = parameter._version, copy

    def current(self, parameter: Tensor, state: Mapping[Tensor, Mapping[str, Tensor]]) -> Tensor | None:
        """The copy of a parameter; None if it has none, or if something else has written one of the two."""
        copy = self._copy_of(parameter, state)
        version, noted = self._valid.get(parameter, (None, None))
        return copy if copy is noted and version == parameter._version else None

    def _copy_of(self, parameter: Tensor, state: Mapping[Tensor, Mapping[str, Tensor]]) -> Tensor | None:
        return self.own[parameter] if parameter in self.own else state.get(parameter, {}).get("master")


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
