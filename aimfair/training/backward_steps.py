"""Optimizer steps inside the backward passes of a training: gradients are freed as soon as they are complete."""

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from torch import Tensor

from aimfair.selective.masked_optimizer import MaskedOptimizer
from aimfair.selective.step_in_backward import StepInBackward

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel


class BackwardSteps:
    """From :meth:`begin` to :meth:`end` every backward pass is a step of ``optimizer``."""

    def __init__(self, optimizer: MaskedOptimizer):
        self._optimizer = optimizer
        self._inside: StepInBackward | None = None
        self._end = ExitStack()

    def begin(self, ddp: "DistributedDataParallel | None" = None) -> None:
        """``ddp``: the module that adds up the gradients of the processes."""
        self._inside = self._end.enter_context(self._optimizer.step_in_backward(ddp=ddp, watch=True))

    def end(self) -> None:
        self.drop()
        self._end.close()
        self._inside = None

    @property
    def has_begun(self) -> bool:
        return self._inside is not None

    def accumulate(self) -> AbstractContextManager[None]:
        """Inside, backward passes only add to the gradients of the next one."""
        assert self._inside is not None
        return self._inside.accumulate()

    def discard(self) -> AbstractContextManager[None]:
        """Inside, gradients of backward passes are lost."""
        assert self._inside is not None
        return self._inside.discard()

    def drop(self) -> None:
        """Drops gradients that no step has used."""
        self._optimizer.zero_grad()

    @property
    def largest(self) -> dict[Tensor, Tensor]:
        """Parameter -> the largest absolute value of its gradient in the last pass, NaN if it has one."""
        return self._inside.largest if self._inside is not None else {}
