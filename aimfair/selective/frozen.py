"""Masks with optimizers that know nothing of masks, and a check, for any optimizer, that unselected elements stayed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from aimfair.selective.checkpoint import InMemory, Source, opened, tensor_of
from aimfair.selective.difference import require_same
from aimfair.selective.distributed import is_dtensor
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import Parameters, named_parameters

Before = str | os.PathLike[str] | nn.Module | Mapping[str, Tensor]
"""A safetensors file or folder, a module, or a dict name -> tensor, such as a copy of a ``state_dict()``."""


class AppliedMask:
    """What :func:`apply_mask` has added to a model; also a context manager, which removes it at its end."""

    def __init__(self, named: Mapping[str, Tensor], mask: ParameterMask):
        self._kept: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self._hooks: list[Any] = []
        for name, nnz, numel in zip(mask.names, mask.nnz_per_tensor, mask.numels, strict=True):
            if not 0 < nnz < numel:
                continue
            parameter, unselected = named[name], ~mask.bool_of(name)
            self._kept[parameter] = unselected, parameter.detach()[unselected]
            hook = partial(_zero_gradient, unselected=unselected)
            handle = parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
            self._hooks.append(handle)
        self._hooks.append(register_optimizer_step_post_hook(self._restore))

    def remove(self) -> None:
        """From now on all elements of the selected tensors are tuned; frozen tensors stay frozen."""
        while self._hooks:
            self._hooks.pop().remove()
        self._kept.clear()

    def __enter__(self) -> "AppliedMask":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer, *_: object) -> None:
        """After a step of any optimizer."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._kept:
                    unselected, values = self._kept[parameter]
                    parameter.masked_scatter_(unselected, values)


def apply_mask(parameters: Parameters, mask: ParameterMask) -> AppliedMask:
    """Lets every torch optimizer change selected elements only: the slow road, for optimizers that have no masked one.

    Gradients of unselected elements are set to zero as they are accumulated, so that clipping sees the selected ones
    alone, and after each step of an optimizer their values are written back, since momentum, weight decay and
    factored or orthogonalised updates move elements whose gradient is zero. Tensors without a selected element are
    frozen, as by :meth:`ParameterMask.freeze_unselected`. :class:`MaskedAdamW` and :class:`MaskedSGD` need none of this
    and keep state for selected elements only.

    Memory: a byte per element of partly selected tensors, and a copy of their unselected elements.

    Args:
        parameters: of the model, on the device of the mask; before an optimizer is made.
        mask: over its trainable parameters.

    Returns:
        Removes the mask again; the values of unselected elements are those of now until then.

    Raises:
        ValueError: the mask is for another model or on another device, or parameters are sharded.
    """
    named = named_parameters(parameters, trainable=False)
    mask.check(named)
    for name in mask.names:
        if is_dtensor(named[name]):
            raise ValueError(f"parameter {name!r} is a DTensor; use MaskedAdamW or MaskedSGD")
        if named[name].device != mask.device:
            raise ValueError(f"parameter {name!r} is on {named[name].device}, the mask on {mask.device}")
    mask.freeze_unselected(named)
    return AppliedMask(named, mask)


def _zero_gradient(parameter: Tensor, *, unselected: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.masked_fill_(unselected, 0)


@dataclass(frozen=True)
class FrozenReport:
    """What a training under a mask has changed, in bits.

    Attributes:
        moved: parameter -> unselected elements that changed; those without any are left out.
        first: parameter of ``moved`` -> index of the first of them, before, after.
        changed: selected elements that changed.
        selected: selected elements.
    """

    moved: dict[str, int]
    first: dict[str, tuple[tuple[int, ...], float, float]]
    changed: int
    selected: int

    @property
    def intact(self) -> bool:
        """No unselected element changed."""
        return not self.moved

    def require(self) -> None:
        """Raises ValueError if an unselected element changed, or if no selected one did."""
        if self.moved or (self.selected and not self.changed):
            raise ValueError(str(self))

    def __str__(self) -> str:
        tuned = f"{self.changed:,} of {self.selected:,} selected elements changed"
        if self.intact:
            return f"no unselected element changed, {tuned}"
        lines = []
        for name, count in self.moved.items():
            index, before, after = self.first[name]
            lines.append(f"  {name}: {count:,}, the first at {list(index)}: {before!r} -> {after!r}")
        return f"{sum(self.moved.values()):,} unselected elements changed, {tuned}\n" + "\n".join(lines)


def verify_frozen(parameters: Parameters, mask: ParameterMask, before: Before) -> FrozenReport:
    """Compares parameters with those of before the training, bit by bit: no optimizer has to be trusted.

    ``str`` of the result tells what was found, ``require()`` raises. Parameters that the mask does not have are
    unselected. Buffers, such as the statistics of BatchNorm, are no parameters: a mask says nothing of them.

    Args:
        parameters: of the model, after it.
        mask: over its parameters.
        before: the same parameters before it; other tensors are ignored.

    Raises:
        ValueError: the mask is for another model, or ``before`` lacks a parameter or has another dtype or shape.
        FileNotFoundError: there is no such file.
    """
    named = named_parameters(parameters, trainable=False)
    mask.check(named)
    start, end = opened(before), InMemory({name: parameter.detach() for name, parameter in named.items()})
    require_same(start, end.specs, "before", "the model", may_have_more=True)
    moved: dict[str, int] = {}
    first: dict[str, tuple[tuple[int, ...], float, float]] = {}
    changed = 0
    for name, parameter in named.items():
        differs = _differing(start, end, name).view(parameter.shape)
        if name in mask.index:
            selected = mask.bool_of(name).cpu()
            changed += int((differs & selected).sum())
            differs &= ~selected
        if count := int(differs.sum()):
            moved[name] = count
            index = tuple(torch.nonzero(differs)[0].tolist())
            first[name] = index, tensor_of(start, name)[index].item(), parameter[index].item()
    return FrozenReport(moved, first, changed, mask.nnz)


def _differing(one: Source, other: Source, name: str) -> Tensor:
    """Of each element of a tensor, whether its bits differ: bool, flat, on the CPU."""
    pieces = zip(one.pieces(name), other.pieces(name), strict=True)
    return torch.cat([torch.empty(0, dtype=torch.bool), *(torch.from_numpy(a != b) for a, b in pieces)])
