"""How a model is run: precision, memory format, compilation and activation checkpointing.

The same in training, sensitivity and prediction: :func:`prepare` configures a model, :func:`logits` runs it so. Names
and values of parameters never change, so masks, checkpoints and model folders do not depend on any of it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from aimfair.base.errors import AimfairError, one_line
from aimfair.base.os_errors import of_the_machine
from aimfair.training.settings import ModelSettings

_ATTRIBUTE = "aimfair_execution"


@dataclass(frozen=True)
class Execution:
    """
    Attributes:
        autocast: dtype of matrix products and convolutions; None: that of the weights.
        channels_last: memory format of images, and so of activations. Weights stay contiguous, as masks follow their
            logical order; convolutions reorder them at each call. On a 2-core AMD EPYC (AVX-512) forward and backward
            of a ResNet-18 take 3 to 5% longer than with channels-last weights, and 3% less than all contiguous.
        compile: with torch.compile, once for all batch sizes above 1.
    """

    autocast: torch.dtype | None = None
    channels_last: bool = True
    compile: bool = False


def prepare(model: nn.Module, settings: ModelSettings) -> None:
    """Configures how ``model`` is run, replacing an earlier configuration.

    ``compile`` takes half a minute or more at the first batch. Compiled gradients all become complete at the end of the
    backward pass, so ``Sensitivity.capture`` cannot free them one by one.

    Raises:
        AimfairError: ``checkpointing`` of a model without repeated blocks.
    """
    execution = Execution(
        torch.bfloat16 if settings.autocast == "bfloat16" else None, settings.channels_last, settings.compile
    )
    setattr(model, _ATTRIBUTE, execution)
    _set_checkpointing(model, settings.checkpointing)
    if not settings.compile:
        model._compiled_call_impl = None
    elif getattr(model, "_compiled_call_impl", None) is None:
        # In place: torch.compile(model) would rename every parameter. Static but for the batch (see logits): torch's
        # default, static until a second size occurs, would make results depend on which size came first.
        model.compile(dynamic=False)


def run_like(wrapper: nn.Module, model: nn.Module) -> None:
    """Lets :func:`logits` run a module around ``model`` as it runs that."""
    setattr(wrapper, _ATTRIBUTE, getattr(model, _ATTRIBUTE, Execution()))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """float32 [B, C] of normalised images float32 [B, 3, H, W].

    Args:
        model: configured by :func:`prepare`; returns logits, or an object with an attribute ``logits``.

    Raises:
        AimfairError: it returns anything else, or torch.compile fails.
    """
    execution: Execution = getattr(model, _ATTRIBUTE, Execution())
    images = images.contiguous(
        memory_format=torch.channels_last if execution.channels_last else torch.contiguous_format
    )
    with _autocast(images.device, execution.autocast):
        output = _compiled(model, images) if execution.compile else model(images)
    scores = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(images):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(output).__name__
        raise AimfairError(
            f"the model {type(model).__name__} returned {found} for {len(images)} images, expected logits of shape"
            f" [{len(images)}, classes], or an object that has them as logits"
        )
    if not scores.is_floating_point() or scores.layout is not torch.strided:
        raise AimfairError(
            f"the model {type(model).__name__} returned logits of {scores.dtype} and {scores.layout}, expected"
            " floating-point numbers in a dense tensor"
        )
    return scores.float()


@contextmanager
def named_failure(doing: str) -> Iterator[None]:
    """Any exception inside becomes one line that begins with ``doing`` and ends with the original message.

    Raises:
        AimfairError: an exception was raised inside. Memory errors, full disks and interrupts pass.
    """
    try:
        yield
    except (AimfairError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model may be the user's own program
        if of_the_machine(error):
            raise
        raise AimfairError(f"{doing}: {type(error).__name__}: {one_line(error)}") from error


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _compiled(model: nn.Module, images: Tensor) -> Any:
    from torch._dynamo import maybe_mark_dynamic
    from torch._dynamo.exc import TorchDynamoException

    if len(images) > 1:  # 1 is special to the compiler
        maybe_mark_dynamic(images, 0)
    try:
        return model(images)
    except TorchDynamoException as error:
        reason = str(error).partition("\n")[0]  # on further lines it explains itself at length
        raise AimfairError(
            f"model.compile: torch.compile fails on {type(model).__name__}: {reason}; set it to false"
        ) from error


# -- checkpointing -------------------------------------------------------------------------------------


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a model: the elements, all of one class, of its outermost lists of two or more.

    Stages (classes with "Stage" in their names, as in ResNet and ConvNeXt of transformers and timm) are descended into,
    as recomputing one of four stages at once takes too much memory; there a list of one block counts, too.
    """
    return list(_blocks(model, 2))


def _blocks(module: nn.Module, least: int) -> Iterator[nn.Module]:
    children = list(module.children())
    is_list = isinstance(module, nn.ModuleList | nn.Sequential)
    if (
        is_list
        and len(children) >= least
        and len({type(child) for child in children}) == 1
        and _has_weights(children[0])
    ):
        is_stages = "Stage" in type(children[0]).__name__
        if not is_stages:
            yield from children
            return
    for child in children:
        yield from _blocks(child, 1 if "Stage" in type(module).__name__ else least)


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


class _Checkpointed:
    """Replaces a block's ``forward``; an object, so that copying the model copies its reference to the block."""

    def __init__(self, block: nn.Module):
        self.block = block
        self.has_batchnorm = any(isinstance(module, _BatchNorm) for module in block.modules())

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        forward = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(*arguments, **named)
        # Recomputation restores the RNG state of dropout; BatchNorm must not count the batch twice.
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=self._contexts, **named)

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _uncounted(self.block) if self.has_batchnorm else nullcontext()


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training mode updates copies of its running statistics, which are discarded."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    before = [dict(norm._buffers) for norm in norms]
    for norm in norms:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in norm._buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, before, strict=True):
            norm._buffers.update(buffers)


def _set_checkpointing(model: nn.Module, wanted: bool) -> None:
    for module in model.modules():
        if isinstance(module.__dict__.get("forward"), _Checkpointed):
            del module.__dict__["forward"]
    if not wanted:
        return
    blocks = repeated_blocks(model)
    if not blocks:
        raise AimfairError(
            f"model.checkpointing: {type(model).__name__} has no repeated blocks (a Sequential or ModuleList of modules"
            " of one class); set it to false"
        )
    for block in blocks:
        block.__dict__["forward"] = _Checkpointed(block)
