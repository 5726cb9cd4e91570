"""Accumulating statistics inside the backward pass, so that gradients are freed early."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.autograd.graph import register_multi_grad_hook

from aimfair.selective import streams
from aimfair.selective.statistics import GradientStatistics

TOGETHER = 2**20
"""Elements that are counted together: small gradients wait until they have this many, larger ones do not wait."""


class GradientCapture:
    """While entered, every backward pass adds to one source, and gradients are freed as soon as they are counted.

    ``accumulate_steps`` backward passes make one batch. Autograd sums their gradients in ``.grad``; in the last pass
    they are counted and set to None as they become complete. Gradients present on entry are dropped.

    One call of ``backward()`` must be one pass over the graph: checkpoint with ``use_reentrant=False``. With
    DistributedDataParallel, hooks see gradients before averaging: use ``Sensitivity.update``.

    Args:
        parameters: the parameters of ``statistics``, in its order.
        grad_scale: called once per backward pass; gradients are divided by its result unless it is None.
        after: called after every addition.
    """

    def __init__(
        self,
        statistics: GradientStatistics,
        parameters: Sequence[Tensor],
        source: str,
        accumulate_steps: int,
        grad_scale: Callable[[], Tensor | None],
        after: Callable[[], None],
    ):
        self._statistics, self._parameters, self._source = statistics, parameters, source
        self._steps, self._grad_scale, self._after = accumulate_steps, grad_scale, after
        self._pending: dict[int, streams.Stream] = {}  # parameters with a gradient not counted yet, and its stream
        self._complete: list[int] = []  # those whose gradient is that of a whole batch
        self._complete_numel = 0
        self._done = 0  # backward passes of the current batch that have ended
        self._running = False

    def __enter__(self) -> Self:
        self._free(range(len(self._parameters)))
        self._handles = [
            parameter.register_post_accumulate_grad_hook(partial(self._on_gradient, index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self._parameters)
        ]
        self._handles.append(register_multi_grad_hook(self._parameters, self._on_backward, mode="any"))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        waiting = sorted(self._pending)
        self._free(waiting)  # of an unfinished or failed batch
        if self._running:
            self._interrupt()
        elif kind is None and self._done:
            raise RuntimeError(
                f"capture({self._source!r}) ended after {self._done} of the {self._steps} backward passes of a batch;"
                f" that part is not counted: the gradients of {self._statistics.names[waiting[0]]!r}"
                f" and {len(waiting) - 1} others were dropped"
            )

    @property
    def _is_last(self) -> bool:
        """Whether the current backward pass completes a batch."""
        return self._done == self._steps - 1

    def _interrupt(self) -> None:
        """A backward pass failed; if it was the last of a batch, the source now holds part of that batch."""
        if self._is_last:
            self._statistics.interrupted.add(self._source)

    def _on_backward(self, _: Tensor) -> None:
        """At the first gradient of a backward pass."""
        if self._running:
            self._interrupt()
            raise RuntimeError(f"capture({self._source!r}): the backward pass before this one failed")
        self._running = True
        self._scale, self._scale_stream = self._grad_scale(), streams.current_stream(self._statistics.device)
        torch.autograd.Variable._execution_engine.queue_callback(self._on_backward_end)

    def _on_gradient(self, index: int, parameter: Tensor) -> None:
        """When a parameter's gradient of this backward pass is complete."""
        self._pending[index] = streams.current_stream(self._statistics.device)
        if self._is_last:
            self._complete.append(index)
            self._complete_numel += parameter.numel()
            if self._complete_numel >= TOGETHER:
                self._count(sorted(self._complete))

    def _on_backward_end(self) -> None:
        if self._is_last:
            if self._pending:  # including parameters that this pass did not reach
                self._count(sorted(self._pending))
            self._statistics.batches[self._source] += 1
        self._done = (self._done + 1) % self._steps
        self._running = False

    def _count(self, indices: list[int]) -> None:
        made_on = [self._scale_stream, *(self._pending[index] for index in indices)]
        with streams.after(made_on, self._statistics.device):
            grads = [self._gradient(index) for index in indices]
            self._statistics.add(self._source, indices, grads, self._scale)
            self._free(indices)
        for index in indices:
            del self._pending[index]
        self._complete, self._complete_numel = [], 0
        self._after()

    def _gradient(self, index: int) -> Tensor:
        grad = self._parameters[index].grad
        if grad is None:
            name = self._statistics.names[index]
            raise RuntimeError(
                f"capture({self._source!r}): the gradient of {name!r} was removed in the middle of a batch"
            )
        return grad

    def _free(self, indices: Iterable[int]) -> None:
        for index in indices:
            self._parameters[index].grad = None
