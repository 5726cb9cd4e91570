"""The operator calls of an optimizer, prepared once and kept while parameters, gradients and state stay the same."""

from collections.abc import Container, Mapping, MutableMapping
from operator import is_
from typing import Any

import torch
from torch import Tensor

from aimfair.selective.distributed import is_dtensor
from aimfair.selective.kept_state import KeptState
from aimfair.selective.launch import GroupLaunches, Launch
from aimfair.selective.mask import ParameterMask
from aimfair.selective.ops import Plan, StepPlan
from aimfair.selective.plans import PlanCache
from aimfair.selective.state import Slot

State = MutableMapping[Tensor, dict[str, Tensor]]
"""``Optimizer.state``."""


class Launches:
    """The launches of all param groups.

    Args:
        slots: of the optimizer's parameters; changes with them.

    Attributes:
        of_graphs: plans that CUDA graphs read.
        reserved: state of parameters that have none yet.
    """

    def __init__(self, kept: KeptState, slots: Mapping[Tensor, Slot]):
        self._kept, self._slots = kept, slots
        self.of_graphs: list[Plan] = []
        self.reserved: dict[Tensor, dict[str, Tensor]] = {}
        self._masks: dict[tuple[int, torch.device], ParameterMask] = {}
        self.forget()

    def forget(self) -> None:
        """All are prepared again."""
        self._prepared: dict[tuple[int, Tensor | None], GroupLaunches] = {}
        self._known: tuple[list[Tensor], list[dict[str, Tensor]]] = [], []

    def forget_masks(self) -> None:
        self._masks = {}

    def reserve(self, group: Mapping[str, Any], names: tuple[str, ...], state: State) -> None:
        """Moments of parameters without state: between gradients that come and go they would keep their memory in
        pieces."""
        for parameter in group["params"]:
            if parameter in self._slots and self._slots[parameter].tuned and not state.get(parameter):
                reserved = self.reserved[parameter] = {}
                self._kept.allocate_moments(reserved, parameter, self._slots[parameter], names)

    def are_of(self, state: State) -> bool:
        """Whether these were made of the entries of ``state``: others may have been put in their place."""
        parameters, entries = self._known
        return (
            len(state) == len(parameters)
            and all(map(is_, state, parameters))
            and all(map(is_, state.values(), entries))
        )

    def prepare(
        self,
        number: int,
        group: Mapping[str, Any],
        members: list[Tensor],
        names: tuple[str, ...],
        state: State,
        copied: Container[Tensor],
    ) -> tuple[GroupLaunches, list[Tensor | None]]:
        """The launches of parameters of a group, prepared again if no longer valid, and the gradients of the tuned.

        Args:
            number: of the group.
            members: all parameters of the group, or a list that begins with another one than other lists.
            names: of the moments of the group.
            copied: parameters whose selected weights are written to consecutive memory.

        Raises:
            ValueError: naming a parameter that was added or unfrozen by other means than the optimizer's.
        """
        key = number, None if members is group["params"] else members[0]
        prepared = self._prepared.get(key)
        if prepared is None or len(prepared.members) != len(members) or not all(map(is_, prepared.members, members)):
            prepared = self._prepared[key] = GroupLaunches(list(members), self._tuned(number, members))
        grads = [parameter.grad for parameter in prepared.tuned]
        present = [grad is not None for grad in grads]
        if prepared.present != present or prepared.state_names != names:
            prepared.launches = self._launches(prepared.tuned, grads, names, state, copied)
            prepared.present, prepared.state_names = present, names
            self._known = list(state), list(state.values())
        return prepared, grads

    def _tuned(self, number: int, parameters: list[Tensor]) -> list[Tensor]:
        for place, parameter in enumerate(parameters):
            if parameter.requires_grad and parameter not in self._slots:
                raise ValueError(
                    f"parameter {place} of param group {number} requires a gradient and has no place in the mask:"
                    " it was added to the group, or unfrozen, after the optimizer was created; use add_param_group"
                )
        return [p for p in parameters if p in self._slots and self._slots[p].tuned]

    def _launches(
        self,
        parameters: list[Tensor],
        grads: list[Tensor | None],
        names: tuple[str, ...],
        state: State,
        copied: Container[Tensor],
    ) -> tuple[Launch, ...]:
        """One launch per device, mask, place and kind of parameter, of those that have a gradient."""
        launches: dict[tuple[object, ...], Launch] = {}
        for index, (parameter, grad) in enumerate(zip(parameters, grads, strict=True)):
            if grad is None:
                continue
            slot, dtensors = self._slots[parameter], is_dtensor(parameter)
            has_masters, has_copies = self._kept.has_master(parameter), parameter in copied
            if reserved := self.reserved.pop(parameter, None):
                state[parameter] = {**reserved, **state[parameter]}
            self._kept.allocate(state[parameter], parameter, slot, names)
            key = (parameter.device, id(slot.mask), has_masters, has_copies, dtensors, slot.place)
            if key not in launches:
                arguments = self._mask_arguments(slot.mask, parameter.device)
                plans = PlanCache[StepPlan](parameter.device, self.of_graphs)
                launches[key] = Launch(
                    parameter.device, dtensors, names, has_masters, has_copies, slot.place, arguments, plans
                )
            launches[key].append(index, parameter, slot, state[parameter])
        return tuple(launches.values())

    def _mask_arguments(self, mask: ParameterMask | None, device: torch.device) -> dict[str, Any]:
        if mask is None:
            return {"compact": False}
        key = id(mask), device
        if key not in self._masks:
            self._masks[key] = mask.to(device)
        mask = self._masks[key]
        return {"bits": mask.bits, "rank": mask.rank, "compact": self._kept.compact}
