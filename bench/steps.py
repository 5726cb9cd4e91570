"""One optimizer step, ours and every public way in PyTorch, each as a call to be repeated.

Ways that touch every element: ``fused`` (torch's fused operator, which ``torch.optim`` calls), ``foreach``, and
``fused_on_masters`` for low-precision parameters. Ways that leave unselected elements alone, to the bit:
``clone_fused_where`` saves the weights, steps, and puts the unselected back; ``gather_fused_scatter`` steps on copies
of the selected elements. All of them run in buffers made beforehand, faster than they are usually written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from aimfair._C import PlanMemory
from aimfair.selective import ops
from bench.workloads import Selection, flat

LR = 1e-3
WEIGHT_DECAY = 0.1
MOMENTUM = 0.9
ADAMW: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": WEIGHT_DECAY}

FIRST_STEP = 10.0
"""Step counters begin later than the first step, on which SGD has no momentum yet."""

Call = Callable[[], object]


@dataclass(frozen=True)
class Buffers:
    """What a step works on: [T] parameters, gradients, and lists of [T] states (two for AdamW, one for SGD)."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[list[Tensor]]

    @property
    def device(self) -> torch.device:
        return self.params[0].device

    def steps(self) -> list[Tensor]:
        return [torch.full((), FIRST_STEP, device=self.device) for _ in self.params]


class Optimizer(Protocol):
    name: str
    state_count: int

    def fused(self, buffers: Buffers) -> Call: ...

    def foreach(self, buffers: Buffers) -> Call: ...

    def ours(self, buffers: Buffers, selection: Selection | None, **options: Any) -> Call:
        """``options``: ``compact``, ``masters``, ``stochastic_rounding`` of the operator."""
        ...


class AdamW:
    name = "adamw"
    state_count = 2

    def fused(self, buffers: Buffers) -> Call:
        exp_avgs, exp_avg_sqs = buffers.states
        steps = buffers.steps()

        def call() -> None:
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                buffers.params, buffers.grads, exp_avgs, exp_avg_sqs, [], steps,
                lr=LR, amsgrad=False, maximize=False, **ADAMW,
            )  # fmt: skip

        return call

    def foreach(self, buffers: Buffers) -> Call:
        exp_avgs, exp_avg_sqs = buffers.states
        steps = [step.cpu() for step in buffers.steps()]
        return lambda: adamw(
            buffers.params, buffers.grads, exp_avgs, exp_avg_sqs, [], steps,
            foreach=True, lr=LR, amsgrad=False, maximize=False, **ADAMW,
        )  # fmt: skip

    def ours(self, buffers: Buffers, selection: Selection | None, **options: Any) -> Call:
        exp_avgs, exp_avg_sqs = buffers.states
        lists = {"exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, **_lists(buffers, selection), **options}
        return _planned(ops.plan_adamw, ops.planned_adamw_, lists, {**ADAMW, **_settings(buffers)})


class SGD:
    name = "sgd"
    state_count = 1

    def fused(self, buffers: Buffers) -> Call:
        (momentum_buffers,) = buffers.states
        return lambda: torch._fused_sgd_(
            buffers.params, buffers.grads, momentum_buffers, weight_decay=WEIGHT_DECAY, momentum=MOMENTUM, lr=LR,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip

    def foreach(self, buffers: Buffers) -> Call:
        (momentum_buffers,) = buffers.states
        return lambda: sgd(
            buffers.params, buffers.grads, list(momentum_buffers), foreach=True, weight_decay=WEIGHT_DECAY,
            momentum=MOMENTUM, lr=LR, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip

    def ours(self, buffers: Buffers, selection: Selection | None, **options: Any) -> Call:
        (momentum_buffers,) = buffers.states
        lists = {"momentum_buffers": momentum_buffers, **_lists(buffers, selection), **options}
        settings = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, **_settings(buffers)}
        return _planned(ops.plan_sgd, ops.planned_sgd_, lists, settings)


def _planned(
    plan_of: Callable[..., ops.StepPlan], planned: Callable[..., None], lists: dict[str, Any], settings: dict[str, Any]
) -> Call:
    """A step as the masked optimizers take it: on a plan, after looking whether an address has changed."""
    plan, grads = plan_of(**lists), lists["grads"]
    held = [value for name, value in lists.items() if isinstance(value, list) and name not in ("grads", "first_blocks")]
    memory = PlanMemory(held, grads)

    def call() -> None:
        assert memory.holds(held)
        assert memory.moved_grads(grads) == []
        planned(plan, **settings)

    return call


def _lists(buffers: Buffers, selection: Selection | None) -> dict[str, Any]:
    lists: dict[str, Any] = {"params": buffers.params, "grads": buffers.grads, "steps": buffers.steps()}
    if selection is not None:
        lists |= {"bits": selection.bits, "rank": selection.rank, "first_blocks": selection.first_blocks}
    return lists


def _settings(buffers: Buffers) -> dict[str, Any]:
    return {"lr": torch.tensor(LR, dtype=torch.float64, device=buffers.device), "seed": 1}


def fused_on_masters(optimizer: Optimizer, buffers: Buffers, masters: list[Tensor]) -> Call:
    """Low-precision parameters with an fp32 master of every element: widen gradients, step, round the weights."""
    gradients = [torch.empty_like(master) for master in masters]
    fused = optimizer.fused(Buffers(masters, gradients, buffers.states))

    def call() -> None:
        torch._foreach_copy_(gradients, buffers.grads)
        fused()
        torch._foreach_copy_(buffers.params, masters)

    return call


def clone_fused_where(optimizer: Optimizer, buffers: Buffers, bools: list[Tensor]) -> Call:
    """Exact for the weights. The state of unselected elements moves, which no later step of this mask can see."""
    params = flat(buffers.params)
    saved = [torch.empty_like(param) for param in params]
    fused = optimizer.fused(buffers)

    def call() -> None:
        torch._foreach_copy_(saved, params)
        fused()
        for param, before, selected in zip(params, saved, bools, strict=True):
            torch.where(selected, param, before, out=param)

    return call


def gather_fused_scatter(
    optimizer: Optimizer, buffers: Buffers, selection: Selection, masters: list[Tensor] | None = None
) -> Call:
    """On compact states and, if given, compact fp32 masters. The indices take 8 bytes per selected element or row."""
    indices = selection.indices
    params, grads = selection.units(buffers.params), selection.units(buffers.grads)
    gathered = [grad.new_empty(index.numel(), *grad.shape[1:]) for grad, index in zip(grads, indices, strict=True)]
    gradients = [grad.float() for grad in gathered] if masters else gathered
    weights = [torch.empty_like(grad) for grad in gathered]
    if masters:
        weights = [master.view(grad.shape) for master, grad in zip(masters, gathered, strict=True)]
    states = [[s.view(grad.shape) for s, grad in zip(state, gathered, strict=True)] for state in buffers.states]
    fused = optimizer.fused(Buffers(weights, gradients, states))

    def call() -> None:
        for grad, index, out in zip(grads, indices, gathered, strict=True):
            torch.index_select(grad, 0, index, out=out)
        if masters:
            torch._foreach_copy_(gradients, gathered)
        else:
            for param, index, out in zip(params, indices, weights, strict=True):
                torch.index_select(param, 0, index, out=out)
        fused()
        for param, index, weight in zip(params, indices, weights, strict=True):
            param.index_copy_(0, index, weight.to(param.dtype))

    return call
