"""The gradient of one batch over several processes that hold the model together (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aimfair.training.shared_gradient import SharedGradient


class ShardedGradient(SharedGradient):
    """As :class:`SharedGradient`; each process ends up with its rows of the gradients.

    There is no trial: no process can compute anything alone. Lack of memory in one ends the job.
    """

    def _wrap(self, images: Tensor, target: Tensor) -> nn.Module:
        sum_gradients(self._model)
        self._synchronise_batchnorm()
        if self._steps is not None:
            self._steps.begin()
        return self._model

    @contextmanager
    def _adding(self) -> Iterator[None]:
        assert isinstance(self._model, FSDPModule)
        self._model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._model.set_requires_gradient_sync(True)

    def _not_finite(self) -> list[bool]:
        """In any process."""
        return [bool(count) for count in self._ranks.sum(torch.tensor(super()._not_finite(), dtype=torch.int64))]


def sum_gradients(model: nn.Module) -> None:
    """Gradients are summed over the processes, where FSDP2 would take their mean; also those that some lack."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(model, FSDPModule)
