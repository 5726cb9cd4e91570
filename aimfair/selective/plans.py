"""Plans that are kept from call to call, and those that CUDA graphs read."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from aimfair.selective import ops
from aimfair.selective.extension import _C
from aimfair.selective.ops import Plan
from aimfair.selective.streams import is_capturing, stream_of

P = TypeVar("P", bound=Plan)


@dataclass(frozen=True)
class _Kept(Generic[P]):
    plan: P
    memory: _C.PlanMemory
    options: Hashable
    stream: int

    def moved_grads(self, grads: list[Tensor], lists: list[list[Tensor]] | None, options: Hashable) -> list[int] | None:
        """As that of PlanMemory."""
        if self.options != options or not (lists is None or self.memory.holds(lists)):
            return None
        return self.memory.moved_grads(grads)


class PlanCache(Generic[P]):
    """The plan of the last call, for the next one if nothing but the gradients has changed.

    A graph that is captured takes over the plan of the last call before it, and sets the addresses of its gradients at
    every replay: calls outside of graphs get another plan, so that neither sees the addresses of the other.

    Args:
        of_graphs: gets the plans that graphs have taken. They are never freed before this list, which must live as long
            as the tensors of the plans.
    """

    def __init__(self, device: torch.device, of_graphs: list[Plan]):
        self._device, self._of_graphs = device, of_graphs
        self._last: _Kept[P] | None = None
        self._captured: _Kept[P] | None = None

    def find(
        self, grads: list[Tensor], lists: list[list[Tensor]] | None = None, *, options: Hashable = None
    ) -> P | None:
        """The plan, with the addresses of these gradients; None if there is none for these tensors.

        Args:
            lists: as given to :meth:`keep`, unless nobody else can have changed them.
        """
        if is_capturing(self._device):
            return self._find_captured(grads, lists, options)
        if self._last is None or self._last.stream != stream_of(self._device):
            return None
        moved = self._last.moved_grads(grads, lists, options)
        if moved is None:
            self._last = None
            return None
        if moved:
            ops.set_grads_(self._last.plan, moved)
        return self._last.plan

    def _find_captured(self, grads: list[Tensor], lists: list[list[Tensor]] | None, options: Hashable) -> P | None:
        if self._captured is None or self._captured.moved_grads(grads, lists, options) is None:
            if self._last is None or self._last.moved_grads(grads, lists, options) is None:
                return None
            self._captured, self._last = self._last, None
            self._of_graphs.append(self._captured.plan)
        # Also if they are those of the last call: another graph may set others.
        ops.set_grads_(self._captured.plan, [grad.data_ptr() for grad in grads])
        return self._captured.plan

    def keep(
        self,
        plan: P,
        grads: list[Tensor],
        lists: list[list[Tensor]],
        *,
        options: Hashable = None,
        writes_grads: bool = False,
    ) -> P:
        """Keeps a plan for the next call, and returns it.

        The plan is valid on the current stream only: its memory, once freed, is used again in the order of the stream.
        """
        memory = _C.PlanMemory(lists, grads, writes_grads)
        self._last = _Kept(plan, memory, options, stream_of(self._device))
        return plan
