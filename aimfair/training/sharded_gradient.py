"""The gradient of one batch over several processes that hold the model together (FSDP2)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from aimfair.selective.distributed import local
from aimfair.training.shared_gradient import SharedGradient


class ShardedGradient(SharedGradient):
    """As :class:`SharedGradient`; each process ends up with its rows of the gradients.

    There is no trial: no process can compute anything alone. Lack of memory in one ends the job.
    """

    def _wrap(self, images: Tensor, target: Tensor) -> nn.Module:
        sum_gradients(self._model)
        self._synchronise_batchnorm()
        return self._model

    @contextmanager
    def _unsynchronised(self, model: nn.Module) -> Iterator[None]:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def _worst(self) -> Tensor:
        norms = torch._foreach_norm(parts, float("inf")) if (parts := self._parts()) else []
        return torch.stack([*norms, torch.zeros((), device=self._parameters[0].device)]).amax()

    def not_finite(self) -> str:
        named = [name for name, parameter in self._model.named_parameters() if parameter.requires_grad]
        grads = [parameter.grad for parameter in self._parameters]
        bad = [0 if grad is None or local(grad).isfinite().all() else 1 for grad in grads]
        counts = self._ranks.sum(torch.tensor(bad)).tolist()
        return next((f"the gradient of {name}" for name, count in zip(named, counts, strict=True) if count), "the loss")

    def _parts(self) -> list[Tensor]:
        """This process's rows of the gradients that have any."""
        parts = [local(parameter.grad) for parameter in self._parameters if parameter.grad is not None]
        return [part for part in parts if part.numel()]


def sum_gradients(model: nn.Module) -> None:
    """Gradients are summed over the processes, where FSDP2 would take their mean; also those that some lack."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    assert isinstance(model, FSDPModule)
