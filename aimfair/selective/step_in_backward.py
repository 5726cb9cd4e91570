"""Optimizer steps inside the backward pass, so that no list of all gradients is ever held."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from aimfair.selective import streams
from aimfair.selective.distributed import is_dtensor, local
from aimfair.selective.selected_gradients import SelectedGradients
from aimfair.selective.state import Slot

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

    from aimfair.selective.averaged import AveragedGradients

TOGETHER = 2**20
"""Elements that are stepped together: small gradients wait until they have this many, larger ones do not wait."""


@dataclass(frozen=True)
class Steps:
    """The parts of an optimizer's step.

    Attributes:
        begin: before the first part.
        part: steps these parameters, which are of this param group.
        end: after the last part.
        whole: an ordinary step of what still has a gradient, with the optimizer's hooks.
    """

    begin: Callable[[], None]
    part: Callable[[int, list[Tensor]], None]
    end: Callable[[], None]
    whole: Callable[[], Any]


class StepInBackward:
    """While entered, every backward pass is a step: gradients are stepped and freed as soon as they are complete.

    Made by :meth:`MaskedOptimizer.step_in_backward`, which has the rules.

    Attributes:
        norm: with ``max_norm``, the norm of all gradients of the last step before clipping.
        largest: with ``watch``, parameter -> the largest absolute value of its gradient in the last step, NaN if it has
            one; of a DTensor, in this process.
    """

    def __init__(
        self,
        steps: Steps,
        slots: Mapping[Tensor, Slot],
        groups: Sequence[Mapping[str, Any]],
        max_norm: float | None,
        ddp: "DistributedDataParallel | None",
        *,
        watch: bool = False,
    ):
        self._steps, self._slots, self._groups, self._max_norm = steps, slots, groups, max_norm
        self._group_of: dict[Tensor, int] = {}
        self._handles: list[RemovableHandle] = []
        self._lock = RLock()  # autograd has a thread for each device
        self._averaged: AveragedGradients | None = None
        self._ddp_parameters: set[Tensor] = set()
        if ddp is not None:
            from aimfair.selective.averaged import averaged_gradients

            self._averaged, self._ddp_parameters = averaged_gradients(ddp), set(ddp.parameters())
        self._kept = SelectedGradients(slots)
        self._accumulating = self._discarding = False
        self._stepping = False
        self._watch, self._watched = watch, dict[Tensor, tuple[Tensor, streams.Stream]]()
        self._reset()
        self.norm: Tensor | None = None
        self.largest: dict[Tensor, Tensor] = {}

    def _reset(self) -> None:
        """Before a pass."""
        if self._averaged is not None:
            self._averaged.forget()
        self._task: int | None = None  # of autograd, while a pass runs
        self._pending: dict[Tensor, streams.Stream] = {}  # parameters to be stepped, and the stream of the gradient
        self._pending_numel = 0
        self._norms: dict[Tensor, tuple[Tensor, streams.Stream]] = {}
        self._stepped: list[Tensor] = []

    # -- entering --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._max_norm is not None:
            self._kept.reserve()  # before the first pass
        self._hook()
        if self._averaged is not None:
            self._averaged.on_start, self._averaged.on_average = self._start, self._on_average
        return self

    def _hook(self) -> None:
        """Hooks parameters of groups that have come in."""
        for number, group in enumerate(self._groups):
            for parameter in group["params"]:
                if parameter not in self._group_of:
                    self._group_of[parameter] = number
                    if parameter.requires_grad and parameter in self._slots and parameter not in self._ddp_parameters:
                        handle = parameter.register_post_accumulate_grad_hook(self._on_gradient)
                        self._handles.append(handle)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        if self._averaged is not None:
            self._averaged.on_start = self._averaged.on_average = None
        dropped = len(self._kept)
        self.drop()
        self._reset()
        if kind is None and dropped:
            raise RuntimeError(
                f"step_in_backward ended after accumulate(), before a backward pass that steps: the gradients of"
                f" {dropped} parameters were dropped"
            )

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        """Backward passes inside only add to the gradients that the next pass outside steps with.

        Raises:
            RuntimeError: with DistributedDataParallel, which has ``no_sync()`` for this.
        """
        if self._averaged is not None:
            raise RuntimeError("accumulate(): with DistributedDataParallel use its no_sync() instead")
        if self._max_norm is None:
            self._kept.reserve()
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    @contextmanager
    def discard(self) -> Iterator[None]:
        """Backward passes inside step nothing: gradients are freed when they are complete, as by a step. Tries what
        memory suffices for.

        Raises:
            RuntimeError: with DistributedDataParallel; or gradients are accumulated, which a pass would add to.
        """
        if self._averaged is not None or len(self._kept):
            reason = "gradients are accumulated" if self._averaged is None else "not with DistributedDataParallel"
            raise RuntimeError(f"discard(): {reason}")
        self._hook()
        self._discarding = True
        try:
            yield
        finally:
            self._discarding = False
            self.free()

    def drop(self) -> None:
        """Drops accumulated gradients, and a failed pass if it has stepped nothing."""
        self._kept.clear()
        self._watched = {}
        if not self._stepped:
            self._reset()

    def free(self) -> None:
        """After a step: frees gradients that no hook has seen."""
        for parameter in self._group_of:
            parameter.grad = None

    def forget_mask(self) -> None:
        """Before another mask: RuntimeError if the old one was used for what is accumulated."""
        if len(self._kept):
            raise RuntimeError("update_mask: gradients are accumulated under the old mask; call it after their step")
        self._kept = SelectedGradients(self._slots)

    def require_step(self, closure: Callable[[], Any] | None) -> None:
        """RuntimeError where ``optimizer.step()`` is called beside the steps of backward passes."""
        if closure is None and not self._stepping:
            raise RuntimeError(
                "step() inside step_in_backward: the backward pass has taken the step; leave the call out (and use no"
                " GradScaler, whose scale is known after the backward pass only)"
            )

    @contextmanager
    def stepping(self) -> Iterator[bool]:
        """Inside, ``optimizer.step`` runs; whether it did already."""
        before, self._stepping = self._stepping, True
        try:
            yield before
        finally:
            self._stepping = before

    # -- a backward pass -------------------------------------------------------------------------------

    def _start(self) -> None:
        task = torch._C._current_graph_task_id()
        if self._task == task:
            return
        if self._task is not None:
            way_out = "load the last checkpoint" if self._stepped else "call zero_grad()"
            raise RuntimeError(
                "step_in_backward: a backward pass began before the last one ended, which has stepped"
                f" {len(self._stepped)} parameters: it failed ({way_out}), or runs checkpoints, which then need"
                " use_reentrant=False"
            )
        self._refuse_capture()
        self._task = task
        self._hook()
        if self._max_norm is not None:
            self._kept.reserve()
        if not self._accumulating:
            self._steps.begin()
        self._at_end(lambda: self._at_end(self._end))  # after the callbacks that others have queued by then

    def _refuse_capture(self) -> None:
        for device in {parameter.device for parameter in self._group_of}:
            if streams.is_capturing(device):  # where it has never been tried
                raise RuntimeError("step_in_backward: not in a CUDA graph; capture backward and step() instead")

    @staticmethod
    def _at_end(callback: Callable[[], None]) -> None:
        torch.autograd.Variable._execution_engine.queue_callback(callback)

    def _on_gradient(self, parameter: Tensor) -> None:
        """When a parameter's gradient of this pass is complete."""
        with self._lock:
            if self._discarding:
                parameter.grad = None
                return
            self._start()
            assert parameter.grad is not None
            if self._watch:
                self._note_largest(parameter, local(parameter.grad))
            if self._accumulating:
                if self._max_norm is None:
                    self._kept.add(parameter)
            elif self._max_norm is not None:
                self._note_norm(parameter, parameter.grad)
                self._kept.add(parameter)
            else:
                self._complete(parameter, self._stream(parameter))

    @staticmethod
    def _stream(parameter: Tensor) -> streams.Stream:
        return streams.current_stream(parameter.device)

    def _complete(self, parameter: Tensor, stream: streams.Stream, scale: Tensor | None = None) -> None:
        """Steps a parameter with what was kept and what is in its gradient, together with others if it is small."""
        if parameter in self._kept:
            self._kept.restore(parameter)
        if scale is not None and parameter.grad is not None:
            local(parameter.grad).mul_(scale.to(parameter.device))
        self._pending[parameter] = stream
        self._pending_numel += parameter.numel()
        if self._pending_numel >= TOGETHER:
            self._step_pending()

    def _on_average(self, parameters: list[Tensor]) -> None:
        """When DistributedDataParallel has averaged a bucket. It keeps that, so gradients wait there to be clipped."""
        if self._max_norm is None:
            for parameter in parameters:
                if parameter.grad is not None and parameter in self._group_of:  # else a later step, if others reach it
                    self._on_gradient(parameter)

    @torch.no_grad()
    def _end(self) -> None:
        if self._averaged is not None:
            self._averaged.finish()
        if not self._accumulating:
            if self._max_norm is not None:
                self._step_clipped(self._max_norm)
            for parameter in list(self._kept):  # accumulated, and not reached by this pass
                self._complete(parameter, self._stream(parameter))
            self._step_pending()
            self._free_written()
            self._collect_largest()
            self._steps.end()
            with self.stepping() as by_closure:
                if not by_closure:
                    self._steps.whole()
        self._reset()

    def _free_written(self) -> None:
        """Frees the gradients that DistributedDataParallel has set again, and refuses those of an unknown one."""
        written = [p for p in self._stepped if p.grad is not None]
        for parameter in written:
            if parameter not in self._ddp_parameters:
                raise RuntimeError(
                    f"the gradient of {self._slots[parameter].name!r} was written after its step in backward: give"
                    " step_in_backward the DistributedDataParallel module that averages it, as ddp=..."
                )
            parameter.grad = None

    @torch.no_grad()
    def _step_pending(self) -> None:
        """Steps the parameters that wait, and frees their gradients."""
        for device in dict.fromkeys(parameter.device for parameter in self._pending):
            pending = {p: stream for p, stream in self._pending.items() if p.device == device}
            with streams.after(pending.values(), device):
                for number in dict.fromkeys(self._group_of[parameter] for parameter in pending):
                    self._steps.part(number, [p for p in pending if self._group_of[p] == number])
                for parameter in pending:
                    self._free(parameter)
        self._pending, self._pending_numel = {}, 0

    def _free(self, parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        if grad is not None and is_dtensor(grad) and grad.is_cuda:
            local(grad).record_stream(torch.cuda.current_stream(grad.device))  # FSDP2 has made it on another
        self._stepped.append(parameter)

    def _step_clipped(self, max_norm: float) -> None:
        """As ``torch.nn.utils.clip_grad_norm_`` over all gradients, then a step."""
        for parameter in self._group_of:
            if parameter.grad is not None and parameter not in self._norms:  # not reached by this pass, or in buckets
                self._note_norm(parameter, parameter.grad)
        if not self._norms:
            return
        with ExitStack() as stack:
            for device in dict.fromkeys(parameter.device for parameter in self._norms):
                made_on = [stream for p, (_, stream) in self._norms.items() if p.device == device]
                stack.enter_context(streams.after(made_on, device))
            self.norm = _total([self._norms[p][0] for p in self._group_of if p in self._norms])
            scale = (max_norm / (self.norm + 1e-6)).clamp(max=1.0)
            for parameter, (_, stream) in self._norms.items():
                self._complete(parameter, stream, scale)

    @torch.no_grad()
    def _note_largest(self, parameter: Tensor, grad: Tensor) -> None:
        if not grad.numel():
            return
        largest, stream = torch.linalg.vector_norm(grad, float("inf")), self._stream(parameter)
        if parameter in self._watched:  # of an accumulated pass
            before, earlier = self._watched[parameter]
            with streams.after([earlier], parameter.device):
                largest = torch.maximum(before, largest)  # NaN if one is
        self._watched[parameter] = largest, stream

    def _collect_largest(self) -> None:
        """For the stream on which the pass was begun."""
        with ExitStack() as stack:
            for device in dict.fromkeys(parameter.device for parameter in self._watched):
                made_on = [stream for p, (_, stream) in self._watched.items() if p.device == device]
                stack.enter_context(streams.after(made_on, device))
            self.largest = {parameter: largest for parameter, (largest, _) in self._watched.items()}
        self._watched = {}

    @torch.no_grad()
    def _note_norm(self, parameter: Tensor, grad: Tensor) -> None:
        self._norms[parameter] = torch.linalg.vector_norm(grad), self._stream(parameter)


def _total(norms: list[Tensor]) -> Any:
    """The norm of vectors with these norms, the same on every process that holds DTensors among them."""
    sharded: list[Tensor] = [norm for norm in norms if is_dtensor(norm)]
    whole = [norm for norm in norms if not is_dtensor(norm)]
    if sharded:
        total = torch.linalg.vector_norm(torch.stack(sharded)).full_tensor()
        if not whole:
            return total
        whole.append(total)
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in whole]))
