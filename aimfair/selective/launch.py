"""Operator calls of an optimizer: which parameters go together, and the kernel plan they reuse."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aimfair.selective.distributed import local, local_grad
from aimfair.selective.ops import StepPlan
from aimfair.selective.plans import PlanCache
from aimfair.selective.state import Slot
from aimfair.selective.streams import is_capturing, stream_of

if TYPE_CHECKING:
    from aimfair.selective.offload import Bucket

Lists = dict[str, list[Tensor]]
"""The lists of an operator by the names of its arguments."""


@dataclass(frozen=True)
class Operator:
    """An optimizer's operator: on lists, or as a plan made of them once and then stepped."""

    masked: Callable[..., None]
    plan: Callable[..., StepPlan]
    planned: Callable[..., None]


@dataclass
class Launch:
    """Parameters of one operator call: of one group, on one device, under one mask.

    The tensors it returns are what the operators take: for DTensors, the part that this process holds.

    Attributes:
        dtensors: whether the parameters are DTensors.
        has_copies: whether the step also writes the selected weights to consecutive memory.
        place: as in :class:`~aimfair.selective.state.Slot`.
        arguments: mask, first blocks and layout, as the operators take them.
        indices: places of the parameters in the group's list of tuned parameters.
        states: their entries of ``Optimizer.state``.
        plans: of the last step, and of graphs.
        bucket: the state, if it is offloaded.
    """

    device: torch.device
    dtensors: bool
    state_names: tuple[str, ...]
    has_masters: bool
    has_copies: bool
    place: tuple[int, int]
    arguments: dict[str, Any]
    plans: PlanCache[StepPlan]
    indices: list[int] = field(default_factory=list)
    whole_parameters: list[Tensor] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    bucket: "Bucket | None" = None

    def append(self, index: int, parameter: Tensor, slot: Slot, state: dict[str, Tensor]) -> None:
        self.indices.append(index)
        self.whole_parameters.append(parameter)
        self.names.append(slot.name)
        self.states.append(state)
        self.arguments.setdefault("first_blocks", []).append(slot.first_block)

    @property
    def parameters(self) -> list[Tensor]:
        return self._held(self.whole_parameters)

    def grads(self, grads: list[Tensor | None]) -> list[Tensor]:
        """The gradients of this launch, from those of the group.

        Raises:
            TypeError: a gradient with other placements than its DTensor.
        """
        own: list[Tensor] = [grads[index] for index in self.indices]  # type: ignore[misc] # present: see _launches
        if not self.dtensors:
            return own
        return list(map(local_grad, self.names, self.whole_parameters, own))

    def state(self, name: str) -> list[Tensor]:
        return self._held([state[name] for state in self.states])

    def _held(self, tensors: list[Tensor]) -> list[Tensor]:
        return [local(tensor) for tensor in tensors] if self.dtensors else tensors

    def step(
        self, operator: Operator, lists: Lists, grads: list[Tensor], *, stochastic_rounding: bool, **settings: Any
    ) -> None:
        """Calls the operator on ``lists`` and ``grads``: on the plan of the last step, if it is still theirs.

        A graph that is captured before there is a plan copies the lists at every replay.

        Raises:
            TypeError: a sparse gradient.
        """
        held = list(lists.values())
        plan = self.plans.find(grads, held, options=stochastic_rounding)
        if plan is None:
            self._require_dense(grads)
            made_of = {**lists, "grads": grads, **self.arguments, "stochastic_rounding": stochastic_rounding}
            if not is_capturing(self.device):
                plan = self.plans.keep(operator.plan(**made_of), grads, held, options=stochastic_rounding)
        if plan is None:
            operator.masked(**made_of, **settings)
        else:
            operator.planned(plan, **settings)
        # Autograd must see the change.
        torch.autograd.graph.increment_version(lists["params"])

    def _require_dense(self, grads: list[Tensor]) -> None:
        for name, grad in zip(self.names, grads, strict=True):
            if grad.layout is not torch.strided:
                raise TypeError(f"the gradient of {name!r} has layout {grad.layout}; make it dense (sparse=False)")


@dataclass
class GroupLaunches:
    """The launches of a param group, valid for its parameters, their gradients and state, and its options.

    Attributes:
        members: the group's parameters.
        tuned: those in which something is selected.
        present: which of those have a gradient.
    """

    members: list[Tensor]
    tuned: list[Tensor]
    present: list[bool] | None = None
    state_names: tuple[str, ...] = ()
    launches: tuple[Launch, ...] = ()
    lr: tuple[float, int] | None = None
    lr_tensor: Tensor | None = None

    def lr_of(self, group: dict[str, Any]) -> Tensor:
        """The learning rate as the operators take it; the tensor of a number is kept until the number changes.

        A CUDA graph that is being captured gets a tensor of its own, so that its number never changes.
        """
        lr, device = group["lr"], self.launches[0].device
        if isinstance(lr, Tensor):
            return lr
        kept = (lr, stream_of(device))
        if self.lr_tensor is None or self.lr != kept or is_capturing(device):
            # Filled on the device: a copy of the number would wait until the device has done all that is queued.
            tensor = torch.full((), lr, dtype=torch.float64, device=device)
            if is_capturing(device):
                return tensor
            self.lr, self.lr_tensor = kept, tensor
        return self.lr_tensor
