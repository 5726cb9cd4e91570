"""Fine-tuning of the weights that a mask selects, and of nothing else."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from aimfair.base.interrupt import NEVER, Interrupt
from aimfair.base.log import NOWHERE, Log
from aimfair.base.progress import SILENT, Task
from aimfair.data.images import ImageSet
from aimfair.selective.mask import ParameterMask
from aimfair.selective.parameters import listing
from aimfair.training.checkpoint import Checkpoint
from aimfair.training.history import History
from aimfair.training.loop import Training
from aimfair.training.optimizer import build_optimizer
from aimfair.training.samplers import Sampler
from aimfair.training.settings import FinetuneSettings, ModelSettings

_WORDS = {2: torch.int16, 4: torch.int32}
"""Bytes of an element -> an integer type in which two values are equal if all bits are."""


def finetune(
    model: nn.Module,
    mask: ParameterMask,
    train: ImageSet,
    validation: ImageSet,
    settings: FinetuneSettings,
    preprocessing: ModelSettings,
    *,
    seed: int,
    sampler: Sampler | None = None,
    checkpoint: Checkpoint | None = None,
    task: Task = SILENT,
    interrupt: Interrupt = NEVER,
    log: Log = NOWHERE,
) -> History:
    """Trains the selected weights of ``model`` in place.

    Args:
        model: the biased model, on the device to work on. Tensors in which nothing is selected are frozen.
        train: balanced images. validation: real ones.
        others: as :class:`aimfair.training.loop.Training`.

    Raises:
        AimfairError: as :meth:`aimfair.training.loop.Training.fit`.
        ValueError: the mask is for another model.
        RuntimeError: a weight that is not selected has changed.
    """
    before = unselected_digests(mask, dict(model.named_parameters()))
    mask.freeze_unselected(model)
    optimizer = build_optimizer(model, settings, mask)
    history = Training(
        model,
        train,
        validation,
        settings,
        preprocessing,
        optimizer,
        seed,
        batchnorm=settings.batchnorm,
        sampler=sampler,
        checkpoint=checkpoint,
        task=task,
        interrupt=interrupt,
        log=log,
    ).fit()
    require_unselected_unchanged(mask, before, dict(model.named_parameters()))
    return history


def unselected_digests(mask: ParameterMask, parameters: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Parameter -> SHA-256 of the bits of its elements that are not selected.

    Works through one tensor at a time, so that it takes room for one: a copy of all weights would take as much as they.
    Tensors that are selected whole are left out.
    """
    digests = {}
    for name, nnz, numel in zip(mask.names, mask.nnz_per_tensor, mask.numels, strict=True):
        if nnz < numel:
            parameter = parameters[name].detach()
            bits = parameter.view(_WORDS[parameter.element_size()])
            if nnz:
                bits = bits.masked_fill(mask.bool_of(name), 0)
            digests[name] = hashlib.sha256(bits.cpu().view(-1).view(torch.uint8).numpy().data).digest()
    return digests


def require_unselected_unchanged(
    mask: ParameterMask, before: Mapping[str, bytes], parameters: Mapping[str, Tensor]
) -> None:
    """Refuses the result of a step that is not what this package promises.

    Args:
        before: what :func:`unselected_digests` said of them.

    Raises:
        RuntimeError: naming the parameters in which an unselected element has other bits than before.
    """
    after = unselected_digests(mask, parameters)
    if moved := [name for name in after if after[name] != before[name]]:
        raise RuntimeError(f"unselected elements of {listing(moved)} have changed")
