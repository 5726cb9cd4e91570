"""The gradients that DistributedDataParallel has averaged, or summed, during the backward pass."""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

OnAverage = Callable[[list[Tensor]], None]


class AveragedGradients:
    """Hands over the parameters of a bucket once their gradients are averaged, when the next bucket is complete.

    Until then the communication overlaps with the backward pass. DistributedDataParallel takes one communication hook
    in its life, so there is one object of this kind for each: :func:`averaged_gradients`.

    Attributes:
        on_start: called when a bucket is complete; None: nobody waits for gradients.
        on_average: called with the parameters of a bucket.
    """

    def __init__(self, group: dist.ProcessGroup, *, summed: bool):
        self.on_start: Callable[[], None] | None = None
        self.on_average: OnAverage | None = None
        self._group, self._summed = group, summed
        self._last: tuple[torch.futures.Future[Tensor], list[Tensor]] | None = None

    def hook(self, _: object, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        """Averages a bucket to the bits of DistributedDataParallel without a hook, or sums it."""
        buffer = bucket.buffer()
        if not self._summed:
            buffer.mul_(1.0 / self._group.size())
        work: Any = dist.all_reduce(buffer, group=self._group, async_op=True)
        future: torch.futures.Future[Tensor] = work.get_future().then(lambda done: done.value()[0])
        if self.on_start is not None:
            self.on_start()
            self.finish()
            self._last = future, bucket.parameters()
        return future

    def finish(self) -> None:
        """Waits for the last bucket."""
        if self._last is not None:
            (future, parameters), self._last = self._last, None
            future.wait()
            assert self.on_average is not None
            self.on_average(parameters)

    def forget(self) -> None:
        """What a failed pass has left."""
        self._last = None


_OF_MODULES: "WeakKeyDictionary[DistributedDataParallel, AveragedGradients]" = WeakKeyDictionary()


def sum_gradients(module: DistributedDataParallel) -> None:
    """Lets a module sum the gradients of the processes instead of averaging them, inside ``step_in_backward`` too.

    For losses that are divided by the images of all processes. Takes the module's communication hook; before its first
    backward pass.
    """
    averaged = AveragedGradients(module.process_group, summed=True)
    module.register_comm_hook(None, averaged.hook)
    _OF_MODULES[module] = averaged


def averaged_gradients(module: DistributedDataParallel) -> AveragedGradients:
    """Raises:
    TypeError: another module. ValueError: gradients that are copies of the buckets.
    """
    if not isinstance(module, DistributedDataParallel):
        raise TypeError(f"ddp is of type {type(module).__name__}, expected DistributedDataParallel")
    if not module.gradient_as_bucket_view:
        raise ValueError(
            "step_in_backward needs DistributedDataParallel(..., gradient_as_bucket_view=True): otherwise all"
            " gradients are copied after the last step"
        )
    if module not in _OF_MODULES:
        averaged = AveragedGradients(module.process_group, summed=False)
        module.register_comm_hook(None, averaged.hook)
        _OF_MODULES[module] = averaged
    return _OF_MODULES[module]
