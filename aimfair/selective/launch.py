"""Parameters that go to one operator call, and the plan on which they are stepped."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from aimfair.selective.distributed import local, local_grad
from aimfair.selective.ops import StepPlan

Lists = dict[str, list[Tensor]]
"""The lists of an operator by the names of its arguments."""


@dataclass(frozen=True)
class Operator:
    """The operator of an optimizer: on lists, and the same in two parts, which goes through the lists only once."""

    masked: Callable[..., None]
    plan: Callable[..., StepPlan]
    planned: Callable[..., None]


@dataclass
class Launch:
    """Parameters that go to one operator call: of one group, on one device, under one mask.

    What it hands out is what the operators take: of DTensors the part that this process holds.

    Attributes:
        indices: their places in the group's list of tuned parameters.
        dtensors: whether the parameters are DTensors.
        states: their entries of ``Optimizer.state``.
        place: as in :class:`Slot`.
        arguments: mask and first blocks, as the operators take them.
        seen: the lists of the step before; ``plan``, if there is one, is for them.
    """

    device: torch.device
    indices: list[int]
    whole_parameters: list[Tensor]
    dtensors: bool
    names: list[str]
    states: list[dict[str, Tensor]]
    state_names: tuple[str, ...]
    has_masters: bool
    place: tuple[int, int]
    arguments: dict[str, Any]
    seen: list[object] = field(default_factory=list)
    plan: StepPlan | None = None

    @property
    def parameters(self) -> list[Tensor]:
        return self._held(self.whole_parameters)

    def grads(self, grads: list[Tensor | None]) -> list[Tensor]:
        """Those of the group's gradients that belong to this launch.

        Raises:
            TypeError: a sparse gradient, or one that is placed otherwise than its DTensor.
        """
        own: list[Tensor] = [grads[index] for index in self.indices]  # type: ignore[misc] # present, as planned
        for name, grad in zip(self.names, own, strict=True):
            if grad.layout is not torch.strided:
                raise TypeError(f"the gradient of {name!r} has layout {grad.layout}; make it dense (sparse=False)")
        if not self.dtensors:
            return own
        return list(map(local_grad, self.names, self.whole_parameters, own))

    def state(self, name: str) -> list[Tensor]:
        return self._held([state[name] for state in self.states])

    def _held(self, tensors: list[Tensor]) -> list[Tensor]:
        return [local(tensor) for tensor in tensors] if self.dtensors else tensors

    def holds(self, state: dict[Tensor, dict[str, Tensor]]) -> bool:
        """Whether the entries of ``Optimizer.state`` are still those of this launch."""
        return all(map(is_, map(state.get, self.whole_parameters), self.states))

    def step(self, operator: Operator, lists: Lists, *, stochastic_rounding: bool, **settings: Any) -> None:
        """Calls the operator: on the lists, or, from the second time that it is given the same ones, on a plan."""
        listed = {**lists, **self.arguments, "stochastic_rounding": stochastic_rounding}
        if is_capturing(self.device):
            # The graph gets a plan of its own: it may be replayed when this optimizer has long made another.
            operator.masked(**listed, **settings)
        elif (seen := [stochastic_rounding, stream_of(self.device), *_facts(lists)]) != self.seen:
            self.seen, self.plan = seen, None  # most often gradients that are new at every step: a plan would not pay
            operator.masked(**listed, **settings)
        else:
            if self.plan is None:
                self.plan = operator.plan(**listed)
            operator.planned(self.plan, **settings)
        # For autograd to see that they changed.
        torch.autograd.graph.increment_version(lists["params"])


def _facts(lists: Lists) -> list[object]:
    """All that a plan takes for granted."""
    tensors = list(chain.from_iterable(lists.values()))
    given = lists["params"] + lists["grads"]  # the others are the optimizer's own
    return [
        *map(Tensor.data_ptr, tensors),
        *map(Tensor.numel, tensors),
        *map(Tensor.is_contiguous, given),
        *(tensor.dtype for tensor in given),
    ]


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured on the current stream of a device."""
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def stream_of(device: torch.device) -> int:
    """The current stream. What it reads must be its own: freed memory is reused in the order of one stream."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
